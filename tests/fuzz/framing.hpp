// SPDX-License-Identifier: Apache-2.0
// How one input holds the several files of a directory, and tensors without the bookkeeping that a fuzzer seldom gets
// right: text that a person can write, and that stays well-formed when it is cut, joined and changed at random.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/dtype.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora::fuzz {

using FileContents = std::map<std::string, std::string>;

/// Takes the next line, without its end, from the front of `rest`.
inline std::string_view take_line(std::string_view& rest) {
  const std::size_t end = std::min(rest.find('\n'), rest.size());
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return line;
}

/// Takes the next word from the front of a line.
inline std::string_view take_word(std::string_view& line) {
  const std::size_t end = std::min(line.find(' '), line.size());
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return word;
}

template <class Number>
std::optional<Number> number_of(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// `count` elements around `centre`, each a little different.
inline std::string elements(Dtype dtype, std::size_t count, double centre) {
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) {
    const double value = centre + 0.01 * static_cast<double>(i * 37 % 17);
    const auto narrow = static_cast<float>(std::clamp(value, -1e30, 1e30));
    const auto put = [&](auto element) { bytes.append(reinterpret_cast<const char*>(&element), sizeof element); };
    switch (dtype) {
      case Dtype::f64:
        put(value);
        break;
      case Dtype::f32:
        put(narrow);
        break;
      case Dtype::f16:
        put(float_to_f16(narrow));
        break;
      case Dtype::bf16:
        put(float_to_bf16(narrow));
        break;
      default:
        bytes.append(dtype_size(dtype), static_cast<char>(i % 128));
    }
  }
  return bytes;
}

/// A safetensors file from a listing: lines "NAME DTYPE ROWS,COLS,… VALUE" for tensors whose elements lie around VALUE,
/// and "@KEY VALUE" for metadata. Lines that say anything else are passed over, and what would take more than a MiB.
inline std::string safetensors_of_listing(std::string_view listing) {
  constexpr Index room = Index{1} << 20;
  std::vector<TensorToWrite> tensors;
  std::vector<std::string> contents;
  std::map<std::string, std::string> metadata;
  std::set<std::string> names{"__metadata__"};
  Index used = 0;
  while (!listing.empty()) {
    std::string_view line = take_line(listing);
    if (detail::first_invalid_utf8(line) != line.npos) continue;
    if (line.starts_with('@')) {
      line.remove_prefix(1);
      const std::string key(take_word(line));
      metadata.emplace(key, line);
      continue;
    }
    const std::string name(take_word(line));
    const auto dtype = dtype_from_name(take_word(line));
    std::string_view lengths = take_word(line);
    const double centre = number_of<double>(line).value_or(0.5);
    if (!dtype || !(centre >= -1e300 && centre <= 1e300) || !names.insert(name).second) continue;
    TensorToWrite tensor{name, *dtype, {}, {}};
    Index count = 1;
    for (bool more = lengths != "-"; more && count >= 0;) {  // "-": a scalar
      const std::size_t comma = lengths.find(',');
      const Index length = number_of<Index>(lengths.substr(0, comma)).value_or(-1);
      tensor.shape.push_back(length);
      count = length < 0 || length > room || count * length > room ? -1 : count * length;
      more = comma != lengths.npos && tensor.shape.size() < 64;
      if (more) lengths.remove_prefix(comma + 1);
    }
    if (count < 0 || used + count > room / 8 || dtype_bits(*dtype) % 8 != 0) continue;
    used += count;
    contents.push_back(elements(*dtype, static_cast<std::size_t>(count), centre));
    tensors.push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < tensors.size(); ++i)
    tensors[i].bytes = std::as_bytes(std::span<const char>(contents[i].data(), contents[i].size()));
  return safetensors_bytes(tensors, metadata);
}

/// A safetensors file from what a fuzzer may give: a listing under "#", a header and its data apart by a blank line
/// under "{", for which the length is put in front; anything else as it is.
inline std::string safetensors_of(std::string_view input) {
  if (input.starts_with('#')) return safetensors_of_listing(input);
  if (!input.starts_with('{')) return std::string(input);
  const std::size_t end = std::min(input.find("\n\n"), input.size());
  const std::uint64_t length = end;
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file.append(input.substr(0, end));
  if (end < input.size()) file.append(input.substr(end + 2));
  return file;
}

/// The files in an input: each begins after a line ">>> NAME" and ends before the next. What stands before the first
/// has the empty name. A .safetensors file may be written as `safetensors_of` reads it.
inline FileContents files_of(std::string_view input) {
  FileContents files;
  constexpr std::string_view mark = ">>> ";
  std::string name;
  for (bool first = true;; first = false) {
    std::size_t end = 0;
    if (!(first && input.starts_with(mark))) {
      const std::size_t next = input.find("\n>>> ");
      end = std::min(next, input.size());
      const std::string_view contents = input.substr(0, end);
      files.insert_or_assign(name, name.ends_with(".safetensors") ? safetensors_of(contents) : std::string(contents));
      if (next == input.npos) return files;
      input.remove_prefix(next + 1);
    }
    input.remove_prefix(mark.size());
    name = take_line(input);
  }
}

/// Takes a file that is the harness's own (the texts to encode, the columns to ask for) out of the others.
inline std::string take_file(FileContents& files, const std::string& name) {
  const auto found = files.find(name);
  if (found == files.end()) return {};
  std::string contents = std::move(found->second);
  files.erase(found);
  return contents;
}

/// The files as a directory in memory, named "fuzz".
inline FileSet file_set(const FileContents& files) {
  std::map<std::string, Bytes> set;
  for (const auto& [name, contents] : files) set.emplace(name, bytes_of(contents, "fuzz/" + name));
  return FileSet::memory("fuzz", std::move(set));
}

}  // namespace fedlora::fuzz
