// SPDX-License-Identifier: Apache-2.0
// Files: mapped read-only, written atomically, and found in a model directory or in memory. POSIX.
#pragma once

#if defined(_WIN32)
#error "fedlora needs a POSIX system: on Windows compile it in WSL"
#endif

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/io/stand_in.hpp"

namespace fedlora {

/// Somebody's bytes, kept alive by `owner` (null when nothing needs to be).
struct Bytes {
  std::span<const std::byte> data;
  std::shared_ptr<const void> owner;
  std::string name;  ///< for messages, usually a path

  std::string_view text() const { return {reinterpret_cast<const char*>(data.data()), data.size()}; }
};

namespace detail {

/// What the system says about `error`, with the number: "No space left on device (errno 28)".
inline std::string errno_text(int error) {
  return std::generic_category().message(error) + " (errno " + std::to_string(error) + ")";
}

/// What `mode` of stat(2) is, with its article.
inline std::string_view file_kind(mode_t mode) {
  if (S_ISREG(mode)) return "a regular file";
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISFIFO(mode)) return "a pipe";
  return "a special file";
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }
  bool valid() const { return value_ >= 0; }
  /// Closes now, and returns errno (0 when all went well): some file systems report a failed write only here.
  int close() { return ::close(std::exchange(value_, -1)) == 0 ? 0 : errno; }

 private:
  int value_;
};

/// Opens for reading; retries when a signal came in between. The caller reads errno.
inline int open_retrying(const char* path, int flags, mode_t mode = 0) {
  int fd = -1;
  do fd = ::open(path, flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

/// fsync, where the file system has it. Returns errno or 0.
inline int synchronise(int fd) {
  while (::fsync(fd) != 0) {
    if (errno == EINTR) continue;
    return errno == EINVAL || errno == ENOTSUP ? 0 : errno;  // a device or a file system that has nothing to flush
  }
  return 0;
}

/// Writes everything. Returns errno or 0.
inline int write_all(int fd, std::span<const std::byte> data) {
  constexpr std::size_t at_most = std::size_t{1} << 30;  // Linux takes no more than 2 GiB in one call
  while (!data.empty()) {
    const ssize_t written = ::write(fd, data.data(), std::min(data.size(), at_most));
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    data = data.subspan(static_cast<std::size_t>(written));
  }
  return 0;
}

/// Lets two names change places in one step. Returns errno or 0; ENOTSUP where the system or the file system cannot.
inline int exchange_names(const char* one, const char* other) {
#if defined(RENAME_EXCHANGE)  // Linux
  const int result = ::renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
#elif defined(RENAME_SWAP)  // macOS
  const int result = ::renamex_np(one, other, RENAME_SWAP);
#else
  const int result = (static_cast<void>(one), static_cast<void>(other), errno = ENOTSUP, -1);
#endif
  if (result == 0) return 0;
  return errno == EINVAL || errno == ENOSYS ? ENOTSUP : errno;
}

/// fsync of a directory: what was renamed in it stays so after a power failure. One that may not be read is passed
/// over. Returns errno or 0.
inline int synchronise_directory(const std::filesystem::path& path) {
  const FileDescriptor file(open_retrying(path.c_str(), O_RDONLY | O_DIRECTORY));
  return file.valid() ? synchronise(file.get()) : 0;
}

}  // namespace detail

/// Maps a regular file read-only. An empty file gives an empty span. The bytes are the file's as long as nobody
/// truncates it in place; `write_file_atomically` never does. \throws IoError naming the path and the system's reason
/// (missing, a directory, no permission, …).
inline Bytes map_file(const std::filesystem::path& path) {
  const std::string name = path.string();
  // Without O_NONBLOCK a pipe without a writer would hang here.
  const detail::FileDescriptor file(detail::open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK));
  if (!file.valid()) fail<IoError>(name, "a readable file", detail::errno_text(errno));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail<IoError>(name, "a readable file", detail::errno_text(errno));
  if (!S_ISREG(status.st_mode)) fail<IoError>(name, "a regular file", detail::file_kind(status.st_mode));
  if (status.st_size == 0) return {{}, nullptr, name};

  const auto size = static_cast<std::size_t>(status.st_size);
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) fail<IoError>(name, "a file that can be mapped into memory", detail::errno_text(errno));
  std::shared_ptr<const void> owner(static_cast<const void*>(address),
                                    [size](const void* mapped) { ::munmap(const_cast<void*>(mapped), size); });
  return {{static_cast<const std::byte*>(address), size}, std::move(owner), name};
}

