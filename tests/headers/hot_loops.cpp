// SPDX-License-Identifier: Apache-2.0
// All that a training step spends its time in, beside the matrix products: what hot_loops_test.cpp compiles for every
// level and looks at. Not a test itself.
#include "fedlora/backend/cpu/activation.hpp"
#include "fedlora/backend/cpu/attention.hpp"
#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/linear.hpp"
#include "fedlora/backend/cpu/loss.hpp"
#include "fedlora/backend/cpu/norm.hpp"
#include "fedlora/backend/cpu/thin.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/sgd.hpp"

namespace fedlora::tests {

/// The addresses of all hot functions for one scalar.
template <class T>
struct HotFunctions {
  decltype(&cpu::thin_shrink<T>) shrink = &cpu::thin_shrink<T>;
  decltype(&cpu::thin_expand<T>) expand = &cpu::thin_expand<T>;
  decltype(&cpu::thin_gather<T>) gather = &cpu::thin_gather<T>;
  decltype(&cpu::thin_transpose<T>) transpose = &cpu::thin_transpose<T>;
  decltype(&cpu::multiply_elements<T>) multiply_elements = &cpu::multiply_elements<T>;
  decltype(&cpu::attention_forward<T>) attention_forward = &cpu::attention_forward<T>;
  decltype(&cpu::attention_backward<T>) attention_backward = &cpu::attention_backward<T>;
  decltype(&cpu::rotate<T>) rotate = &cpu::rotate<T>;
  decltype(&cpu::norm_forward<NormKind::layer_norm, T>) layer_norm = &cpu::norm_forward<NormKind::layer_norm, T>;
  decltype(&cpu::norm_forward<NormKind::rms_norm, T>) rms_norm = &cpu::norm_forward<NormKind::rms_norm, T>;
  decltype(&cpu::norm_backward<NormKind::layer_norm, T>) d_layer_norm = &cpu::norm_backward<NormKind::layer_norm, T>;
  decltype(&cpu::norm_backward<NormKind::rms_norm, T>) d_rms_norm = &cpu::norm_backward<NormKind::rms_norm, T>;
  decltype(&cpu::residual_row<T>) residual = &cpu::residual_row<T>;
  decltype(&cpu::activation_forward<T>) activation_forward = &cpu::activation_forward<T>;
  decltype(&cpu::activation_backward<T>) activation_backward = &cpu::activation_backward<T>;
  decltype(&cpu::gated_forward<T>) gated_forward = &cpu::gated_forward<T>;
  decltype(&cpu::gated_backward<T>) gated_backward = &cpu::gated_backward<T>;
  decltype(&cpu::dropout_mask<T>) dropout_mask = &cpu::dropout_mask<T>;
  decltype(&cpu::dropout_row<T>) dropout_row = &cpu::dropout_row<T>;
  decltype(&cpu::cross_entropy<T>) cross_entropy = &cpu::cross_entropy<T>;
  decltype(&cpu::cross_entropy_loss<T>) cross_entropy_loss = &cpu::cross_entropy_loss<T>;
  decltype(&cpu::mean_squared_error<T>) mean_squared_error = &cpu::mean_squared_error<T>;
  decltype(&cpu::binary_cross_entropy<T>) binary_cross_entropy = &cpu::binary_cross_entropy<T>;
  decltype(&AdamW::step<T>) adamw = &AdamW::step<T>;
  decltype(&Sgd::step<T>) sgd = &Sgd::step<T>;
};

HotFunctions<float> hot_functions_of_float() { return {}; }
HotFunctions<double> hot_functions_of_double() { return {}; }

}  // namespace fedlora::tests
