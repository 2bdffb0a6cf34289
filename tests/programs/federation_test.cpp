// SPDX-License-Identifier: Apache-2.0
// fedlora-federation as people script it: files, exit statuses, repeatability, kills, interrupts, wrong input.
#include <doctest/doctest.h>

#include <chrono>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "programs/federation.hpp"

namespace fedlora::tests {
namespace {

using Arguments = std::vector<std::string>;
namespace fs = std::filesystem;

TEST_CASE("a run writes the files that it promises") {
  const Federation federation;
  const Finished run = federation.run("out");
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(run.out.find("trainable params: ") != std::string::npos);
  CHECK(run.out.find("bytes per client and round: ") != std::string::npos);
  CHECK(run.out.find("federated   round 5 of 5: accuracy ") != std::string::npos);
  CHECK(run.out.find("centralised  ") != std::string::npos);

  const Json summary = federation.summary("out");
  CHECK(summary["config"]["clients"] == 4);
  CHECK(summary["config"]["labels"] == Json({"animals", "money"}));
  for (const char* mode : {"head", "local", "federated", "centralised"}) {
    INFO(mode);
    const Json& entry = summary[mode];
    for (const char* field : {"accuracy", "loss", "macro_f1", "seconds", "bytes_up", "bytes_down"})
      CHECK(entry[field].is_number());
    CHECK(entry["adapter_sha256"].get<std::string>().size() == 64);
    CHECK((entry["bytes_up"] > 0) == (std::string(mode) == "federated"));
  }
  std::map<std::string, int> rows;
  std::istringstream lines(read_text(federation.scratch.path() / "out/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) ++rows[Json::parse(line)["mode"].get<std::string>()];
  CHECK(rows == std::map<std::string, int>{{"head", 2}, {"local", 2}, {"federated", 5}, {"centralised", 2}});
  CHECK(read_text(federation.scratch.path() / "out/metrics.csv").starts_with("mode,round,clients,"));
  for (const char* adapter : {"adapter", "adapter-head", "adapter-centralised"})
    CHECK(fs::exists(federation.scratch.path() / "out" / adapter / "adapter_config.json"));

  // Finished runs are not run again, and nothing is doubled.
  const std::string result = federation.result("out");
  const Finished again = federation.run("out", {"--resume"});
  CHECK(again.status == 0);
  CHECK(again.out.find("round 5 of 5: accuracy") == std::string::npos);
  CHECK(federation.result("out") == result);
}

TEST_CASE("threads do not change a bit") {
  const Federation federation;
  REQUIRE(federation.run("one", {"--threads", "1"}).status == 0);
  for (const std::string threads : {"2", "3", "4"}) {
    REQUIRE(federation.run(threads, {"--threads", threads}).status == 0);
    CHECK(federation.result(threads) == federation.result("one"));
  }
}

TEST_CASE("a run killed at any moment resumes to the same bits") {
  const Federation federation;
  const auto started = std::chrono::steady_clock::now();
  REQUIRE(federation.run("whole", {"--rounds", "40"}).status == 0);
  const auto whole = std::chrono::steady_clock::now() - started;
  const std::string expected = federation.result("whole");
  const auto resumes = [&](const std::string& out, int saved) {
    const Finished resumed = federation.run(out, {"--rounds", "40", "--resume", "--threads", "3"});
    INFO(resumed.err);
    REQUIRE(resumed.status == 0);
    CHECK(federation.result(out) == expected);
    CHECK(federation.rows(out) >= saved);
  };
  for (const int rows : {1, 9, 20}) {  // of 46: whatever is going on when so many have been saved
    INFO("killed with ", rows, " rows saved");
    const std::string out = "killed" + std::to_string(rows);
    Program run(federation.scratch.path(), "federation", federation.arguments(out, {"--rounds", "40"}));
    for (int i = 0; i < 20000 && federation.rows(out) < rows; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    run.signal(SIGKILL);
    CHECK(run.wait().status == 128 + SIGKILL);
    CHECK(!fs::exists(federation.scratch.path() / out / "summary.json"));
    resumes(out, rows);
  }
  for (const int percent : {3, 10}) {  // while it reads and prepares, where there may be nothing to resume
    INFO("killed after ", percent, "% of the time");
    const std::string out = "early" + std::to_string(percent);
    Program run(federation.scratch.path(), "federation", federation.arguments(out, {"--rounds", "40", "--resume"}));
    std::this_thread::sleep_for(whole * percent / 100);
    run.signal(SIGKILL);
    CHECK(run.wait().status == 128 + SIGKILL);
    resumes(out, 0);
  }
}

TEST_CASE("a run that is to end where it stopped is measured there, and not trained further") {
  const Federation federation;
  for (const std::string mode : {"federated", "local"}) {
    INFO(mode);
    const std::string count = mode == "local" ? "--reference-epochs" : "--rounds";
    Program run(federation.scratch.path(), "federation",
                federation.arguments("stopped-" + mode, {"--mode", mode, count, "60", "--eval-every", "1000"}));
    for (int i = 0; i < 20000 && federation.rows("stopped-" + mode) < 4; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    run.signal(SIGINT);
    REQUIRE(run.wait().status == 130);
    const std::string done = std::to_string(federation.rows("stopped-" + mode));
    const Arguments ends_there = {"--mode", mode, count, done, "--eval-every", "1000"};
    Arguments resumed = ends_there;
    resumed.push_back("--resume");
    REQUIRE(federation.run("stopped-" + mode, resumed).status == 0);
    REQUIRE(federation.run("straight-" + mode, ends_there).status == 0);
    CHECK(federation.result("stopped-" + mode) == federation.result("straight-" + mode));
    CHECK(federation.summary("stopped-" + mode)[mode]["bytes_up"] ==
          federation.summary("straight-" + mode)[mode]["bytes_up"]);
  }
}

TEST_CASE("Ctrl-C saves and says how to go on") {
  const Federation federation;
  REQUIRE(federation.run("whole", {"--mode", "federated", "--rounds", "40"}).status == 0);
  Program run(federation.scratch.path(), "federation",
              federation.arguments("stopped", {"--mode", "federated", "--rounds", "40"}));
  for (int i = 0; i < 2000 && run.out().find("round 2 of 40") == std::string::npos; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  run.signal(SIGINT);
  const Finished stopped = run.wait();
  INFO(stopped.err);
  CHECK(stopped.status == 130);
  const std::string out = (federation.scratch.path() / "stopped").string();
  CHECK(stopped.err.find("fedlora-federation --resume --out " + out + "\n") != std::string::npos);
  CHECK(!fs::exists(federation.scratch.path() / "stopped/summary.json"));
  REQUIRE(run_program(federation.scratch.path(), "federation", {"--resume", "--out", out}).status == 0);
  CHECK(federation.result("stopped") == federation.result("whole"));
}

TEST_CASE("more rounds go on where fewer ended; anything else must match") {
  const Federation federation;
  REQUIRE(federation.run("long", {"--mode", "federated"}).status == 0);
  const auto rounds = [&](const std::string& number, Arguments more) {
    more.insert(more.end(), {"--rounds", number});
    return federation.run("short", more);
  };
  REQUIRE(rounds("3", {"--mode", "federated"}).status == 0);
  REQUIRE(rounds("5", {"--mode", "federated", "--resume", "--threads", "1"}).status == 0);
  CHECK(federation.result("short") == federation.result("long"));

  const auto refused = [&](const std::string& number, Arguments more, const std::string& part) {
    more.insert(more.begin(), {"--mode", "federated", "--resume"});
    const Finished run = rounds(number, more);
    INFO(run.err);
    CHECK(run.status == 1);
    CHECK(run.err.find(part) != std::string::npos);
  };
  refused("5", {"--lr", "0.5"}, "[resume, field lr] expected 0.001, as the saved run has it, got 0.5");
  refused("5", {"--rank", "4"}, "field rank] expected 8");
  refused("4", {}, "field rounds] expected at least the 5");
  refused("5", {"--mode", "head"}, "field mode] expected \"federated\"");
  fs::copy_file(federation.train, federation.scratch.path() / "renamed.csv");
  CHECK(rounds("5", {"--mode", "federated", "--train", "renamed.csv", "--resume"}).status == 0);
  write_text(federation.train, Federation::table(50));
  refused("5", {},
          "field train_sha256] expected the files that the saved run began with, got " + federation.train.string() +
              ", whose content differs from that run's");
}

TEST_CASE("a run does not go on over another base") {
  const Federation federation;
  const fs::path model = federation.scratch.path() / "model";
  fs::copy(stories, model);
  const auto run = [&](const std::string& rounds) {
    return federation.run("out", {"--mode", "federated", "--model", model.string(), "--rounds", rounds, "--resume"});
  };
  REQUIRE(run("1").status == 0);
  REQUIRE(run("2").status == 0);
  std::string weights = read_text(model / "model.safetensors");
  weights[weights.size() - 2] ^= 1;
  write_text(model / "model.safetensors", weights);
  const Finished other = run("3");
  INFO(other.err);
  CHECK(other.status == 1);
  CHECK(other.err.find("field model_sha256]") != std::string::npos);
  CHECK(other.err.find("the weights of " + model.string()) != std::string::npos);
}

TEST_CASE("a run is another one where config.json or a file of the tokenizer is") {
  const Federation federation;
  const fs::path model = federation.scratch.path() / "model";
  fs::copy(stories, model);
  const auto run = [&](const Arguments& more) {
    Arguments all = {"--mode", "federated",     "--model", model.string(), "--rounds",
                     "1",      "--local-steps", "1",       "--threads",    "1"};
    all.insert(all.end(), more.begin(), more.end());
    return federation.run("out", all);
  };
  REQUIRE(run({}).status == 0);
  const auto refused = [&](const std::string& file, const std::string& words) {
    for (const Arguments& more : {Arguments{}, Arguments{"--resume"}}) {
      const Finished again = run(more);
      INFO(again.err);
      CHECK(again.status == 1);
      CHECK(again.err.find("model_files_sha256." + file) != std::string::npos);
      CHECK(again.err.find((model / file).string() + words) != std::string::npos);
    }
  };
  const auto changed = [&](const std::string& file, const std::string& words, const auto& change) {
    const std::string kept = read_text(model / file);
    Json json = Json::parse(kept);
    change(json);
    write_text(model / file, json.dump());
    refused(file, words);
    write_text(model / file, kept);
  };
  changed("config.json", ", whose content differs", [](Json& json) { json["rms_norm_eps"] = 1e-4; });
  changed("tokenizer.json", ", a file of the tokenizer, whose content differs", [](Json& json) {
    Json& merges = json["model"]["merges"];
    merges.erase(merges.size() - 1);
  });
  write_text(model / "added_tokens.json", "{}");
  refused("added_tokens.json", ", a file of the tokenizer, of which that run says nothing");
  fs::remove(model / "added_tokens.json");
  const Finished same = run({});
  CHECK(same.out.find("This run was done before") != std::string::npos);
}

TEST_CASE("an adapter that a run starts from is told by its configuration too") {
  const Federation federation;
  REQUIRE(federation.run("first", {"--mode", "federated", "--rounds", "1", "--local-steps", "1"}).status == 0);
  const fs::path adapter = federation.scratch.path() / "first/adapter";
  const auto run = [&] {
    return federation.run(
        "out", {"--mode", "federated", "--rounds", "1", "--local-steps", "1", "--adapter", adapter.string()});
  };
  REQUIRE(run().status == 0);
  Json config = Json::parse(read_text(adapter / "adapter_config.json"));
  config["use_rslora"] = true;
  write_text(adapter / "adapter_config.json", config.dump());
  const Finished other = run();
  INFO(other.err);
  CHECK(other.status == 1);
  CHECK(other.err.find((adapter / "adapter_config.json").string() + ", whose content differs") != std::string::npos);
}

TEST_CASE("runs without clients need no partition") {
  const Federation federation;
  write_text(federation.train, Federation::table(6));
  const auto run = [&](const std::string& mode) {
    return run_program(federation.scratch.path(), "federation",
                       {"--train", "train.csv", "--test", "test.csv", "--mode", mode, "--reference-epochs", "1",
                        "--threads", "1", "--out", mode});
  };
  for (const std::string mode : {"head", "centralised"}) {
    const Finished done = run(mode);
    INFO(done.err);
    CHECK(done.status == 0);
    CHECK(federation.summary(mode)["config"]["clients"].is_null());
  }
  for (const std::string mode : {"federated", "local"})
    CHECK(run(mode).err.find("no more clients than the 6 examples") != std::string::npos);
}

TEST_CASE("wrong usage is status 2, an error status 1, and both name what is wrong") {
  const Federation federation;
  const auto fails = [&](const Arguments& more, int status, std::initializer_list<std::string> parts) {
    const Finished run = federation.run("out", more);
    INFO(run.err);
    CHECK(run.status == status);
    for (const std::string& part : parts) {
      INFO("must say: ", part);
      CHECK(run.err.find(part) != std::string::npos);
    }
  };
  fails({"--rank", "0"}, 2, {"--rank", "expected a whole number from 1 to 65536, got 0"});
  fails({"--lr", "-1"}, 2, {"--lr", "expected a finite number above 0"});
  fails({"--cohort", "1.5"}, 2, {"--cohort", "fraction"});
  fails({"--eval-every", "0"}, 2, {"--eval-every"});
  fails({"--no-such-option"}, 2, {"--no-such-option"});
  fails({"--mode", "some"}, 2, {"--mode"});
  fails({"--mu", "1"}, 2, {"--mu", "fedprox"});
  fails({"--targets", "no_such_module"}, 1, {"target_modules", "no_such_module"});
  fails({"--max-tokens", "100000"}, 1, {"max_tokens", "512"});
  fails({"--model", "/no/such/model"}, 1, {"/no/such/model"});
  fails({"--text-column", "absent"}, 1, {"train.csv", "'absent'", "'text'"});
  fails({"--adapter", federation.scratch.path().string()}, 1, {"adapter_config.json"});
  fails({"--out", "/proc/nowhere"}, 1, {"/proc/nowhere"});
  fails({"--lr", "1e30", "--mode", "federated"}, 1, {"round 1", "client", "step", "finite"});

  write_text(federation.test, "text,label\nhello,plants\n");
  fails({}, 1, {"test.csv, line 2", "'animals', 'money'", "'plants'"});
  write_text(federation.test, "text,label\nhello,money,much\n");
  fails({}, 1, {"test.csv, line 2", "2 columns"});
  write_text(federation.test, "text,label\n\"hello,money\n");
  fails({}, 1, {"test.csv, line 2"});
  write_text(federation.test, "text,label\n\xff\xfe,money\n");
  fails({}, 1, {"test.csv, line 2", "UTF-8"});
  fs::remove(federation.test);
  fails({}, 1, {"test.csv"});
}

TEST_CASE("a broken model directory is an error that names file and tensor") {
  const Federation federation;
  const fs::path model = federation.scratch.path() / "model";
  const fs::path source = stories;
  const auto fails = [&](const std::string& part) {
    const Finished run = federation.run("out", {"--model", model.string()});
    INFO(run.err);
    CHECK(run.status == 1);
    CHECK(run.err.find(part) != std::string::npos);
  };
  const auto fresh = [&] {
    fs::remove_all(model);
    fs::copy(source, model);
  };
  fresh();
  const std::string weights = read_text(source / "model.safetensors"), config = read_text(source / "config.json");
  write_text(model / "model.safetensors", weights.substr(0, weights.size() / 2));
  fails("model.safetensors");
  std::string hostile = weights;
  hostile.replace(0, 8, std::string(8, '\x7f'));
  write_text(model / "model.safetensors", hostile);
  fails("model.safetensors");
  fresh();
  Json other = Json::parse(config);
  other["model_type"] = "mamba";
  write_text(model / "config.json", other.dump());
  fails("config.json, field model_type");
  other = Json::parse(config);
  other["num_hidden_layers"] = 6;
  write_text(model / "config.json", other.dump());
  fails("model.layers.5.");
}

TEST_CASE("a full disk is an error, and the last good state stays") {
  const Federation federation;
  const Arguments arguments = federation.arguments("full", {"--mode", "federated"});
  Program run(federation.scratch.path(), "federation", arguments, "",
              {.file = 65536});  // the state is larger than that
  const Finished full = run.wait();
  INFO(full.err);
  CHECK(full.status == 1);
  CHECK(full.err.find("federated.safetensors] expected room for the whole file") != std::string::npos);
  CHECK(!fs::exists(federation.scratch.path() / "full/state/federated.safetensors"));
  REQUIRE(federation.run("full", {"--mode", "federated", "--resume"}).status == 0);
  REQUIRE(federation.run("whole", {"--mode", "federated"}).status == 0);
  CHECK(federation.result("full") == federation.result("whole"));

  Program other(federation.scratch.path(), "federation",
                federation.arguments("full", {"--mode", "federated", "--seed", "4", "--overwrite"}), "",
                {.file = 65536});
  CHECK(other.wait().status == 1);  // what was there before is still there
  CHECK(federation.result("full") == federation.result("whole"));
  CHECK(fs::exists(federation.scratch.path() / "full/adapter/adapter_config.json"));
  CHECK(fs::exists(federation.scratch.path() / "full/state/federated.safetensors"));
}

TEST_CASE("a natural partition has a client per name") {
  const Federation federation;
  Arguments arguments = {"--train",     federation.train.string(),
                         "--test",      federation.test.string(),
                         "--partition", "natural:who",
                         "--cohort",    "1",
                         "--rounds",    "1",
                         "--mode",      "federated",
                         "--out",       (federation.scratch.path() / "out").string()};
  const Finished run = run_program(federation.scratch.path(), "federation", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(federation.summary("out")["config"]["clients"] == 3);
  CHECK(run.out.find("person2") != std::string::npos);
  CHECK(run.out.find("3 clients of 16 to 16 examples, median 16\n") != std::string::npos);
}

}  // namespace
}  // namespace fedlora::tests
