// SPDX-License-Identifier: Apache-2.0
#include <fedlora/fedlora.hpp>

const char* version_seen_by_b() { return fedlora::version; }
