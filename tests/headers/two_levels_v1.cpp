// SPDX-License-Identifier: Apache-2.0
// Compiled for x86-64.
#include "two_levels_unit.hpp"

Told tell_v1() { return tell(); }
