// SPDX-License-Identifier: Apache-2.0
// The safetensors format (https://github.com/huggingface/safetensors): a little-endian u64 N, N bytes of JSON that name
// every tensor's dtype, shape and place, then the tensors, one after another without holes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/dtype.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian and are read in place");

/// "(3, 4)", "()", for messages.
inline std::string shape_text(std::span<const Index> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size() && i < 16; ++i) {
    text.append(i == 0 ? "" : ", ").append(std::to_string(shape[i]));
  }
  return text.append(shape.size() > 16 ? ", …)" : shape.size() == 1 ? ",)" : ")");
}

/// One tensor in a file's bytes: row-major, little-endian, not necessarily aligned.
struct TensorView {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  ///< keeps `bytes` alive
  std::string file;                   ///< for messages

  /// Elements; 1 for a scalar.
  Index size() const {
    Index product = 1;
    for (const Index length : shape) product *= length;
    return product;
  }
};

namespace detail {

inline std::string tensor_where(std::string_view file, std::string_view tensor) {
  return std::string(file).append(", tensor ").append(in_quotes(tensor));
}

/// Bytes of a whole tensor. \throws FormatError when the product overflows or packed elements do not fill whole bytes.
inline std::uint64_t tensor_bytes(Dtype dtype, std::span<const Index> shape, const std::string& where) {
  Index bits = dtype_bits(dtype);
  for (const Index length : shape) {
    if (length < 0 || __builtin_mul_overflow(bits, length, &bits)) {
      fail<FormatError>(where + ", field shape", "a shape of non-negative lengths whose bits can be counted in 63 bits",
                        shape_text(shape));
    }
  }
  if (bits % 8 != 0) {
    fail<FormatError>(where + ", field shape", std::string(dtype_name(dtype)) + " elements that fill whole bytes",
                      shape_text(shape));
  }
  return static_cast<std::uint64_t>(bits) / 8;
}

}  // namespace detail

/// A safetensors file, validated whole: header, dtypes, shapes, and that the tensors fill the data exactly, without
/// overlap or hole. Its views point into the given bytes and share their ownership.
class SafetensorsFile {
 public:
  /// \throws FormatError naming file, tensor and field.
  explicit SafetensorsFile(const Bytes& file) {
    constexpr std::uint64_t max_header = 100'000'000;  // the limit of the reference implementation
    const std::string& name = file.name;
    if (file.data.size() < 8) {
      fail<FormatError>(name, "a safetensors file (8 bytes of header length first)",
                        std::to_string(file.data.size()) + " bytes");
    }
    std::uint64_t length = 0;
    std::memcpy(&length, file.data.data(), 8);
    if (length > file.data.size() - 8) {
      fail<FormatError>(name + ", header length",
                        "at most the " + std::to_string(file.data.size() - 8) + " bytes that follow",
                        std::to_string(length));
    }
    if (length > max_header) {
      fail<FormatError>(name + ", header length", "at most " + std::to_string(max_header), std::to_string(length));
    }
    const Bytes header_bytes{file.data.subspan(8, static_cast<std::size_t>(length)), nullptr, name + ", header"};
    if (!header_bytes.text().starts_with('{')) {
      fail<FormatError>(header_bytes.name, "a JSON object, '{' first",
                        detail::in_quotes(header_bytes.text().substr(0, 1)));
    }
    const Json header = parse_json(header_bytes);
    const auto data = file.data.subspan(8 + static_cast<std::size_t>(length));

    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") {
        metadata_ =
            detail::json_convert<std::map<std::string, std::string>>(value, detail::json_where(header_bytes.name, key));
      } else {
        tensors_.emplace(key, read_tensor(file, key, value, data));
      }
    }
    require_exact_cover(name, data);
  }

  /// By name.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  /// The tensor, or null.
  const TensorView* find(std::string_view name) const {
    const auto found = tensors_.find(std::string(name));
    return found == tensors_.end() ? nullptr : &found->second;
  }
  /// The free texts under `__metadata__`.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  static TensorView read_tensor(const Bytes& file, const std::string& tensor, const Json& entry,
                                std::span<const std::byte> data) {
    const std::string where = detail::tensor_where(file.name, tensor);
    const auto dtype_text = json_get<std::string>(entry, "dtype", where);
    const auto dtype = dtype_from_name(dtype_text);
    if (!dtype)
      fail<FormatError>(where + ", field dtype", "a dtype of safetensors (F32, BF16, I64, …)",
                        detail::in_quotes(dtype_text));
    auto shape = json_get<std::vector<Index>>(entry, "shape", where);
    const std::uint64_t size = detail::tensor_bytes(*dtype, shape, where);

    const auto offsets = json_get<std::vector<std::uint64_t>>(entry, "data_offsets", where);
    const std::string field = where + ", field data_offsets";
    if (offsets.size() != 2) fail<FormatError>(field, "two offsets, begin and end", std::to_string(offsets.size()));
    const std::uint64_t begin = offsets[0];
    const std::uint64_t end = offsets[1];
    if (begin > end || end > data.size()) {
      fail<FormatError>(field, "begin ≤ end ≤ " + std::to_string(data.size()) + ", the bytes of data in the file",
                        "[" + std::to_string(begin) + ", " + std::to_string(end) + "]");
    }
    if (end - begin != size) {
      fail<FormatError>(field, std::to_string(size) + " bytes for " + dtype_text + " of shape " + shape_text(shape),
                        std::to_string(end - begin) + " bytes");
    }
    return {tensor,           *dtype,
            std::move(shape), data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size)),
            file.owner,       file.name};
  }

  void require_exact_cover(const std::string& name, std::span<const std::byte> data) const {
    struct Extent {
      std::size_t begin, end;
      const std::string* tensor;
    };
    std::vector<Extent> extents;
    extents.reserve(tensors_.size());
    for (const auto& [tensor, view] : tensors_) {
      const auto begin = static_cast<std::size_t>(view.bytes.data() - data.data());
      extents.push_back({begin, begin + view.bytes.size(), &tensor});
    }
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    std::size_t covered = 0;
    for (const Extent& extent : extents) {
      if (extent.begin != covered) {
        fail<FormatError>(detail::tensor_where(name, *extent.tensor) + ", field data_offsets",
                          "begin at " + std::to_string(covered) + ", where the tensor before it ends",
                          std::to_string(extent.begin) + (extent.begin < covered ? " (an overlap)" : " (a hole)"));
      }
      covered = extent.end;
    }
    if (covered != data.size()) {
      fail<FormatError>(name, std::to_string(covered) + " bytes of data, as the header says",
                        std::to_string(data.size()));
    }
  }

  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor for `safetensors_bytes`: its elements row-major, little-endian.
