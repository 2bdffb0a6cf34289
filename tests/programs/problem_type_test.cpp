// SPDX-License-Identifier: Apache-2.0
// Numbers, sets of labels and measures by name, from a table through the federation, prediction and merging.
#include <doctest/doctest.h>

#include <cmath>
#include <sstream>

#include "fedlora/core/shape.hpp"
#include "fedlora/io/json.hpp"
#include "program.hpp"

namespace fedlora::tests {
namespace {

/// Runs on texts of two kinds, with what is to be predicted in every form.
struct Typed {
  TemporaryDirectory scratch;
  using Words = std::vector<std::string>;

  Typed() {
    std::string pairs = "first,second,score,other\n", flags = "text,animals,money,never\n", arrays,
                labels = "text,label\n";
    for (int i = 0; i < 36; ++i) {
      const bool cat = i % 3 != 1, bank = i % 3 != 0;
      const std::string text =
          std::string(cat ? "the cat sat " : "") + (bank ? "pay the bank " : "") + std::to_string(i);
      pairs += text + ",a second text," + (cat ? (bank ? "2.5" : "0") : "5") + "," + std::to_string(i) + "\n";
      flags += text + (cat ? ",1" : ",0") + (bank ? ",1,0\n" : ",0,0\n");
      arrays +=
          Json{{"text", text}, {"tags", cat ? (bank ? Json{"money", "animals"} : Json{"animals"}) : Json{"money"}}}
              .dump() +
          "\n";
      labels += text + (cat ? ",animals\n" : ",money\n");
    }
    write_text(scratch.path() / "pairs.csv", pairs);
    write_text(scratch.path() / "flags.csv", flags);
    write_text(scratch.path() / "arrays.jsonl", arrays);
    write_text(scratch.path() / "labels.csv", labels);
  }

