// SPDX-License-Identifier: Apache-2.0
// Mapped files, atomic writes with every way they fail, and model directories.
#include "fedlora/io/file.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <set>
#include <string>

#include "errors.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using namespace fedlora;
using fedlora::tests::check_error;
using fedlora::tests::read_text;
using fedlora::tests::TemporaryDirectory;
using fedlora::tests::write_text;

std::set<std::string> names_in(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.insert(entry.path().filename().string());
  return names;
}

/// For root, permissions do not count: the scope acts as the user nobody.
class WithoutPrivileges {
 public:
  WithoutPrivileges() : was_root_(::geteuid() == 0) {
    if (was_root_) REQUIRE(::seteuid(65534) == 0);
  }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;
  ~WithoutPrivileges() {
    if (was_root_ && ::seteuid(0) != 0) std::abort();
  }

 private:
  bool was_root_;
};

/// Within the scope, no file can grow beyond `bytes`: writes fail half-way, as on a disk that fills up.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    if (::setrlimit(RLIMIT_FSIZE, &before_) != 0) std::abort();
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = SIG_DFL;
};

}  // namespace

TEST_CASE("a mapped file has the bytes, the name, and outlives its path") {
  const TemporaryDirectory dir;
  const fs::path path = dir.path() / "a.bin";
  const std::string contents("one\0two\n\xff", 9);
  write_text(path, contents);
  const Bytes bytes = map_file(path);
  CHECK(bytes.text() == contents);
  CHECK(bytes.name == path.string());
  Bytes copy = bytes;
  fs::remove(path);
  CHECK(copy.text() == contents);
}

TEST_CASE("an empty file maps to an empty span") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "empty", "");
  CHECK(map_file(dir.path() / "empty").data.empty());
  CHECK(map_file(dir.path() / "empty").text().empty());
}

TEST_CASE("what cannot be mapped is named with the system's reason") {
  const TemporaryDirectory dir;
  const fs::path missing = dir.path() / "missing.json";
  check_error<IoError>([&] { map_file(missing); }, {missing.string(), "No such file or directory"});
  check_error<IoError>([&] { map_file(dir.path()); }, {dir.path().string(), "a regular file", "a directory"});
  check_error<IoError>([&] { map_file("/dev/null"); }, {"/dev/null", "a device"});
  check_error<IoError>([&] { map_file(missing / "below"); }, {"missing.json/below", "No such file"});

  const fs::path pipe = dir.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  check_error<IoError>([&] { map_file(pipe); }, {pipe.string(), "a pipe"});  // and does not hang

  const fs::path secret = dir.path() / "secret";
  write_text(secret, "x");
  fs::permissions(secret, fs::perms::none);
  const WithoutPrivileges unprivileged;
  check_error<IoError>([&] { map_file(secret); }, {secret.string(), "Permission denied"});
}

TEST_CASE("bytes_of owns its contents, short ones too") {
  Bytes bytes;
  {
    std::string text = "short";
    bytes = bytes_of(std::move(text), "name");
  }
  const Bytes copy = bytes;
  bytes = {};
  CHECK(copy.text() == "short");
  CHECK(copy.name == "name");
}

TEST_CASE("an atomic write creates and replaces, and leaves nothing beside the file") {
  const TemporaryDirectory dir;
  const fs::path path = dir.path() / "state.bin";
  write_file_atomically(path, std::string_view("first"));
  CHECK(read_text(path) == "first");
  const std::string large(3'000'000, 'x');
  write_file_atomically(path, large);
  CHECK(read_text(path) == large);
  write_file_atomically(path, std::span<const std::byte>());
  CHECK(read_text(path).empty());
  CHECK(names_in(dir.path()) == std::set<std::string>{"state.bin"});
}

TEST_CASE("a replaced file keeps its old contents for those who mapped it") {
  const TemporaryDirectory dir;
  write_file_atomically(dir.path() / "a", std::string_view("old contents"));
  const Bytes mapped = map_file(dir.path() / "a");
  write_file_atomically(dir.path() / "a", std::string_view("new"));
  CHECK(mapped.text() == "old contents");
  CHECK(map_file(dir.path() / "a").text() == "new");
}

TEST_CASE("a name without a directory and a name of 255 bytes can be written") {
  const TemporaryDirectory dir;
  const fs::path before = fs::current_path();
  fs::current_path(dir.path());
  write_file_atomically("bare", std::string_view("here"));
  fs::current_path(before);
  CHECK(read_text(dir.path() / "bare") == "here");
  const fs::path longest = dir.path() / std::string(255, 'n');
  write_file_atomically(longest, std::string_view("long"));
  CHECK(read_text(longest) == "long");
}

