// SPDX-License-Identifier: Apache-2.0
// Compiled for x86-64-v3.
#include "two_levels_unit.hpp"

Told tell_v3() { return tell(); }