  Finished federation(const std::string& table, const std::string& out, Words more) const {
    Words all = {"--train", table,   "--test", table,       "--clients", "3", "--rounds",  "4", "--batch", "4",
                 "--lr",    "0.005", "--mode", "federated", "--cohort",  "1", "--threads", "1", "--out",   out};
    all.insert(all.end(), more.begin(), more.end());
    return run_program(scratch.path(), "federation", all);
  }
  Finished regression(const std::string& out, Words more = {}) const {
    Words all = {"--problem-type",     "regression", "--text-column",  "first",
                 "--text-pair-column", "second",     "--label-column", "score"};
    all.insert(all.end(), more.begin(), more.end());
    return federation("pairs.csv", out, all);
  }
  Json read_json(const std::string& file) const { return Json::parse(read_text(scratch.path() / file)); }
  /// The digest of a run's adapter.
  std::string digest(const std::string& out) const {
    return read_json(out + "/summary.json")["federated"]["adapter_sha256"].get<std::string>();
  }
  std::vector<Json> predict(Words more) const {
    Words all = {"--model", stories};
    all.insert(all.end(), more.begin(), more.end());
    const Finished run = run_program(scratch.path(), "predict", all);
    INFO(run.err);
    REQUIRE(run.status == 0);
    std::vector<Json> lines;
    std::istringstream in(run.out);
    for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
    return lines;
  }
};

}  // namespace

TEST_CASE("a federation learns numbers of pairs of texts, and is measured by correlations") {
  const Typed typed;
  const Finished run = typed.regression("out", {"--rounds", "12", "--metric", "mae"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(has(run.out, "1 number to predict (regression)"));
  CHECK(has(run.out, "texts by the quantile of their target:"));
  CHECK(has(run.out, "round 12 of 12: Pearson "));
  const Json summary = typed.read_json("out/summary.json"), result = summary["federated"];
  CHECK(summary["config"]["problem_type"] == "regression");
  CHECK(summary["config"]["labels"] == Json({"LABEL_0"}));
  CHECK(result["pearson"] > 0.9);
  CHECK(result["spearman"] > 0.8);
  CHECK(result["loss"] == result["mse"]);
  CHECK(!result.contains("accuracy"));
  CHECK(read_text(typed.scratch.path() / "out/metrics.csv")
            .starts_with("mode,round,clients,examples,train_loss,loss,pearson,spearman,mse,mae,bytes_up"));

  const auto lines = typed.predict({"--adapter", "out/adapter", "--file", "pairs.csv", "--text-column", "first",
                                    "--text-pair-column", "second", "--label-column", "score", "--metric", "mae"});
  REQUIRE(lines.size() == 37);
  CHECK(lines[0]["prediction"].get<double>() < lines[1]["prediction"].get<double>());
  CHECK(lines[0]["logits"] == Json::array({lines[0]["prediction"]}));
  for (const char* field : {"pearson", "spearman", "mse", "mae", "loss"}) CHECK(lines[36][field] == result[field]);

  // Merged, it is a checkpoint whose config.json says what it predicts.
  const Finished merge =
      run_program(typed.scratch.path(), "merge", {"--model", stories, "--adapter", "out/adapter", "--out", "merged"});
  INFO(merge.err);
  REQUIRE(merge.status == 0);
  CHECK(typed.read_json("merged/config.json")["problem_type"] == "regression");
}

TEST_CASE("an adapter, or what it was merged into, says whether its texts came in pairs") {
  const Typed typed;
  const std::string said = " was trained on pairs of texts, here each example has one text";
  REQUIRE(typed.regression("pairs", {"--rounds", "1"}).status == 0);
  const auto predict = [&](Typed::Words more, bool pairs) {
    more.insert(more.end(), {"--file", "pairs.csv", "--text-column", "first"});
    if (pairs) more.insert(more.end(), {"--text-pair-column", "second"});
    const Finished run = run_program(typed.scratch.path(), "predict", more);
    CHECK(run.status == 0);
    return run.err;
  };
  const Typed::Words adapted = {"--model", stories, "--adapter", "pairs/adapter"};
  CHECK_FALSE(has(predict(adapted, true), "trained on"));
  CHECK(has(predict(adapted, false), "pairs/adapter" + said));

  REQUIRE(
      run_program(typed.scratch.path(), "merge", {"--model", stories, "--adapter", "pairs/adapter", "--out", "merged"})
          .status == 0);
  CHECK_FALSE(has(predict({"--model", "merged"}, true), "trained on"));
  CHECK(has(predict({"--model", "merged"}, false), "merged" + said));

  const Finished again = typed.federation("pairs.csv", "again",
                                          {"--problem-type", "regression", "--text-column", "first", "--label-column",
                                           "score", "--adapter", "pairs/adapter", "--rounds", "1"});
  CHECK(again.status == 0);
  CHECK(has(again.out + again.err, said));
  const Finished anew = typed.federation(
      "pairs.csv", "anew", {"--model", "merged", "--text-column", "first", "--label-column", "score", "--rounds", "1"});
  CHECK(anew.status == 0);
  CHECK(has(anew.out, "note: merged" + said));
}

TEST_CASE("several numbers at once, and a run of them that is stopped and goes on") {
  const Typed typed;
  const Typed::Words two = {"--label-column", "score,other"};
  REQUIRE(typed.regression("whole", two).status == 0);
  Typed::Words half = two, rest = two;
  half.insert(half.end(), {"--rounds", "2"});
  rest.push_back("--resume");
  REQUIRE(typed.regression("halves", half).status == 0);
  REQUIRE(typed.regression("halves", rest).status == 0);
  CHECK(typed.digest("halves") == typed.digest("whole"));
  CHECK(typed.read_json("whole/summary.json")["config"]["labels"] == Json({"score", "other"}));

  // The adapter knows which output is which: columns in another order find theirs.
  const auto measured = [&](const std::string& columns) {
    return typed
        .predict({"--adapter", "whole/adapter", "--file", "pairs.csv", "--text-column", "first", "--text-pair-column",
                  "second", "--label-column", columns})
        .back();
  };
  const Json right = typed.read_json("whole/summary.json")["federated"];
  CHECK(measured("score,other")["mse"] == right["mse"]);
  for (const char* field : {"mse", "pearson"}) CHECK(measured("other,score")[field] == right[field]);

  // Another metric is measured where the run stands.
  rest.insert(rest.end(), {"--metric", "mae"});
  REQUIRE(typed.regression("halves", rest).status == 0);
  CHECK(typed.read_json("halves/summary.json")["federated"]["mae"] > 0);
}

TEST_CASE("sets of labels are the same from arrays and from columns of 0 and 1, on any number of threads") {
  const Typed typed;
  REQUIRE(
      typed.federation("arrays.jsonl", "arrays", {"--problem-type", "multi-label", "--label-column", "tags"}).status ==
      0);
  const Typed::Words columns = {"--problem-type", "multi_label_classification", "--label-column", "animals,money"};
  REQUIRE(typed.federation("flags.csv", "flags", columns).status == 0);
  CHECK(typed.digest("flags") == typed.digest("arrays"));
  Typed::Words threads = columns;
  threads.insert(threads.end(), {"--threads", "3"});
  REQUIRE(typed.federation("flags.csv", "threads", threads).status == 0);
  CHECK(typed.digest("threads") == typed.digest("arrays"));

  const Json result = typed.read_json("arrays/summary.json")["federated"];
  for (const char* field : {"micro_f1", "macro_f1", "subset_accuracy", "loss"}) CHECK(result[field].is_number());
  const auto lines = typed.predict({"--adapter", "arrays/adapter", "--file", "arrays.jsonl", "--label-column", "tags"});
  REQUIRE(lines.size() == 37);
  CHECK(lines[36]["micro_f1"] == result["micro_f1"]);
  CHECK(lines[36]["labels"] == Json({"animals", "money"}));
  for (std::size_t i = 0; i < 36; ++i)
    for (std::size_t label = 0; label < 2; ++label) {
      const double logit = lines[i]["logits"][label].get<double>();
      CHECK(lines[i]["probabilities"][label].get<double>() ==
            doctest::Approx(1 / (1 + std::exp(-logit))).epsilon(1e-5));
      const Json& labels = lines[i]["labels"];
      CHECK((std::find(labels.begin(), labels.end(), label == 0 ? "animals" : "money") != labels.end()) == (logit > 0));
    }

  REQUIRE(
      run_program(typed.scratch.path(), "merge", {"--model", stories, "--adapter", "arrays/adapter", "--out", "merged"})
          .status == 0);
  CHECK(typed.read_json("merged/config.json")["problem_type"] == "multi_label_classification");

  // A label that no text has is still one.
  REQUIRE(
      typed.federation("flags.csv", "never", {"--problem-type", "multi-label", "--label-column", "animals,money,never"})
          .status == 0);
  CHECK(typed.read_json("never/summary.json")["config"]["labels"].size() == 3);

  // One column is one label, which a text has or has not.
  const Finished one =
      typed.federation("flags.csv", "one", {"--problem-type", "multi-label", "--label-column", "money"});
  INFO(one.err);
  REQUIRE(one.status == 0);
  CHECK_FALSE(has(one.out, "nothing to tell apart"));
  CHECK(typed.read_json("one/summary.json")["config"]["labels"] == Json({"money"}));
  const auto flags = typed.predict({"--adapter", "one/adapter", "--file", "flags.csv", "--label-column", "money"});
  CHECK(flags.back()["micro_f1"] == typed.read_json("one/summary.json")["federated"]["micro_f1"]);
  CHECK(flags[0]["probabilities"].size() == 1);
}

TEST_CASE("measures of one label: Matthews, and F1 of the positive one") {
  const Typed typed;
  const Finished run =
      typed.federation("labels.csv", "out", {"--metric", "matthews,f1", "--positive-label", "animals"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(has(run.out, ", Matthews "));
  CHECK(has(run.out, ", F1 of animals "));
  CHECK(read_text(typed.scratch.path() / "out/metrics.csv").find("accuracy,loss,macro_f1,matthews,f1,bytes_up") !=
        std::string::npos);
  const Json result = typed.read_json("out/summary.json")["federated"];
  const auto lines = typed.predict({"--adapter", "out/adapter", "--file", "labels.csv", "--label-column", "label",
                                    "--metric", "f1,matthews", "--positive-label", "animals"});
  const Json& confusion = lines.back()["confusion"];
  const double hits = confusion[0][0], wrong = confusion[0][1].get<double>() + confusion[1][0].get<double>();
  CHECK(lines.back()["f1"] == 2 * hits / (2 * hits + wrong));
  CHECK(lines.back()["f1"] == result["f1"]);
  CHECK(lines.back()["matthews"] == result["matthews"]);

  // F1 of another label has no place in the same column of a run that goes on.
  const auto resume = [&](Typed::Words more) {
    more.insert(more.begin(), {"--resume", "--out", "out", "--rounds", "5"});
    return run_program(typed.scratch.path(), "federation", more);
  };
  const Finished other = resume({"--positive-label", "money"});
  CHECK(other.status == 1);
  CHECK(has(other.err, "field positive_label] expected \"animals\", which f1 in the rows there is of"));
  CHECK(resume({"--positive-label", "animals"}).status == 0);
  REQUIRE(typed.federation("labels.csv", "second", {"--metric", "f1"}).status == 0);
  for (const Typed::Words& more : {Typed::Words{"--metric", "matthews", "--rounds", "5"},
                                   Typed::Words{"--metric", "f1", "--positive-label", "animals", "--rounds", "6"}}) {
    Typed::Words all = {"--resume", "--out", "second"};
    all.insert(all.end(), more.begin(), more.end());
    REQUIRE(run_program(typed.scratch.path(), "federation", all).status == 0);
  }
  std::istringstream rows(read_text(typed.scratch.path() / "second/metrics.jsonl"));
  int measured = 0;
  for (std::string row; std::getline(rows, row);) measured += Json::parse(row).value("f1", Json()).is_number() ? 1 : 0;
  CHECK(measured == 1);  // the last round's

  // A constant has no correlation, which is said in words, and is null in files.
  std::string constant = "text,score\n";
  for (int i = 0; i < 12; ++i) constant += "text " + std::to_string(i) + ",3\n";
  write_text(typed.scratch.path() / "constant.csv", constant);
  const Finished flat =
      typed.federation("constant.csv", "flat", {"--problem-type", "regression", "--label-column", "score"});
  INFO(flat.err);
  REQUIRE(flat.status == 0);
  CHECK(has(flat.out, "Pearson undefined, Spearman undefined, MSE "));
  CHECK(has(flat.out, "note: all 12 examples for training have the number 3.0: there is nothing to tell apart"));
  CHECK(has(flat.out, "note: all 12 examples for testing have the number 3.0: Pearson and Spearman are undefined"));
  CHECK(has(flat.out, " for 1 number; initialised"));
  CHECK(typed.read_json("flat/summary.json")["federated"]["pearson"].is_null());
}

TEST_CASE("what does not go together is refused by name") {
  const Typed typed;
  const auto refuses = [&](const std::string& table, Typed::Words more, int status, const std::string& part) {
    const Finished run = typed.federation(table, "refused", std::move(more));
    INFO(run.err);
    CHECK(run.status == status);
    CHECK(has(run.err, part));
  };
  refuses("labels.csv", {"--problem-type", "ranking"}, 2, "single-label, multi-label or regression");
  refuses("labels.csv", {"--problem-type", "regression"}, 1,
          "line 2, column label] expected a finite number, got 'animals'");
  refuses("labels.csv", {"--problem-type", "multi-label"}, 1, "--label-separator");
  refuses("flags.csv", {"--label-column", "animals,money"}, 1, "; --problem-type multi-label takes columns of 0 and 1");
  refuses("arrays.jsonl", {"--label-column", "tags"}, 1, "got an array; --problem-type multi-label takes arrays");
  refuses("labels.csv", {"--label-separator", ";"}, 2, "--label-separator] expected --problem-type multi-label");
  refuses("labels.csv", {"--metric", "pearson"}, 2,
          "federation: [--metric] expected one of accuracy, loss, macro_f1, f1, matthews");
  refuses("labels.csv", {"--positive-label", "money"}, 2, "--metric f1 with it");
  refuses("labels.csv", {"--metric", "f1", "--positive-label", "plants"}, 2, "'animals', 'money'");
  refuses("pairs.csv", {"--text-column", "first", "--label-column", "score", "--metric", "f1"}, 2, "--positive-label");
  refuses("pairs.csv", {"--text-column", "first", "--label-column", "second"}, 1, "at least two labels");
  const Finished numbers =
      typed.federation("pairs.csv", "names", {"--text-column", "first", "--label-column", "score"});
  CHECK(numbers.status == 0);
  CHECK(has(numbers.out, "note: the labels are numbers, which are taken for names"));

  // What an adapter is for is said to be so.
  REQUIRE(typed.regression("regression").status == 0);
  const Typed::Words adapted = {"--adapter", "regression/adapter", "--label-column", "label"};
  refuses("labels.csv", adapted, 1, "got 'animals'; regression is what the adapter regression/adapter is for");
  Typed::Words labels = adapted;
  labels.insert(labels.end(), {"--problem-type", "single-label"});
  const std::string says = "[--problem-type] expected regression, which the adapter regression/adapter is for";
  refuses("labels.csv", labels, 2, says);
  labels.insert(labels.end(), {"--model", stories, "--file", "labels.csv"});
  CHECK(has(run_program(typed.scratch.path(), "predict", labels).err, says));
  const auto predict = [&](const std::string& table, const std::string& column) {
    return run_program(typed.scratch.path(), "predict",
                       {"--model", stories, "--adapter", "names/adapter", "--file", table, "--label-column", column})
        .err;
  };
  CHECK(has(predict("flags.csv", "animals,money"), "; --problem-type multi-label takes columns"));
  CHECK(has(predict("arrays.jsonl", "tags"), "; --problem-type multi-label takes arrays"));
}

TEST_CASE("the public case: macro F1 of a table that lacks classes") {
  const std::filesystem::path cases =
      std::filesystem::path(FEDLORA_TEST_DIR) / "golden/public_cases/macro_f1_of_absent_classes";
  const TemporaryDirectory scratch;
  for (const char* table : {"test.csv", "one_class.csv"}) {
    CAPTURE(std::string(table));
    const Finished run = run_program(
        scratch.path(), "predict",
        {"--model", (cases / "base").string(), "--file", (cases / table).string(), "--label-column", "label"});
    INFO(run.err);
    REQUIRE(run.status == 0);
    const Json last = Json::parse(run.out.substr(run.out.rfind('\n', run.out.size() - 2) + 1));
    CHECK(last["accuracy"] == 1.0);
    CHECK(last["macro_f1"] == 1.0);
  }
}

}  // namespace fedlora::tests
