// SPDX-License-Identifier: Apache-2.0
// What a program sees of the measurements. They are compiled apart, a file for each type (lora_cuda_TYPE.cu).
#pragma once

#include <memory>
#include <string>

#include "cases.hpp"
#include "fedlora/core/shape.hpp"
#include "setup.cuh"

namespace fedlora::benchmarks {

/// What the bare products are called among the variants.
inline constexpr const char* base_name = "base";

/// Seconds of one pass.
struct Times {
  double base = 0;
  double adapted = 0;
};

class Measurement {
 public:
  virtual ~Measurement() = default;
  virtual Times measure() = 0;
  /// Kernels, copies and memory sets of one pass; 0 where they are not counted.
  virtual double launches() const = 0;
  /// Passes of one measurement.
  virtual Index passes() const = 0;
};

/// Runs the variant and throws unless its results are right and repeatable. T is float, Bf16 or Half.
/// \throws CudaError, ConfigError for a variant that is not there
template <class T>
void check(const Setup& setup, const Case& shape, const std::string& variant);

/// Ready to be measured, and warm. \throws CudaError, ConfigError
template <class T>
std::unique_ptr<Measurement> prepare(const Setup& setup, const Case& shape, const std::string& variant, bool cold);

}  // namespace fedlora::benchmarks
