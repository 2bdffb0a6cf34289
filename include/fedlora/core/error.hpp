// SPDX-License-Identifier: Apache-2.0
// Errors. Every message reads `[where] expected …, got …`; for files `where` begins with the file, then the tensor or field.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fedlora/core/utf8.hpp"

namespace fedlora {

/// The base of everything this library throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Two shapes that do not fit, or an index out of range.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A value that a configuration may not have: rank 0, a target module that matches nothing, an unknown model type.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be found, opened, mapped, written or renamed.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A file whose contents break its format.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A CUDA call that failed.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// A GPU, or its driver, that is not there.
class NoDeviceError : public CudaError {
 public:
  using CudaError::CudaError;
};

/// A loss, gradient or update that is not finite.
class DivergenceError : public Error {
 public:
  using Error::Error;
};

/// Throws `E("[where] expected …, got …")`. The parts may hold what stood in a file: each is cut at a kilobyte, and what
/// could steer a terminal is shown as \xNN.
template <class E>
[[noreturn]] void fail(std::string_view where, std::string_view expected, std::string_view got) {
  constexpr std::size_t longest = 1000;
  throw E("[" + detail::printable(where, longest) + "] expected " + detail::printable(expected, longest) + ", got " +
          detail::printable(got, longest));
}

}  // namespace fedlora