/// Bytes that own `contents`; `name` stands for the path in messages.
inline Bytes bytes_of(std::string contents, std::string name) {
  auto kept = std::make_shared<const std::string>(std::move(contents));
  const std::span<const std::byte> data = std::as_bytes(std::span<const char>(kept->data(), kept->size()));
  return {data, std::move(kept), std::move(name)};
}

/// Writes `data` so that at every instant, also after a crash, `path` holds either the old contents or all of the new:
/// a temporary file beside it is written, fsynced, and renamed; then the directory is fsynced. A symbolic link is
/// followed, not replaced. A device or a pipe (/dev/stdout) cannot be replaced and is written in place. \throws IoError
/// naming the path and the system's reason (no such directory, no permission, no space, …); the temporary file is
///         gone then and `path` as it was.
inline void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> data) {
  namespace fs = std::filesystem;
  const std::string name = path.string();
  const auto failed = [&name](std::string_view expected, int error) {
    fail<IoError>(name, expected, detail::errno_text(error));
  };

  fs::path target = path;
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode)) {
    std::error_code error;
    target = fs::canonical(path, error);
    if (error) failed("a symbolic link to an existing file", error.value());
  }
  if (::stat(target.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    if (S_ISDIR(status.st_mode)) fail<IoError>(name, "a file to write", "a directory");
    detail::FileDescriptor file(detail::open_retrying(target.c_str(), O_WRONLY));
    if (!file.valid()) failed("a file that can be written", errno);
    if (const int error = detail::write_all(file.get(), data); error != 0) failed("room for the whole file", error);
    if (const int error = file.close(); error != 0) failed("room for the whole file", error);
    return;
  }
  if (!target.has_filename()) fail<IoError>(name, "a file to write", "a path without a file name");

  const fs::path directory = target.has_parent_path() ? target.parent_path() : fs::path(".");
  static std::atomic<unsigned> counter{0};  // with the process id, a name that no other thread or process takes
  fs::path temporary;
  int fd = -1;
  for (int attempt = 0; attempt < 1000; ++attempt) {  // a killed process with our id may have left its own
    temporary = directory / ("." + target.filename().string().substr(0, 150) + ".tmp-" + std::to_string(::getpid()) +
                             "-" + std::to_string(counter.fetch_add(1)));
    fd = detail::open_retrying(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd >= 0 || errno != EEXIST) break;
  }
  if (fd < 0) failed("a directory in which a file can be created", errno);

  detail::FileDescriptor file(fd);
  int error = detail::write_all(file.get(), data);
  if (error == 0) error = detail::synchronise(file.get());
  const int close_error = file.close();
  if (error == 0) error = close_error;
  if (error != 0) {
    ::unlink(temporary.c_str());
    failed("room for the whole file (" + std::to_string(data.size()) + " bytes)", error);
  }
  if (::rename(temporary.c_str(), target.c_str()) != 0) {
    error = errno;
    ::unlink(temporary.c_str());
    failed("a file that can be replaced", error);
  }
  // The new contents are in place; what could still be lost in a power failure is the name. A directory that may be
  // written but not read cannot be opened for this, which is no reason to report a failed write.
  error = detail::synchronise_directory(directory);
  if (error != 0) failed("a directory that can be flushed to disk", error);
}

/// The same for text.
inline void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span<const char>(text.data(), text.size())));
}

namespace detail {

/// The file, unless something else stands in its place.
inline Bytes itself(Bytes file) {
  if (const std::string instead = stand_in(file.text()); !instead.empty())
    fail<FormatError>(file.name, "the file itself", instead);
  return file;
}

}  // namespace detail

