// SPDX-License-Identifier: Apache-2.0
// What the units of several levels tell the program that they are linked into.
#pragma once

#include <string>
#include <vector>

struct Told {
  std::string level;
  float sum = 0;  ///< of 2²⁴, 1, 1 and −2²⁴ in columns 0, 4, 8 and 16: how wide the vectors are that add it
  std::vector<float> values;  ///< of attention, a norm, an activation, a product and a step of AdamW
};

Told tell_v1();
Told tell_v3();
Told tell_v4();
