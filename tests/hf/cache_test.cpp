// SPDX-License-Identifier: Apache-2.0
// Models in directories and in a Hugging Face cache, and the errors that say where they were looked for.
#include "fedlora/hf/cache.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>

#include "errors.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using namespace fedlora;
using fedlora::tests::check_error;
using fedlora::tests::TemporaryDirectory;
using fedlora::tests::write_text;

using Variables = std::map<std::string, std::string>;

const std::string commit_a(40, 'a');
const std::string commit_b = "0123456789abcdef0123456789abcdef01234567";

/// The variables that decide where the cache is, as given (unset where not), and as they were when the scope ends.
class Environment {
 public:
  explicit Environment(const Variables& given) {
    for (const char* const name :
         {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "FEDLORA_TEST_PLACE"}) {
      const char* const value = std::getenv(name);
      before_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      const auto found = given.find(name);
      assign(name, found == given.end() ? std::nullopt : std::optional<std::string>(found->second));
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() {
    for (const auto& [name, value] : before_) assign(name, value);
  }

 private:
  static void assign(const std::string& name, const std::optional<std::string>& value) {
    if (value) {
      ::setenv(name.c_str(), value->c_str(), 1);
    } else {
      ::unsetenv(name.c_str());
    }
  }

  std::map<std::string, std::optional<std::string>> before_;
};

/// A cached repository as huggingface_hub leaves it: branch main at commit_a, a tag at commit_b.
fs::path make_repository(const fs::path& cache, const std::string& folder) {
  const fs::path repository = cache / folder;
  for (const std::string& commit : {commit_a, commit_b}) {
    fs::create_directories(repository / "snapshots" / commit);
    write_text(repository / "snapshots" / commit / "config.json", "{}");
  }
  fs::create_directories(repository / "refs/pr");
  write_text(repository / "refs/main", commit_a);
  write_text(repository / "refs/v1.0", commit_b);
  write_text(repository / "refs/pr/1", commit_b);
  return repository;
}

}  // namespace

TEST_CASE("an existing directory is taken as it is") {
  const TemporaryDirectory dir;
  const Environment none(Variables{});
  CHECK(resolve_model(dir.path().string()) == dir.path());
  CHECK(resolve_model(dir.path().string(), "any revision/../") == dir.path());
  CHECK(resolve_model(".") == ".");
}

TEST_CASE("a directory wins over a cached model of the same name") {
  const TemporaryDirectory dir;
  const fs::path repository = make_repository(dir.path() / "cache", "models--org--name");
  const Environment set(Variables{{"HF_HUB_CACHE", (dir.path() / "cache").string()}});
  const fs::path before = fs::current_path();
  fs::create_directories(dir.path() / "work/org/name");
  fs::current_path(dir.path() / "work");
  const fs::path local = resolve_model("org/name");
  fs::remove_all("org");
  const fs::path cached = resolve_model("org/name");
  fs::current_path(before);
  CHECK(local == "org/name");
  CHECK(cached == repository / "snapshots" / commit_a);
}

TEST_CASE("the cache is where huggingface_hub has it, one place only") {
  const TemporaryDirectory dir;
  const std::string at = dir.path().string();
  for (const char* const cache :
       {"hub_cache", "old_name", "home/hub", "xdg/huggingface/hub", "user/.cache/huggingface/hub"}) {
    make_repository(dir.path() / cache, "models--org--name");
  }
  const std::string snapshot = "models--org--name/snapshots/" + commit_a;
  Variables set = {{"HF_HUB_CACHE", at + "/hub_cache"},
                   {"HUGGINGFACE_HUB_CACHE", at + "/old_name"},
                   {"HF_HOME", at + "/home"},
                   {"XDG_CACHE_HOME", at + "/xdg"},
                   {"HOME", at + "/user"}};
  struct Step {
    const char* variable;
    const char* cache;
  };
  for (const Step& step :
       {Step{"HF_HUB_CACHE", "hub_cache"}, Step{"HUGGINGFACE_HUB_CACHE", "old_name"}, Step{"HF_HOME", "home/hub"},
        Step{"XDG_CACHE_HOME", "xdg/huggingface/hub"}, Step{"HOME", "user/.cache/huggingface/hub"}}) {
    CAPTURE(step.variable);
    {
      const Environment environment(set);
      CHECK(resolve_model("org/name") == dir.path() / step.cache / snapshot);
    }
    set[step.variable] = "";  // empty counts as unset
  }
  const Environment environment(set);
  check_error<IoError>([] { resolve_model("org/name"); },
                       {"none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set"});
}

TEST_CASE("a set cache that lacks the model is not passed over") {
  const TemporaryDirectory dir;
  make_repository(dir.path() / "user/.cache/huggingface/hub", "models--org--name");
  const Environment set(
      Variables{{"HF_HOME", (dir.path() / "other").string()}, {"HOME", (dir.path() / "user").string()}});
  check_error<IoError>([] { resolve_model("org/name"); },
                       {"model 'org/name'", "no directory '" + fs::absolute("org/name").string() + "'",
                        (dir.path() / "other/hub/models--org--name").string(), "cache by HF_HOME",
                        "`hf download org/name` fetches one from the Hub"});
  check_error<IoError>([] { resolve_model("name", "v1.0"); }, {"`hf download name --revision v1.0` fetches"});
}

TEST_CASE("variables and ~ in the cache's path are expanded") {
  const TemporaryDirectory dir;
  const fs::path snapshot = make_repository(dir.path() / "a/b", "models--name") / "snapshots" / commit_a;
  const std::string home = dir.path().string();
  for (const char* const path :
       {"~/a/b", "$HOME/a/b", "${HOME}/a/b", "~/$FEDLORA_TEST_PLACE/b", "~/${FEDLORA_TEST_PLACE}/b"}) {
    CAPTURE(path);
    const Environment set(Variables{{"HF_HUB_CACHE", path}, {"HOME", home}, {"FEDLORA_TEST_PLACE", "a"}});
    CHECK(resolve_model("name") == snapshot);
  }
  for (const char* const literal : {"$", "${", "${HOME", "$FEDLORA_TEST_PLACE", "a~"}) {
    const Environment set(Variables{{"HF_HUB_CACHE", literal}});
    CHECK(detail::environment_path("HF_HUB_CACHE") == literal);
  }
}

TEST_CASE("a revision is a branch, a tag or a commit") {
  const TemporaryDirectory dir;
  const fs::path snapshots = make_repository(dir.path(), "models--name") / "snapshots";
  const Environment set(Variables{{"HF_HUB_CACHE", dir.path().string()}});
  CHECK(resolve_model("name") == snapshots / commit_a);
  CHECK(resolve_model("name", "v1.0") == snapshots / commit_b);
  CHECK(resolve_model("name", "pr/1") == snapshots / commit_b);
  CHECK(resolve_model("name", commit_b) == snapshots / commit_b);
  write_text(dir.path() / "models--name/refs/main", commit_b + "\n");
  CHECK(resolve_model("name") == snapshots / commit_b);

  const std::string repository = (dir.path() / "models--name").string();
  check_error<IoError>([] { resolve_model("name", "v2"); },
                       {repository, "the revision 'v2'", "'main', 'pr', 'v1.0'",
                        "'" + commit_b + "', '" + commit_a + "'", "`hf download name --revision v2` fetches it"});
  check_error<IoError>([] { resolve_model("name", "pr"); }, {"the revision 'pr'"});
  for (const char* const hostile : {"..", "../refs", "a/../b", "/etc", "", "a//b", "./main", "main/", "a\\b"}) {
    CAPTURE(hostile);
    check_error<ConfigError>([&] { resolve_model("name", hostile); },
                             {"model 'name', revision", "a branch, tag or commit"});
  }
}

TEST_CASE("a broken cache is called one") {
  const TemporaryDirectory dir;
  const fs::path repository = make_repository(dir.path(), "models--name");
  const Environment set(Variables{{"HF_HUB_CACHE", dir.path().string()}});
  for (const char* const text : {"", "../../../etc", "main", "abc", "/etc"}) {
    write_text(repository / "refs/main", text);
    check_error<FormatError>([] { resolve_model("name"); }, {(repository / "refs/main").string(), "a commit hash"});
  }
  write_text(repository / "refs/main", std::string(40, 'c'));
  check_error<IoError>([] { resolve_model("name"); },
                       {(repository / "snapshots" / std::string(40, 'c')).string(), (repository / "refs/main").string(),
                        "`hf download name` resumes"});
  fs::remove_all(repository / "snapshots");
  check_error<IoError>([] { resolve_model("name", commit_a); }, {"the revision", "there is nothing"});
}

TEST_CASE("what is neither a directory nor a repository's name says so") {
  const TemporaryDirectory dir;
  const Environment set(Variables{{"HF_HUB_CACHE", dir.path().string()}});
  for (const char* const text : {"/no/such/model", "./models/bert", "../../no/such", "a/b/c", "a//b", "org/", "a b",
                                 "a--b", "-a", "a.", "org/..name", "..x/name", "name.git", "modèle"}) {
    CAPTURE(text);
    check_error<IoError>([&] { resolve_model(text); }, {"model '" + std::string(text) + "'",
                                                        "a model directory, or a model in the local Hugging Face cache",
                                                        "no directory '", "no text that can name a model"});
  }
  check_error<IoError>([] { resolve_model(""); }, {"no path"});
  check_error<IoError>([] { resolve_model(std::string_view("a\0b", 3)); }, {"no path"});
  write_text(dir.path() / "model.safetensors", "");
  check_error<IoError>([&] { resolve_model((dir.path() / "model.safetensors").string()); },
                       {"a file (its directory is wanted)"});
}

TEST_CASE("names of repositories follow the Hub's rules") {
  for (const char* const good :
       {"bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", "a", "A_1/b.c-d", "_x_/y"}) {
    CAPTURE(good);
    CHECK(detail::is_repository_id(good));
  }
  CHECK(detail::is_repository_id(std::string(96, 'x')));
  CHECK_FALSE(detail::is_repository_id(std::string(97, 'x')));
}