struct TensorToWrite {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;
  std::span<const std::byte> bytes;
};

/// A safetensors file: tensors in the given order, metadata by key, the header padded with spaces so that the data
/// starts at a multiple of 8. Equal input gives equal bytes. \throws FormatError naming the tensor: a name used twice,
/// "__metadata__" or not UTF-8, or bytes that do not fit dtype and shape.
inline std::string safetensors_bytes(std::span<const TensorToWrite> tensors,
                                     const std::map<std::string, std::string>& metadata = {}) {
  const auto literal = [](const std::string& text) {
    try {
      return Json(text).dump();
    } catch (const Json::type_error&) {
      fail<FormatError>("safetensors header", "UTF-8", detail::in_quotes(text));
    }
  };
  std::string header = "{";
  if (!metadata.empty()) {
    header.append("\"__metadata__\":{");
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header.push_back(',');
      header.append(literal(key)).append(":").append(literal(value));
    }
    header.push_back('}');
  }
  std::set<std::string_view> names;
  std::uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::string where = "tensor " + detail::in_quotes(tensor.name);
    if (tensor.name == "__metadata__")
      fail<FormatError>(where, "another name", "the one that the format keeps for metadata");
    if (!names.insert(tensor.name).second) fail<FormatError>(where, "every name once", "it twice");
    const std::uint64_t size = detail::tensor_bytes(tensor.dtype, tensor.shape, where);
    if (size != tensor.bytes.size()) {
      fail<FormatError>(where,
                        std::to_string(size) + " bytes for " + std::string(dtype_name(tensor.dtype)) + " of shape " +
                            shape_text(tensor.shape),
                        std::to_string(tensor.bytes.size()) + " bytes");
    }
    if (header.size() > 1) header.push_back(',');
    header.append(literal(tensor.name))
        .append(":{\"dtype\":\"")
        .append(dtype_name(tensor.dtype))
        .append("\",\"shape\":[");
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      header.append(i == 0 ? "" : ",").append(std::to_string(tensor.shape[i]));
    }
    header.append("],\"data_offsets\":[").append(std::to_string(offset)).append(",");
    offset += size;
    header.append(std::to_string(offset)).append("]}");
  }
  header.push_back('}');
  header.resize((header.size() + 7) / 8 * 8, ' ');

  std::string out(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  out.reserve(8 + header.size() + static_cast<std::size_t>(offset));
  out.append(header);
  for (const TensorToWrite& tensor : tensors) {
    out.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return out;
}

/// Copies a tensor's elements to `out` as float or double: F16, BF16 and F32 exactly, F64 rounded to the nearest when T
/// is float. \throws ShapeError when `out` has another number of elements, FormatError when the dtype is none of these
/// four.
template <std::floating_point T>
void copy_tensor(const TensorView& tensor, std::span<T> out) {
  const std::string where = detail::tensor_where(tensor.file, tensor.name);
  if (static_cast<std::uint64_t>(tensor.size()) != out.size()) {
    fail<ShapeError>(where, std::to_string(out.size()) + " elements", "shape " + shape_text(tensor.shape));
  }
  const auto convert = [&]<class Stored>(Stored, auto widen) {
    const std::byte* from = tensor.bytes.data();
    for (T& element : out) {
      Stored stored;
      std::memcpy(&stored, from, sizeof stored);  // the file need not be aligned
      element = static_cast<T>(widen(stored));
      from += sizeof stored;
    }
  };
  const auto same = [](auto stored) { return stored; };
  switch (tensor.dtype) {
    case Dtype::f64:
      return convert(double{}, same);
    case Dtype::f32:
      return convert(float{}, same);
    case Dtype::f16:
      return convert(std::uint16_t{}, f16_to_float);
    case Dtype::bf16:
      return convert(std::uint16_t{}, bf16_to_float);
    default:
      fail<FormatError>(where + ", field dtype", "F64, F32, F16 or BF16", dtype_name(tensor.dtype));
  }
}

}  // namespace fedlora