TEST_CASE("a symbolic link is written through") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "real", "old");
  fs::create_symlink("real", dir.path() / "link");
  write_file_atomically(dir.path() / "link", std::string_view("new"));
  CHECK(fs::is_symlink(dir.path() / "link"));
  CHECK(read_text(dir.path() / "real") == "new");

  fs::create_symlink("nowhere", dir.path() / "dangling");
  check_error<IoError>([&] { write_file_atomically(dir.path() / "dangling", std::string_view("x")); },
                       {"dangling", "No such file"});
}

TEST_CASE("a write that cannot start names the target and the reason") {
  const TemporaryDirectory dir;
  const auto write_to = [](const fs::path& path) {
    return [path] { write_file_atomically(path, std::string_view("x")); };
  };
  check_error<IoError>(write_to(dir.path() / "no/such/file"), {"no/such/file", "No such file or directory"});
  check_error<IoError>(write_to(dir.path()), {dir.path().string(), "a directory"});
  check_error<IoError>(write_to(dir.path() / "new/"), {"without a file name"});
  check_error<IoError>(write_to(""), {"without a file name"});
  check_error<IoError>(write_to(dir.path() / std::string(300, 'n')), {"File name too long"});

  write_text(dir.path() / "kept", "old");
  fs::permissions(dir.path(),
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  {
    const WithoutPrivileges unprivileged;
    check_error<IoError>(write_to(dir.path() / "kept"), {"kept", "Permission denied"});
  }
  fs::permissions(dir.path(), fs::perms::owner_all);
  CHECK(read_text(dir.path() / "kept") == "old");
}

TEST_CASE("a device is written in place, and a full one says so") {
  const std::string large(1'000'000, 'x');
  check_error<IoError>([&] { write_file_atomically("/dev/full", large); }, {"/dev/full", "No space left on device"});
  CHECK(fs::is_character_file("/dev/full"));
  CHECK_NOTHROW(write_file_atomically("/dev/null", large));
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a write that fails half-way leaves the old file and nothing else") {
  const TemporaryDirectory dir;
  const fs::path path = dir.path() / "state.bin";
  write_text(path, "the last good state");
  const std::string large(1'000'000, 'x');
  {
    const FileSizeLimit limit(100'000);
    check_error<IoError>([&] { write_file_atomically(path, large); },
                         {path.string(), "1000000 bytes", "File too large"});
    check_error<IoError>([&] { write_file_atomically(dir.path() / "new", large); }, {"new", "File too large"});
  }
  CHECK(read_text(path) == "the last good state");
  CHECK(names_in(dir.path()) == std::set<std::string>{"state.bin"});
  write_file_atomically(path, large);
  CHECK(read_text(path) == large);
}

TEST_CASE("a full disk leaves the old file and nothing else") {
  const TemporaryDirectory dir;
  // A child with its own mounts fills a file system of 64 KiB; its exit status says how that went.
  enum : int { good = 0, cannot_mount = 77 };
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (::unshare(CLONE_NEWNS | (::geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
      ::_exit(cannot_mount);
    }
    int status = good;
    try {
      const fs::path path = dir.path() / "state.bin";
      write_file_atomically(path, std::string_view("the last good state"));
      const std::string message =
          fedlora::tests::message_of<IoError>([&] { write_file_atomically(path, std::string(1'000'000, 'x')); });
      if (message.find("No space left on device") == message.npos || message.find(path.string()) == message.npos)
        status |= 1;
      if (read_text(path) != "the last good state") status |= 2;
      if (names_in(dir.path()) != std::set<std::string>{"state.bin"}) status |= 4;
    } catch (...) {
      status |= 8;
    }
    ::_exit(status);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == cannot_mount) {
    MESSAGE("skipped: this system lets the test mount no tmpfs");
  } else {
    CHECK(WEXITSTATUS(status) == good);
  }
}

TEST_CASE("a model directory opens what is there") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "config.json", "{}");
  fs::create_directory(dir.path() / "1_Pooling");
  write_text(dir.path() / "1_Pooling/config.json", "[]");
  const FileSet files = FileSet::directory(dir.path());
  CHECK(files.name() == dir.path().string());
  CHECK(files.contains("config.json"));
  CHECK_FALSE(files.contains("model.safetensors"));
  CHECK(files.require("config.json").text() == "{}");
  CHECK(files.require("config.json").name == (dir.path() / "config.json").string());
  CHECK(files.open("1_Pooling/config.json")->text() == "[]");
  CHECK_FALSE(files.open("vocab.txt").has_value());
  CHECK(files.path_of("vocab.txt") == (dir.path() / "vocab.txt").string());
  CHECK(files.listing() == "'1_Pooling', 'config.json'");
}

TEST_CASE("a model directory refuses what is absent, unreadable or outside of it") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "README.md", "");
  const FileSet files = FileSet::directory(dir.path());
  check_error<IoError>([&] { files.require("config.json"); },
                       {(dir.path() / "config.json").string(), "tokenizer.json", "no such file", "'README.md'"});
  fs::create_symlink("../blobs/gone", dir.path() / "model.safetensors");
  check_error<IoError>([&] { files.require("model.safetensors"); }, {"a symbolic link to nowhere"});
  fs::create_directory(dir.path() / "folder");
  check_error<IoError>([&] { files.open("folder"); }, {"folder", "a directory"});
  for (const char* const outside : {"../README.md", "/etc/passwd", "a/../../b", ""}) {
    CAPTURE(outside);
    check_error<IoError>([&] { files.open(outside); }, {dir.path().string(), "inside the directory"});
  }
  check_error<IoError>([&] { FileSet::directory(dir.path() / "missing"); }, {"missing", "a directory", "No such file"});
  check_error<IoError>([&] { FileSet::directory(dir.path() / "README.md"); }, {"a directory", "a regular file"});
}

