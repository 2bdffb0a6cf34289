// SPDX-License-Identifier: Apache-2.0
// The adapter that messages and states of runs are about.
#pragma once

#include <cstring>
#include <memory>

#include "fedlora/lora/adapter.hpp"

namespace fedlora::fuzz {

inline std::shared_ptr<const AdapterLayout> small_layout() {
  static const std::shared_ptr<const AdapterLayout> layout = [] {
    auto made = std::make_shared<AdapterLayout>();
    made->config.rank = 2;
    made->config.alpha = 4;
    made->target_modules = {"query"};
    made->id2label = {"no", "yes"};
    made->add_site("query", 3, 2, 2, 4);
    made->add_saved("classifier.weight", {2, 3});
    made->add_saved("classifier.bias", {2});
    return made;
  }();
  return layout;
}

template <class T>
bool same_bits(const Adapter<T>& a, const Adapter<T>& b) {
  return a.values().size() == b.values().size() &&
         std::memcmp(a.values().data(), b.values().data(), a.values().size_bytes()) == 0;
}

}  // namespace fedlora::fuzz
