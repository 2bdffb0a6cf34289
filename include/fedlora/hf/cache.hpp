// SPDX-License-Identifier: Apache-2.0
// Where a model is: a directory, or a repository in the local Hugging Face cache as huggingface_hub lays it out.
// Nothing is downloaded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/io/file.hpp"

namespace fedlora {

namespace detail {

constexpr bool is_word_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/// An environment variable's text with a leading "~" and every $NAME and ${NAME} expanded as huggingface_hub does;
/// unset variables stay as they are. Empty when `name` is unset or empty.
inline std::string environment_path(const char* name) {
  const char* const set = std::getenv(name);
  std::string text = set == nullptr ? "" : set;
  if (text == "~" || text.starts_with("~/")) {
    if (const char* const home = std::getenv("HOME"); home != nullptr) text.replace(0, 1, home);
  }
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '$') {
      const bool braced = i + 1 < text.size() && text[i + 1] == '{';
      const std::size_t begin = i + (braced ? 2 : 1);
      std::size_t end = begin;
      while (end < text.size() && (braced ? text[end] != '}' : is_word_character(text[end]))) ++end;
      const char* const value = std::getenv(text.substr(begin, end - begin).c_str());
      if (end > begin && value != nullptr && (!braced || end < text.size())) {
        out.append(value);
        i = end + (braced ? 1 : 0);
        continue;
      }
    }
    out.push_back(text[i++]);
  }
  return out;
}

struct HubCache {
  std::filesystem::path path;  ///< empty when nothing says where it is
  std::string origin;          ///< which variable decided it, for messages
};

/// The first of HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE (its old name), HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub and
/// ~/.cache/huggingface/hub, as huggingface_hub decides it: one place, the others are not looked at.
inline HubCache hub_cache() {
  namespace fs = std::filesystem;
  for (const char* const name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const auto path = environment_path(name); !path.empty()) return {path, name};
  }
  if (const auto path = environment_path("HF_HOME"); !path.empty()) return {fs::path(path) / "hub", "HF_HOME"};
  if (const auto path = environment_path("XDG_CACHE_HOME"); !path.empty()) {
    return {fs::path(path) / "huggingface/hub", "XDG_CACHE_HOME"};
  }
  if (const auto path = environment_path("HOME"); !path.empty()) {
    return {fs::path(path) / ".cache/huggingface/hub", "the default"};
  }
  return {};
}

/// "name" or "namespace/name" by the Hub's rules: each part of up to 96 ASCII letters, digits, '_', '-' and '.', with
/// neither '-' nor '.' at its ends, and no "--" or "..".
inline bool is_repository_id(std::string_view text) {
  if (text.find("--") != text.npos || text.find("..") != text.npos || text.ends_with(".git")) return false;
  const auto is_part = [](std::string_view part) {
    return !part.empty() && part.size() <= 96 && is_word_character(part.front()) && is_word_character(part.back()) &&
           std::all_of(part.begin(), part.end(), [](char c) { return is_word_character(c) || c == '-' || c == '.'; });
  };
  const std::size_t slash = text.find('/');
  if (slash == text.npos) return is_part(text);
  return is_part(text.substr(0, slash)) && is_part(text.substr(slash + 1));
}

