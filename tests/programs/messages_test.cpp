// SPDX-License-Identifier: Apache-2.0
// What the programs say to somebody who meets them for the first time: what was meant, what is there, what a figure is
// worth.
#include <doctest/doctest.h>

#include <cmath>
#include <sstream>

#include "programs/federation.hpp"

namespace fedlora::tests {
namespace {

/// What a federation of one step says before it trains, and after.
Finished told(const Federation& federation, std::vector<std::string> more) {
  more.insert(more.begin(),
              {"--rounds", "1", "--reference-epochs", "1", "--local-steps", "1", "--threads", "1", "--overwrite"});
  return federation.run("out", std::move(more));
}

/// The value of `field` in the first row of metrics.
double first_row(const Federation& federation, const std::string& field) {
  std::istringstream lines(read_text(federation.scratch.path() / "out/metrics.jsonl"));
  std::string line;
  std::getline(lines, line);
  return Json::parse(line)[field].get<double>();
}

/// The number of bytes in "about 777.6 kB" after `words`.
double bytes_after(const std::string& text, const std::string& words) {
  const std::size_t at = text.find(words);
  if (at == std::string::npos) return NAN;
  std::istringstream rest(text.substr(at + words.size()));
  double number = 0;
  std::string unit;
  rest >> number >> unit;
  return number * (unit == "kB" ? 1e3 : unit == "MB" ? 1e6 : 1);
}

TEST_CASE("an option that there is not is answered with the one that was meant") {
  const TemporaryDirectory scratch;
  const auto says = [&](const std::string& program, const std::vector<std::string>& arguments,
                        const std::string& part) {
    const Finished run = run_program(scratch.path(), program, arguments);
    INFO(run.err);
    CHECK(run.status == 2);
    CHECK(run.err.starts_with("fedlora-" + program + ": "));
    CHECK(run.err.find(part) != std::string::npos);
  };
  for (const auto& [typed, meant] : std::map<std::string, std::string>{{"--round", "--rounds"},
                                                                       {"-rounds", "--rounds"},
                                                                       {"\u2013rounds", "--rounds"},
                                                                       {"--text_column", "--text-column"},
                                                                       {"--Rounds", "--rounds"},
                                                                       {"--learning-rate", "--lr"},
                                                                       {"--epochs", "--local-epochs"},
                                                                       {"--batch-size", "--batch"},
                                                                       {"--modes", "--mode"},
                                                                       {"--models", "--model"},
                                                                       {"--num-clients", "--clients"},
                                                                       {"--lora-r", "--rank"},
                                                                       {"--output-dir", "--out"},
                                                                       {"--sed", "--seed"},
                                                                       {"--lora_alpha", "--alpha"},
                                                                       {"--partitoin", "--partition"},
                                                                       {"--target_modules", "--targets"}})
    says("federation", {typed, "3"}, "there is no option " + typed + "; is " + meant + " meant?\n");
  says("federation", {"rounds=3"}, "expected --name value, got 'rounds=3'; is --rounds meant?");
  says("federation", {"--zzz", "3"}, "there is no option --zzz\nRun with --help");
  says("federation", {"--rounds"}, "--rounds: expected a value after it, got none");
  says("predict", {"--model", "m", "--file", "f", "--adaptor", "a"}, "is --adapter meant?");
  says("merge", {"--model", "m", "--adapter", "a", "--output", "o", "--out", "x"}, "is --out meant?");
  says("tokenize", {"--tokenizer", "t", "--decod"}, "is --decode meant?");
  for (const std::string program : {"federation", "predict", "merge", "tokenize"}) {
    const Finished version = run_program(scratch.path(), program, {"--version"});
    CHECK(version.status == 0);
    CHECK(version.out.starts_with("fedlora-" + program + " 0."));
    for (const std::string part : {"compiled by ", "matrix products by ", "Apache-2.0"})
      CHECK(version.out.find(part) != std::string::npos);
  }
}

TEST_CASE("numbers that are none, too large, or mean something else to a computer are said") {
  const TemporaryDirectory scratch;
  const auto refuses = [&](const std::string& option, const std::string& value, const std::string& expected) {
    const Finished run = run_program(scratch.path(), "federation", {option, value});
    INFO(run.err);
    CHECK(run.status == 2);
    CHECK(run.err.find(option) != std::string::npos);
    CHECK(run.err.find(expected) != std::string::npos);
  };
  for (const std::string value : {"inf", "nan", "1e999", "-1", "0", "many", "1,5"})
    refuses("--lr", value, "expected a finite number above 0, got " + value);
  for (const std::string value : {"0", "1e3", "2.0", "-4", "012", "0x10", " 3", "99999999999999999999"})
    refuses("--rounds", value, "expected a whole number from 1 to 1000000, got " + value);
  refuses("--seed", "010", "expected a whole number from 0 to 18446744073709551615, got 010");  // 8 to CLI11
  refuses("--threads", "1000000", "from 0 to 4096");
  for (const std::string option : {"--lr", "--train", "--text-column", "--out"}) refuses(option, "", "nothing");
}

TEST_CASE("the introduction's bytes are those of the cohorts that come") {
  const Federation federation;
  const auto agrees = [&](const std::vector<std::string>& more, const std::string& words) {
    const Finished run = told(federation, more);
    INFO(run.out, run.err);
    REQUIRE(run.status == 0);
    const double said = bytes_after(run.out, words);
    const double counted = first_row(federation, "bytes_up") + first_row(federation, "bytes_down");
    CHECK(std::abs(said - counted) < 0.006 * counted);
  };
  agrees({"--mode", "federated", "--cohort", "0.5"}, "per round of 2 clients: about ");
  agrees({"--mode", "federated", "--cohort", "0.01"}, "per round of 1 client: about ");
  agrees({"--mode", "federated", "--clients", "1"}, "per round of 1 client: about ");
  std::vector<std::string> natural = {"--train",
                                      federation.train.string(),
                                      "--test",
                                      federation.test.string(),
                                      "--mode",
                                      "federated",
                                      "--rounds",
                                      "1",
                                      "--local-steps",
                                      "1",
                                      "--overwrite",
                                      "--out",
                                      (federation.scratch.path() / "out").string(),
                                      "--partition",
                                      "natural:who"};
  for (const auto& [cohort, words] : {std::pair<std::string, std::string>{"1", "per round of 3 clients: about "},
                                      {"0.5", "per round of 2 clients: about "}}) {
    std::vector<std::string> arguments = natural;
    arguments.insert(arguments.end(), {"--cohort", cohort});
    const Finished run = run_program(federation.scratch.path(), "federation", arguments);
    INFO(run.out, run.err);
    REQUIRE(run.status == 0);
    const double counted = first_row(federation, "bytes_up") + first_row(federation, "bytes_down");
    CHECK(std::abs(bytes_after(run.out, words) - counted) < 0.006 * counted);
  }
}

TEST_CASE("a run that trains the head alone speaks of no federation") {
  const Federation federation;
  const Finished run = told(federation, {"--mode", "head"});
  INFO(run.out);
  REQUIRE(run.status == 0);
  for (const std::string part : {"federated", "per round", "client", " adapter/"})
    CHECK(run.out.find(part) == std::string::npos);
  CHECK(run.out.find("head alone: trainable params: 128 ") != std::string::npos);
  CHECK(run.out.find("\ntrainable params") == std::string::npos);
  CHECK(run.out.find("adapter-head/") != std::string::npos);
}

TEST_CASE("pairs and many labels fit the screen; what makes figures empty is said") {
  const Federation federation;
  std::string many = "text,more,label\n";
  for (int i = 0; i < 300; ++i)
    many += "a text,its pair,a label of many that is number " + std::to_string(i % 150) + "\n";
  write_text(federation.train, many);
  write_text(federation.test, "text,more,label\nb,c,a label of many that is number 7\n");
  const Finished run = told(federation, {"--mode", "federated", "--text-pair-column", "more"});
  INFO(run.out, run.err);
  REQUIRE(run.status == 0);
  CHECK(run.out.find("first example: 'a text' with 'its pair', label ") != std::string::npos);
  CHECK(run.out.find("note: all 1 examples for testing have the label 'a label of many that is number 7'") !=
        std::string::npos);
  std::istringstream lines(run.out);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() < 240);

