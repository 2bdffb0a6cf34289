// SPDX-License-Identifier: Apache-2.0
// Two translation units with the umbrella in one program: a function that lacks `inline` would be defined twice.
#include <cstdio>
#include <fedlora/fedlora.hpp>

const char* version_seen_by_b();

int main() {
  std::printf("%s %s\n", fedlora::version, version_seen_by_b());
  return fedlora::version == version_seen_by_b() ? 0 : 1;  // one variable, hence one address
}
