// SPDX-License-Identifier: Apache-2.0
// Errors. Every message reads `[where] expected …, got …`; for files `where` begins with the file, then the tensor or field.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

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

/// A CUDA call that failed, or a device that is not there.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// A loss, gradient or update that is not finite.
class DivergenceError : public Error {
 public:
  using Error::Error;
};

/// Throws `E("[where] expected …, got …")`.
template <class E>
[[noreturn]] void fail(std::string_view where, std::string_view expected, std::string_view got) {
  std::string text;
  text.reserve(where.size() + expected.size() + got.size() + 20);
  text.append("[").append(where).append("] expected ").append(expected).append(", got ").append(got);
  throw E(text);
}

}  // namespace fedlora