  write_text(federation.train, "text,label\na,x\nb,X\nc,x\nd,X\n");
  write_text(federation.test, "text,label\na,x\nb,X\n");
  const Finished alike = told(federation, {"--mode", "head"});
  CHECK(alike.out.find("note: every text for testing is also one for training") != std::string::npos);
  CHECK(alike.out.find("differ only in letter case") != std::string::npos);
  write_text(federation.test, "text,label\na,x \n");
  const Finished spaces = told(federation, {"--mode", "head"});
  INFO(spaces.err);
  CHECK(spaces.status == 1);
  CHECK(spaces.err.find("got 'x ', which is written otherwise than 'X'") != std::string::npos);
}

TEST_CASE("columns that were mixed up are said before anything is trained") {
  const Federation federation;
  const auto fails = [&](const std::vector<std::string>& more, int status, const std::string& part) {
    const Finished run = told(federation, more);
    INFO(run.err);
    CHECK(run.status == status);
    CHECK(run.err.find(part) != std::string::npos);
  };
  const Finished noted = told(federation, {"--text-column", "label", "--label-column", "text", "--mode", "head"});
  CHECK(noted.out.find("(are the columns of text and label exchanged?)") !=
        std::string::npos);  // its labels are all known
  write_text(federation.test, "text,label,who\n\"The cat, number 900\",animals,a\n\"I paid 3\",money,b\n");
  fails({"--text-column", "label", "--label-column", "text"}, 1, "are the columns of text and label exchanged?");
  fails({"--text-column", "text,label"}, 2, "another column than those of the text");
  fails({"--text-pair-column", "label"}, 2, "another column than those of the text");
  fails({"--text-column", "1", "--label-column", "2"}, 1, "what looks like a header, 'text', 'label'");
  const Finished skipped =
      told(federation, {"--text-column", "1", "--label-column", "2", "--header", "yes", "--mode", "head"});
  CHECK(skipped.out.find("data: 48 examples") != std::string::npos);
  CHECK(told(federation, {"--text-column", "text, who", "--mode", "head"})
            .out.find("first example: 'The cat, number 0 person0'") != std::string::npos);
  const Finished predict = run_program(federation.scratch.path(), "predict",
                                       {"--model", stories, "--file", federation.test.string(), "--text-column", "1"});
  CHECK(predict.err.find("what looks like a header, 'text'") != std::string::npos);
}

}  // namespace
}  // namespace fedlora::tests
