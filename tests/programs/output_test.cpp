// SPDX-License-Identifier: Apache-2.0
// --out: nothing that a person may want is deleted, replaced or called something else, whatever is there and whoever
// else writes to it.
#include <doctest/doctest.h>

#include <chrono>
#include <map>
#include <thread>

#include "fuzz/checksum.hpp"
#include "programs/federation.hpp"

namespace fedlora::tests {
namespace {

namespace fs = std::filesystem;

/// Every file below `directory` and what is in it.
std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    files[fs::relative(entry.path(), directory).string()] = entry.is_directory() ? "" : read_text(entry.path());
  return files;
}

/// A run as short as they come.
Finished short_run(const Federation& federation, const std::string& out, std::vector<std::string> more) {
  more.insert(more.begin(), {"--rounds", "1", "--reference-epochs", "1", "--local-steps", "1", "--threads", "1"});
  return federation.run(out, std::move(more));
}

void check_refused(const Finished& run, std::initializer_list<std::string> parts, int status = 1) {
  INFO(run.out, run.err);
  CHECK(run.status == status);
  for (const std::string& part : parts) {
    INFO("must say: ", part);
    CHECK(run.err.find(part) != std::string::npos);
  }
}

TEST_CASE("another run is refused where one is, and nothing there changes") {
  const Federation federation;
  const fs::path out = federation.scratch.path() / "out";
  REQUIRE(short_run(federation, "out", {"--mode", "federated"}).status == 0);
  const auto before = contents(out);
  const std::string choices = "--resume goes on with the one there, --overwrite replaces it";
  check_refused(short_run(federation, "out", {"--mode", "head"}),
                {choices, "a finished run (federated, 1 of 1 rounds)", "mode (\"federated\" there, \"head\" here)"});
  check_refused(short_run(federation, "out", {"--mode", "federated", "--seed", "4"}),
                {choices, "seed (3 there, 4 here)"});
  check_refused(short_run(federation, "out", {"--mode", "federated", "--rounds", "2"}),
                {choices, "rounds (1 there, 2 here)"});
  check_refused(short_run(federation, "out", {"--mode", "federated", "--resume", "--overwrite"}), {"--overwrite"}, 2);
  check_refused(short_run(federation, "out", {"--mode", "federated", "--adapter", (out / "adapter").string()}),
                {"another directory"}, 2);
  check_refused(short_run(federation, "out", {"--mode", "federated", "--adapter", (out / "adapter/").string()}),
                {"another directory"}, 2);
  CHECK(contents(out) == before);

  // The very same run is done already.
  const Finished again = short_run(federation, "out", {"--mode", "federated"});
  INFO(again.err);
  CHECK(again.status == 0);
  CHECK(again.out.find("This run was done before") != std::string::npos);
  CHECK(again.out.find("federated ") != std::string::npos);
  CHECK(again.out.find("To run it again: --overwrite. To go on with more rounds: --resume --out " + out.string() +
                       " --rounds N.") != std::string::npos);
  CHECK(contents(out) == before);
  check_refused(short_run(federation, "out", {"--mode", "federated", "--dropout", "0", "--export-plan", "plan"}),
                {"--overwrite", "--export-plan"});
  fs::create_directory(federation.scratch.path() / "plan");
  write_text(federation.scratch.path() / "plan/plan.json", "{}");
  check_refused(short_run(federation, "plans", {"--mode", "federated", "--dropout", "0", "--export-plan", "plan"}),
                {"a directory without a plan", "--overwrite"});
  CHECK(read_text(federation.scratch.path() / "plan/plan.json") == "{}");

  // Another build of the program might give something else.
  Json summary = federation.summary("out");
  summary["program"]["sha256"] = "another";
  write_text(out / "summary.json", summary.dump());
  check_refused(short_run(federation, "out", {"--mode", "federated"}), {choices, "by another build of this program"});
  // What is left when a person has deleted state/ is still a run.
  fs::remove_all(out / "state");
  const std::string gone = "--overwrite replaces the one there, which cannot go on, as its state/ is gone";
  check_refused(short_run(federation, "out", {"--mode", "head"}), {gone, "a finished run that differs in mode"});
  check_refused(short_run(federation, "out", {"--mode", "head", "--resume"}), {gone});
  check_refused(
      run_program(federation.scratch.path(), "federation", {"--resume", "--rounds", "9", "--out", out.string()}),
      {"got one whose state/ is gone", "--overwrite starts anew"});
}

TEST_CASE("--overwrite replaces a run when there is something to put in its place, and nothing else") {
  const Federation federation;
  const fs::path out = federation.scratch.path() / "out";
  REQUIRE(short_run(federation, "out", {"--mode", "federated"}).status == 0);
  write_text(out / "notes.txt", "mine");
  write_text(out / "adapter/README.md", "mine too");
  write_text(out / ".profile.tmp-1", "mine as well");
  const auto before = contents(out);
  check_refused(
      short_run(federation, "out", {"--mode", "federated", "--overwrite", "--lr", "1e30", "--local-steps", "9"}),
      {"finite"});
  CHECK(contents(out) == before);
  const Finished other = short_run(federation, "out", {"--mode", "head", "--overwrite"});
  INFO(other.err);
  CHECK(other.status == 0);
  CHECK(other.err.find("is replaced when the first round is done") != std::string::npos);
  const auto after = contents(out);
  CHECK(after.at("notes.txt") == "mine");
  CHECK(after.at("adapter/README.md") == "mine too");
  CHECK(after.at(".profile.tmp-1") == "mine as well");
  CHECK_FALSE(after.contains("adapter/adapter_config.json"));  // of no federation any more
  CHECK(after.contains("adapter-head/adapter_config.json"));
  CHECK_FALSE(after.contains("state/federated.safetensors"));
}

TEST_CASE("files of somebody else's under our names are refused, others are left alone") {
  const Federation federation;
  for (const std::string name :
       {"summary.json", "metrics.csv", "adapter/adapter_config.json", "adapter-head/x", "state"}) {
    INFO(name);
    const std::string out = "mine-" + name.substr(0, 7);
    const fs::path file = federation.scratch.path() / out / name;
    fs::create_directories(file.parent_path());
    write_text(file, "{}");
    for (const std::string more : {"--threads=1", "--overwrite", "--resume"}) {
      check_refused(short_run(federation, out, {more}),
                    {name.substr(0, name.find('/')), "no run of this program left there"});
      CHECK(read_text(file) == "{}");
    }
  }
  fs::create_directories(federation.scratch.path() / "log");
  write_text(federation.scratch.path() / "log/log.txt", "");
  CHECK(short_run(federation, "log", {"--mode", "head"}).status == 0);
  CHECK(fs::exists(federation.scratch.path() / "log/log.txt"));
  write_text(federation.scratch.path() / "file", "");
  check_refused(short_run(federation, "file", {}), {"a directory to write to (--out)"});
}

TEST_CASE("every run's adapter is called what it is, and is there from its first round on") {
  const Federation federation;
  const fs::path root = federation.scratch.path();
  const std::vector<std::string> names = {"adapter", "adapter-head", "adapter-centralised"};
  const std::map<std::string, std::string> adapters = {
      {"federated", "adapter"}, {"head", "adapter-head"}, {"centralised", "adapter-centralised"}, {"local", ""}};
  for (const auto& entry : adapters) {
    const auto& mode = entry.first;
    const auto& name = entry.second;
    INFO(mode);
    REQUIRE(short_run(federation, mode, {"--mode", mode}).status == 0);
    for (const std::string& one : names) CHECK(fs::exists(root / mode / one) == (one == name));
    if (name.empty()) continue;
    const Finished predict = run_program(root, "predict",
                                         {"--model", stories, "--adapter", (root / mode / name).string(), "--file",
                                          federation.test.string(), "--label-column", "label"});
    INFO(predict.err);
    REQUIRE(predict.status == 0);
    const Json last = Json::parse(predict.out.substr(predict.out.rfind("{\"accuracy")));
    CHECK(last["accuracy"] == federation.summary(mode)[mode]["accuracy"]);
  }

  Program run(root, "federation", federation.arguments("killed", {"--mode", "federated", "--rounds", "1000"}));
  while (federation.rows("killed") < 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  run.signal(SIGKILL);
  run.wait();
  CHECK(run_program(root, "predict",
                    {"--model", stories, "--adapter", (root / "killed/adapter").string(), "--file", "-"}, "a cat\n")
            .status == 0);
  check_refused(federation.run("killed", {"--mode", "federated", "--rounds", "1000"}),
                {"an unfinished run (federated, ", " of 1000 rounds) with the same options"});
}

TEST_CASE("two runs never write to one directory at a time") {
  const Federation federation;
  const fs::path out = federation.scratch.path() / "out", elsewhere = federation.scratch.path() / "elsewhere";
  fs::create_directory(elsewhere);
  Program first(federation.scratch.path(), "federation",
                federation.arguments("out", {"--mode", "federated", "--rounds", "1000"}));
  while (federation.rows("out") < 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (const std::string more : {"--resume", "--overwrite"})
    check_refused(run_program(elsewhere, "federation", federation.arguments("out", {"--mode", "federated", more})),
                  {"no other run is writing to", "another fedlora-federation"});
  first.signal(SIGTERM);
  CHECK(first.wait().status == 130);
  CHECK(fs::exists(out / "state/federated.safetensors"));
}

TEST_CASE("--resume takes the options of the run there, from any directory") {
  const Federation federation;
  const fs::path root = federation.scratch.path(), elsewhere = root / "elsewhere";
  fs::create_directory(elsewhere);
  const std::string out = (root / "out").string();
  const std::vector<std::string> all = {"--train",  "train.csv", "--test",        "test.csv", "--clients",     "3",
                                        "--mode",   "federated", "--rounds",      "1",        "--local-steps", "1",
                                        "--lr",     "0.002",     "--seed",        "11",       "--out",         "out",
                                        "--header", "yes",       "--text-column", "text",     "--threads",     "1"};
  REQUIRE(run_program(root, "federation", all).status == 0);
  const auto resume = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"--resume", "--out", out});
    return run_program(elsewhere, "federation", more);
  };
  const Finished two = resume({"--rounds", "2"});
  INFO(two.err);
  REQUIRE(two.status == 0);
  CHECK(two.err.find("goes on with the options of the run in " + out) != std::string::npos);
  CHECK(federation.summary("out")["config"]["rounds"] == 2);
  CHECK(federation.summary("out")["config"]["lr"] == 0.002);
  const std::string result = federation.result("out");
  CHECK(resume({}).status == 0);  // two rounds by now, not one
  CHECK(federation.result("out") == result);
  const Finished other = resume({"--lr", "0.5"});
  check_refused(other, {"[resume, field lr] expected 0.002, as the saved run has it, got 0.5"});
  CHECK(other.err.find("goes on with") == std::string::npos);  // as it does not
  check_refused(resume({"--rounds", "1"}), {"at least the 2"});
  std::vector<std::string> straight = all;
  straight[9] = "2";
  straight[17] = "straight";
  REQUIRE(run_program(root, "federation", straight).status == 0);
  CHECK(federation.result("straight") == result);

