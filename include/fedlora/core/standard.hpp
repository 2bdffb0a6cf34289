// SPDX-License-Identifier: Apache-2.0
// Which C++ this library is written in. Every header reaches this one before it says anything newer than C++17, so that
// an older standard gives one message and not a hundred.
#pragma once

#if __cplusplus < 202002L
#error "fedlora needs C++20: compile with -std=c++20 (g++ 12 or clang 14 and newer)"
#include <fedlora needs C++20>  // no file has this name: the compiler stops here
#endif