TEST_CASE("files in memory look like a directory") {
  const FileSet files = FileSet::memory("the embedded model", {{"config.json", bytes_of("{}", "anything")}});
  CHECK(files.contains("config.json"));
  CHECK(files.require("config.json").text() == "{}");
  CHECK(files.require("config.json").name == "the embedded model/config.json");
  CHECK_FALSE(files.open("../config.json").has_value());
  check_error<IoError>([&] { files.require("vocab.txt"); }, {"the embedded model/vocab.txt", "there is 'config.json'"});
}

TEST_CASE("a hostile name cannot steer the terminal that shows the message") {
  CHECK(detail::in_quotes("a\x1b[2J\n\x7f") == "'a\\x1b[2J\\x0a\\x7f'");
  CHECK(detail::in_quotes(std::string(200, 'x')) == "'" + std::string(120, 'x') + "…'");
}

TEST_CASE("two directories change places in one step") {
  const TemporaryDirectory dir;
  const std::string a = (dir.path() / "a").string(), b = (dir.path() / "b").string();
  for (const std::string& name : {a, b}) {
    fs::create_directory(name);
    write_text(name + "/who", name);
  }
  REQUIRE(detail::exchange_names(a.c_str(), b.c_str()) == 0);
  CHECK(read_text(a + "/who") == b);
  CHECK(read_text(b + "/who") == a);
  CHECK(detail::exchange_names(a.c_str(), (a + "/../none").c_str()) == ENOENT);
}

TEST_CASE("what stands in place of a model's file is called what it is, with a way out") {
  struct Case {
    std::string_view contents;
    const char* said;
  };
  const std::string_view gzip("\x1F\x8B\x08\0\0\0\0\0\x02\x03", 10), zip("PK\x03\x04\x14\0\0\0\x08\0", 10);
  const TemporaryDirectory dir;
  for (const char* const name :
       {"config.json", "tokenizer.json", "vocab.txt", "merges.txt", "model.safetensors", "adapter_config.json"})
    for (const Case& c :
         {Case{"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 711396\n",
               "a Git LFS pointer in its place (`git lfs pull`"},
          Case{"# xet version 0\nfilesize = 9\nhash = '0f'\n", "a Xet pointer"},
          Case{"Entry not found", "answer 'Entry not found'"},
          Case{"\n <!DOCTYPE html>\n<html class=\"\">", "an HTML page"}, Case{"<HTML><head>", "an HTML page"},
          Case{gzip, "an archive of gzip"}, Case{zip, "an archive of zip"}, Case{"\xFD\x37zXZ", "of xz"},
          Case{"\x28\xB5\x2F\xFD", "of zstd"}, Case{"7z\xBC\xAF\x27\x1C", "of 7-Zip"}}) {
      CAPTURE(name);
      CAPTURE(c.said);
      write_text(dir.path() / name, c.contents);
      const std::string path = (dir.path() / name).string();
      check_error<FormatError>([&] { FileSet::directory(dir.path()).require(name); },
                               {path, "the file itself", c.said});
      check_error<FormatError>([&] { map_downloaded_file(path); }, {path, c.said});
      const FileSet memory = FileSet::memory("m", {{name, bytes_of(std::string(c.contents), "x")}});
      check_error<FormatError>([&] { memory.open(name); }, {"m/" + std::string(name), c.said});
      CHECK(map_file(path).text() == c.contents);  // a person's own files may be anything
    }
}

TEST_CASE("files that only look like something else are themselves") {
  // A header of 560 KB begins as gzip does; a vocabulary may hold any word, in any place but the first lines of a
  // pointer.
  const std::string_view header("\x1F\x8B\x08\0\0\0\0\0{\"", 10);
  const std::string long_text = "version https://git-lfs is a text\n" + std::string(5000, 'x');
  for (const std::string_view contents :
       {header, std::string_view("[PAD]\n<html\nversion https://git-lfs\n"), std::string_view(long_text),
        std::string_view("Entry not found\nAccess to model trains\n"), std::string_view("#version: 0.2\nt h\n"),
        std::string_view(""), std::string_view(" \n")})
    CHECK(detail::stand_in(contents).empty());
}