  // Where nothing is saved, a run starts if it is said which.
  for (const std::string count : {"--threads", "--rounds", "--reference-epochs", "--eval-every"})
    check_refused(run_program(elsewhere, "federation", {"--resume", "--out", "nowhere", count, "1"}),
                  {"expected a directory with a run to go on with (--out), got none: nothing is saved there"});
  CHECK_FALSE(fs::exists(elsewhere / "nowhere"));
  straight[17] = "restarted";
  straight.push_back("--resume");
  const Finished restarted = run_program(root, "federation", straight);
  CHECK(restarted.status == 0);
  CHECK(restarted.err.find("note: nothing was saved in restarted to go on with; this is a new run") !=
        std::string::npos);
}

TEST_CASE("a state that is broken is not lost, and how to start anew is said") {
  const Federation federation;
  const fs::path out = federation.scratch.path() / "out", file = out / "state/federated.safetensors";
  REQUIRE(short_run(federation, "out", {"--mode", "federated"}).status == 0);
  const std::string good = read_text(file);
  std::string flipped = good;
  flipped[good.size() - 9] ^= 4;
  for (const std::string& broken : {good.substr(0, good.size() / 2), std::string("{}"), std::string(), flipped}) {
    write_text(file, broken);
    check_refused(short_run(federation, "out", {"--mode", "federated", "--resume"}),
                  {file.string(), "Nothing was changed", "--overwrite"});
    check_refused(short_run(federation, "out", {"--mode", "federated"}), {"a run with a state that cannot be read"});
    check_refused(run_program(federation.scratch.path(), "federation", {"--resume", "--out", out.string()}),
                  {"Nothing was changed"});
    CHECK(read_text(file) == broken);
  }
  std::string forged = good;
  REQUIRE(forged.find("--mode") != std::string::npos);
  forged.replace(forged.find("--mode"), 6, "--mood");
  write_text(file, fuzz::with_checksum(forged));
  check_refused(run_program(federation.scratch.path(), "federation", {"--resume", "--out", out.string()}),
                {"state, field arguments", "--mood", "--overwrite"});
  CHECK(short_run(federation, "out", {"--mode", "federated", "--overwrite"}).status == 0);
  CHECK(read_text(file).size() > good.size() / 2);
}

TEST_CASE("a run that fails before its first round leaves no directory") {
  const Federation federation;
  check_refused(short_run(federation, "new", {"--targets", "no_such_module"}), {"no_such_module"});
  CHECK_FALSE(fs::exists(federation.scratch.path() / "new"));
}

}  // namespace
}  // namespace fedlora::tests
