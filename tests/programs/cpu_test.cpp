// SPDX-License-Identifier: Apache-2.0
// --cpu: the level of instructions is chosen, recorded, and part of what a run is. A build for one machine
// (FEDLORA_NATIVE) has one level; one for all x86-64 processors has those that this one has.
#include <doctest/doctest.h>

#include <iostream>

#include "fedlora/backend/cpu/level.hpp"
#include "fuzz/checksum.hpp"
#include "programs/federation.hpp"

namespace fedlora::tests {
namespace {

Finished on_cpu(const Federation& federation, const std::string& level, const std::string& out,
                std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"--mode", "federated", "--local-steps", "2"});
  if (!level.empty()) more.insert(more.end(), {"--cpu", level});
  return federation.run(out, std::move(more));
}

/// The levels that the program has here.
std::vector<std::string> levels_here(const Federation& federation) {
  std::vector<std::string> levels;
  for (const std::string level : {"sse2", "avx2", "avx512"}) {
    const Finished run = on_cpu(federation, level, "try-" + level, {"--rounds", "1"});
    if (run.status == 0)
      levels.push_back(level);
    else
      CHECK(run.err.find("[--cpu] expected ") != std::string::npos);
  }
  return levels;
}

TEST_CASE("a level of CPU instructions is chosen, recorded and repeatable") {
  const Federation federation;
  const auto levels = levels_here(federation);
  if (levels.empty()) {
    std::cout << "skipped: built for " << cpu::Level::name << " alone\n";
    return;
  }
  REQUIRE(on_cpu(federation, "native", "best").status == 0);
  const std::string best = federation.summary("best")["config"]["cpu"].get<std::string>();
  for (const std::string& level : levels) {
    CAPTURE(level);
    REQUIRE(on_cpu(federation, level, level, {"--threads", "1"}).status == 0);
    CHECK(federation.summary(level)["config"]["cpu"] == level);
    REQUIRE(on_cpu(federation, level, level + "-again", {"--threads", "2"}).status == 0);
    CHECK(federation.result(level + "-again") == federation.result(level));
    CHECK((federation.result(level) == federation.result("best")) == (level == best));
  }
}

TEST_CASE("a level that is not there is refused by name") {
  const Federation federation;
  const Finished unknown = on_cpu(federation, "avx1024", "none");
  CHECK(unknown.status != 0);
  CHECK(unknown.err.find("--cpu") != std::string::npos);
  if (levels_here(federation).size() > 1) return;
  // Built for one: another is another build.
  const std::string other = std::string(cpu::Level::name) == "sse2" ? "avx2" : "sse2";
  const Finished refused = on_cpu(federation, other, "none");
  CHECK(refused.status != 0);
  CHECK(refused.err.find("-DFEDLORA_NATIVE=OFF") != std::string::npos);
}

TEST_CASE("a run goes on under another level only when told to, and says so from then on") {
  const Federation federation;
  const auto levels = levels_here(federation);
  if (levels.size() < 2) {
    std::cout << "skipped: a single level\n";
    return;
  }
  const std::string first = levels[0], second = levels[1];
  REQUIRE(on_cpu(federation, first, "out", {"--rounds", "1"}).status == 0);
  const Finished taken =
      federation.run("out", {"--resume", "--mode", "federated", "--local-steps", "2", "--rounds", "2"});
  CHECK(taken.status == 0);  // the level of the run that is there
  CHECK(federation.summary("out")["config"]["cpu"] == first);
  const Finished told = on_cpu(federation, second, "out", {"--resume", "--rounds", "3"});
  REQUIRE(told.status == 0);
  CHECK(told.err.find("computed with " + first + ", and goes on with " + second) != std::string::npos);
  CHECK(federation.summary("out")["config"]["cpu"] == first + " then " + second);
  const Finished nothing_left = on_cpu(federation, first, "out", {"--resume", "--rounds", "3"});
  REQUIRE(nothing_left.status == 0);
  CHECK(nothing_left.err.find("goes on with " + first + ":") == std::string::npos);
  CHECK(federation.summary("out")["config"]["cpu"] == first + " then " + second);
  const Finished still = on_cpu(federation, second, "out", {"--resume", "--rounds", "4"});
  REQUIRE(still.status == 0);
  CHECK(still.err.find("goes on with " + second + ":") == std::string::npos);
  CHECK(federation.summary("out")["config"]["cpu"] == first + " then " + second);
  const Finished plain =
      federation.run("out", {"--resume", "--mode", "federated", "--local-steps", "2", "--rounds", "5"});
  CHECK(plain.status == 0);  // the one it went on with
  CHECK(federation.summary("out")["config"]["cpu"] == first + " then " + second);
}

TEST_CASE("of several runs in a directory, the one that saw the most levels says which") {
  const Federation federation;
  const auto levels = levels_here(federation);
  if (levels.size() < 2) {
    std::cout << "skipped: a single level\n";
    return;
  }
  const auto run = [&](const std::string& level, std::vector<std::string> more) {
    more.insert(more.end(), {"--local-steps", "2", "--cpu", level});
    return federation.run("out", std::move(more));
  };
  const auto says = [&](const Finished& finished, const std::string& level) {
    return finished.err.find("goes on with " + level + ":") != std::string::npos;
  };
  REQUIRE(run(levels[0], {"--rounds", "1"}).status == 0);
  CHECK(says(run(levels[1], {"--rounds", "2", "--resume"}), levels[1]));  // the references were finished
  const Finished again = run(levels[1], {"--rounds", "3", "--resume"});
  REQUIRE(again.status == 0);
  CHECK_FALSE(says(again, levels[1]));
  CHECK(federation.summary("out")["config"]["cpu"] == levels[0] + " then " + levels[1]);
  CHECK(says(run(levels[0], {"--rounds", "4", "--resume"}), levels[0]));
  CHECK(federation.summary("out")["config"]["cpu"] == levels[0] + " then " + levels[1] + " then " + levels[0]);
}

TEST_CASE("a run that another machine began with its best is refused by name, unless --cpu says that this is meant") {
  const Federation federation;
  REQUIRE(on_cpu(federation, "", "best", {"--rounds", "1"}).status == 0);
  const auto state = federation.scratch.path() / "best" / "state" / "federated.safetensors";
  const std::string best = federation.summary("best")["config"]["cpu"].get<std::string>();
  std::string bytes = read_text(state), other = best;
  other.back() = other.back() == '2' ? '3' : '2';
  for (std::size_t at = 0; (at = bytes.find(best, at)) != std::string::npos;) bytes.replace(at, best.size(), other);
  write_text(state, fuzz::with_checksum(bytes));
  const Finished refused =
      federation.run("best", {"--resume", "--mode", "federated", "--local-steps", "2", "--rounds", "2"});
  INFO(refused.err);
  CHECK(refused.status == 1);
  CHECK(refused.err.find("[resume, field cpu] expected " + other) != std::string::npos);
  CHECK(refused.err.find("--cpu " + best) != std::string::npos);
  REQUIRE(on_cpu(federation, "native", "best", {"--resume", "--rounds", "2"}).status == 0);
  CHECK(federation.summary("best")["config"]["cpu"] == other + " then " + best);
}

}  // namespace
}  // namespace fedlora::tests