/// A branch, tag or commit that names a file below refs/ or snapshots/ and nothing else.
inline bool is_revision(std::string_view text) {
  if (text.empty() || text.size() > 255 || text.find('\\') != text.npos || text.find('\0') != text.npos) return false;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('/', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

/// What is in a directory, for messages: up to eight names, sorted.
inline std::string entries_text(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    names.push_back(in_quotes(it->path().filename().string()));
  }
  std::sort(names.begin(), names.end());
  std::string text = names.empty() ? "nothing" : "";
  for (std::size_t i = 0; i < names.size() && i < 8; ++i) text.append(i == 0 ? "" : ", ").append(names[i]);
  return names.size() > 8 ? text + ", …" : text;
}

/// What a person types to have a repository in the cache.
inline std::string download_command(std::string_view repository, std::string_view revision) {
  const std::string at = revision == "main" ? "" : " --revision " + std::string(revision);
  return "`hf download " + std::string(repository) + at + "`";
}

/// The snapshot of `revision` in a repository's folder of the cache; `fetch`: the command that puts it there.
inline std::filesystem::path resolve_snapshot(const std::filesystem::path& repository, std::string_view revision,
                                              const std::string& fetch) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path reference = repository / "refs" / revision;
  if (fs::is_regular_file(reference, ignored)) {
    const Bytes file = map_file(reference);
    std::string_view commit = file.text();
    while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r' || commit.back() == ' '))
      commit.remove_suffix(1);
    const bool is_hash = commit.size() >= 7 && commit.size() <= 64 &&
                         commit.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
    if (!is_hash) fail<FormatError>(file.name, "a commit hash", in_quotes(commit, 80));
    const fs::path snapshot = repository / "snapshots" / commit;
    if (!fs::is_directory(snapshot, ignored)) {
      fail<IoError>(snapshot.string(), "a snapshot of the commit that " + reference.string() + " names",
                    "no such directory (an interrupted download? " + fetch + " resumes it)");
    }
    return snapshot;
  }
  const fs::path snapshot = repository / "snapshots" / revision;
  if (revision.find('/') == std::string_view::npos && fs::is_directory(snapshot, ignored)) return snapshot;
  fail<IoError>(repository.string(), "the revision " + in_quotes(revision),
                "neither a branch or tag (there is " + entries_text(repository / "refs") +
                    ") nor a downloaded commit (there is " + entries_text(repository / "snapshots") + "); " + fetch +
                    " fetches it");
}

}  // namespace detail

/// The directory that holds a model's files. An existing directory is taken as it is, whatever `revision`; any other
/// string is a repository ("name" or "org/name") in the local Hugging Face cache, at `revision`: a branch, a tag or a
/// full commit hash. The cache is where huggingface_hub has it: HF_HUB_CACHE, else HF_HOME/hub, else
/// XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
/// \throws IoError naming every place looked at, FormatError when the cache itself is broken, ConfigError for a
///         revision that is no revision.
inline std::filesystem::path resolve_model(std::string_view dir_or_repo, std::string_view revision = "main") {
  namespace fs = std::filesystem;
  const std::string where = "model " + detail::in_quotes(dir_or_repo);
  const std::string expected = "a model directory, or a model in the local Hugging Face cache (name or org/name)";
  if (dir_or_repo.empty() || dir_or_repo.find('\0') != dir_or_repo.npos) fail<IoError>(where, expected, "no path");

  const fs::path local(dir_or_repo);
  std::error_code ignored;
  const fs::file_status status = fs::status(local, ignored);
  if (fs::is_directory(status)) return local;
  if (fs::exists(status)) fail<IoError>(where, expected, "a file (its directory is wanted)");

  std::string got = "no directory " + detail::in_quotes(fs::absolute(local, ignored).string(), 4096);
  if (!detail::is_repository_id(dir_or_repo)) {
    fail<IoError>(where, expected, got + ", and no text that can name a model in the cache");
  }
  if (!detail::is_revision(revision))
    fail<ConfigError>(where + ", revision", "a branch, tag or commit", detail::in_quotes(revision));

  const detail::HubCache cache = detail::hub_cache();
  if (cache.path.empty()) {
    fail<IoError>(where, expected,
                  got + ", and no cache: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set");
  }
  std::string folder = "models--";
  for (const char c : dir_or_repo) folder.append(c == '/' ? "--" : std::string(1, c));
  const fs::path repository = cache.path / folder;
  if (fs::is_directory(repository, ignored))
    return detail::resolve_snapshot(repository, revision, detail::download_command(dir_or_repo, revision));
  fail<IoError>(where, expected,
                got + ", and no " + detail::in_quotes(repository.string(), 4096) + " (cache by " + cache.origin +
                    "; HF_HUB_CACHE or HF_HOME sets another). " + detail::download_command(dir_or_repo, revision) +
                    " fetches one from the Hub");
}

}  // namespace fedlora