/// `map_file` for what people clone and download: a file of a model, a table. \throws FormatError too, when a pointer
/// of Git LFS, a web page or an archive stands in its place.
inline Bytes map_downloaded_file(const std::filesystem::path& path) { return detail::itself(map_file(path)); }

/// The files of one model: a directory, or files held in memory.
class FileSet {
 public:
  /// \throws IoError when `path` is not a directory.
  static FileSet directory(std::filesystem::path path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) fail<IoError>(path.string(), "a directory", detail::errno_text(errno));
    if (!S_ISDIR(status.st_mode)) fail<IoError>(path.string(), "a directory", detail::file_kind(status.st_mode));
    FileSet set;
    set.directory_ = std::move(path);
    set.name_ = set.directory_->string();
    return set;
  }

  /// `name` stands for the directory in messages.
  static FileSet memory(std::string name, std::map<std::string, Bytes> files) {
    FileSet set;
    set.name_ = std::move(name);
    set.files_ = std::move(files);
    return set;
  }

  /// The file's bytes, or nothing when there is no such file.
  /// \throws IoError when it is there and cannot be read, or when `file` is absolute or climbs out of the directory;
  ///         FormatError when something else stands in its place (`map_downloaded_file`).
  std::optional<Bytes> open(const std::string& file) const {
    if (!directory_) {
      const auto found = files_.find(file);
      if (found == files_.end()) return std::nullopt;
      Bytes bytes = found->second;
      bytes.name = path_of(file);
      return detail::itself(std::move(bytes));
    }
    if (!contains(file)) return std::nullopt;
    return map_downloaded_file(*directory_ / file);
  }

  /// The file's bytes.
  /// \throws IoError when it is absent, saying what is there and what a model directory holds.
  Bytes require(const std::string& file) const {
    if (auto bytes = open(file)) return *std::move(bytes);
    std::string got = "no such file";
    std::error_code error;
    if (directory_ && std::filesystem::is_symlink(*directory_ / file, error)) got = "a symbolic link to nowhere";
    if (error && error != std::errc::no_such_file_or_directory)
      fail<IoError>(path_of(file), "this file", error.message());
    fail<IoError>(
        path_of(file),
        "this file (a model directory holds config.json, model.safetensors or model.safetensors.index.json with its "
        "shards, and tokenizer.json, vocab.txt or vocab.json with merges.txt)",
        got + "; there is " + listing());
  }

  bool contains(const std::string& file) const {
    if (!directory_) return files_.contains(file);
    const std::filesystem::path relative(file);
    if (file.empty() || relative.is_absolute() || std::find(relative.begin(), relative.end(), "..") != relative.end()) {
      fail<IoError>(name_, "a file name inside the directory", detail::in_quotes(file));
    }
    std::error_code ignored;
    return std::filesystem::exists(*directory_ / relative, ignored);
  }

  /// Where `file` is or would be, for messages.
  std::string path_of(const std::string& file) const {
    return directory_ ? (*directory_ / file).string() : name_ + "/" + file;
  }

  std::string name() const { return name_; }

  /// The names that are there, sorted, up to two dozen of them: "config.json, model.safetensors"; "nothing" when there
  /// are none.
  std::string listing() const {
    std::vector<std::string> names;
    if (directory_) {
      std::error_code error;
      for (std::filesystem::directory_iterator it(*directory_, error), end; !error && it != end; it.increment(error)) {
        names.push_back(it->path().filename().string());
      }
    } else {
      for (const auto& [file, bytes] : files_) names.push_back(file);
    }
    std::sort(names.begin(), names.end());
    std::string text;
    for (std::size_t i = 0; i < names.size() && i < 24; ++i) {
      text.append(i == 0 ? "" : ", ").append(detail::in_quotes(names[i]));
    }
    if (names.size() > 24) text.append(" and ").append(std::to_string(names.size() - 24)).append(" more");
    return names.empty() ? "nothing" : text;
  }

 private:
  FileSet() = default;

  std::optional<std::filesystem::path> directory_;
  std::map<std::string, Bytes> files_;
  std::string name_;
};

}  // namespace fedlora
