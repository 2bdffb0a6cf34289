// SPDX-License-Identifier: Apache-2.0
// CTest expects this one to fail: a runner that lost its exit status would be noticed here.
#include <doctest/doctest.h>

TEST_CASE("one is two") { CHECK(1 == 2); }
