// SPDX-License-Identifier: Apache-2.0
// What a clone or a download leaves in place of a file when it went wrong: pointers, web pages, archives.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "fedlora/core/utf8.hpp"

namespace fedlora::detail {

/// What `contents` are instead of a model's file or a table, with a way out; empty when they may be the file itself.
inline std::string stand_in(std::string_view contents) {
  constexpr std::size_t longest_pointer = 4096;
  if (contents.size() < longest_pointer) {
    if (contents.starts_with("version https://git-lfs") || contents.starts_with("version https://hawser"))
      return "a Git LFS pointer in its place (`git lfs pull` fetches the file)";
    if (contents.starts_with("# xet version")) return "a Xet pointer in its place (`git xet` fetches the file)";
    for (const std::string_view answer : {"Entry not found", "Repository not found", "Repository Not Found",
                                          "Access to model", "Invalid username or password", "Invalid credentials"})
      if (contents.starts_with(answer) && contents.find('\n') >= contents.size() - 1)  // a single line
        return "the Hub's answer " + in_quotes(contents, 80) + " in its place (`hf download` says why)";
  }

  const std::size_t text = std::min(contents.find_first_not_of(" \t\r\n"), contents.size());
  std::string head(contents.substr(text, 15));
  std::transform(head.begin(), head.end(), head.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (head.starts_with("<!doctype html") || head.starts_with("<html"))
    return "an HTML page in its place (`hf download` fetches the file; on the Hub …/blob/… is its page, …/resolve/… "
           "the file)";

  // A safetensors file begins with a length, which may look like anything, and then a brace.
  if (contents.size() > 8 && contents[8] == '{') return "";
  const std::pair<std::string_view, std::string_view> archives[] = {{"\x1F\x8B\x08", "gzip"},
                                                                    {"PK\x03\x04", "zip"},
                                                                    {"\xFD\x37zXZ", "xz"},
                                                                    {"\x28\xB5\x2F\xFD", "zstd"},
                                                                    {"7z\xBC\xAF\x27\x1C", "7-Zip"}};
  for (const auto& [magic, format] : archives)
    if (contents.starts_with(magic))
      return "an archive of " + std::string(format) + " in its place (is it still to be unpacked?)";
  return "";
}

}  // namespace fedlora::detail
