// SPDX-License-Identifier: Apache-2.0
// Labels, pooling and adapters made elsewhere, through the programs: federation, predict and merge read one model and
// one file alike, and as transformers and peft do (tests/golden/public_cases).
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "fedlora/io/json.hpp"
#include "program.hpp"

namespace fedlora::tests {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

fs::path public_case(const std::string& name) { return fs::path(FEDLORA_TEST_DIR) / "golden" / "public_cases" / name; }

std::vector<Json> objects_of(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

/// A copy of a classifier whose rows, and the labels in whose tables, are called as a test wants them. The tables hold
/// what the untrained checkpoint itself says, so that accuracy is 1 when each label has found its row.
struct TrainedHead {
  TemporaryDirectory scratch;
  fs::path base = scratch.path() / "base";
  const Json right = Json::parse(read_text(public_case(folder) / "reference.json"))["test"];
  static constexpr const char* folder = "labels_numbered_past_the_trained_head/label_order_nli";

  TrainedHead(const std::vector<std::string>& rows, const std::vector<std::string>& labels) {
    fs::copy(public_case(folder) / "base", base);
    Json config = Json::parse(read_text(base / "config.json"));
    config["id2label"] = Json::object();
    for (std::size_t i = 0; i < rows.size(); ++i) config["id2label"][std::to_string(i)] = rows[i];
    write_text(base / "config.json", config.dump());
    call(labels);
  }

  /// Writes the tables with these labels, by the number of the row that they belong to; without the rows of an empty
  /// one.
  void call(const std::vector<std::string>& labels) const {
    const std::vector<std::string> original = {"contradiction", "neutral", "entailment"};
    for (const char* file : {"train.csv", "test.csv"}) {
      std::istringstream lines(read_text(public_case(folder) / file));
      std::string line, text = "text,label\n";
      std::getline(lines, line);
      while (std::getline(lines, line)) {
        if (line.ends_with('\r')) line.pop_back();
        const std::size_t comma = line.rfind(',');
        for (std::size_t i = 0; i < original.size(); ++i)
          if (line.substr(comma + 1) == original[i] && !labels[i].empty())
            text += line.substr(0, comma + 1) + labels[i] + "\n";
      }
      write_text(scratch.path() / file, text);
    }
  }

  Finished run(const std::string& program, Arguments arguments) const {
    return run_program(scratch.path(), program, std::move(arguments));
  }
  /// A federation that changes nothing.
  Finished federation(const std::string& out, Arguments more = {}) const {
    Arguments all = {"--model",  base.string(), "--train",   "train.csv", "--test",      "test.csv",
                     "--mode",   "federated",   "--clients", "3",         "--cohort",    "1",
                     "--rounds", "1",           "--threads", "1",         "--partition", "iid",
                     "--lr",     "1e-12",       "--out",     out};
    if (more.empty() || more[0] != "--adapter") all.insert(all.end(), {"--targets", "query,value"});
    all.insert(all.end(), more.begin(), more.end());
    return run("federation", all);
  }
  Finished predict(Arguments more = {}) const {
    Arguments all = {"--model", base.string(), "--file", "test.csv", "--label-column", "label"};
    all.insert(all.end(), more.begin(), more.end());
    return run("predict", all);
  }
  Json summary(const std::string& out) const { return Json::parse(read_text(scratch.path() / out / "summary.json")); }

  /// Whether a run's measures are those of the checkpoint over the test table.
  void check_right(const Json& measures) const {
    CHECK(measures["accuracy"] == 1.0);
    CHECK(std::abs(measures["loss"].get<double>() - right["loss"].get<double>()) < 1e-5);
  }
};

struct Naming {
  std::vector<std::string> rows, labels;  ///< of the head, and in the tables
  std::string note;                       ///< that the federation gives; empty: none about labels
  bool test_tells = true;               ///< whether the test table, which lacks a label, is enough for predict to know
  std::vector<std::string> names = {};  ///< of the labels in what was trained; empty: `rows`
};

}  // namespace

TEST_CASE("labels find their rows of a trained head, whatever they are called, in every program") {
  const std::vector<std::string> named = {"contradiction", "neutral", "entailment"};
  const std::vector<std::string> unnamed = {"LABEL_0", "LABEL_1", "LABEL_2"};
  for (const Naming& naming : {
           Naming{named, named, ""},
           Naming{named, {"Contradiction", "NEUTRAL", " entailment"}, "'NEUTRAL' = row 1 (neutral)"},
           Naming{named, {"0", "1", "2"}, "'1' = row 1 (neutral), '2' = row 2 (entailment)"},
           Naming{unnamed, {"0", "1", "2"}, "'1' = row 1 (LABEL_1), '2' = row 2 (LABEL_2)"},
           Naming{unnamed, {"0.0", "1.0", "2.0"}, "'2.0' = row 2 (LABEL_2)"},
           Naming{{"8", "9", "10"}, {"8", "9", "10"}, ""},
           Naming{named, {"1", "2", "3"}, "'3' = row 2 (entailment); by order", false, {"1", "2", "3"}},
           Naming{unnamed, {"8", "9", "10"}, "'10' = row 2 (LABEL_2); by order", false, {"8", "9", "10"}},
           Naming{unnamed, {"a", "b", "c"}, "'c' = row 2 (LABEL_2); by order", false, {"a", "b", "c"}},
       }) {
    CAPTURE(naming.note);
    const TrainedHead head(naming.rows, naming.labels);
    const Finished trained = head.federation("out");
    INFO(trained.err);
    REQUIRE(trained.status == 0);
    CHECK(has(trained.out, naming.note));
    CHECK(has(trained.out, "= row") == !naming.note.empty());
    head.check_right(head.summary("out")["federated"]);
    const Json names = naming.names.empty() ? naming.rows : naming.names;
    CHECK(head.summary("out")["config"]["labels"] == names);

    const Finished base = head.predict();
    INFO(base.err);
    REQUIRE(base.status == (naming.test_tells ? 0 : 1));
    if (naming.test_tells)
      head.check_right(objects_of(base.out).back());
    else
      CHECK(has(base.err, "label] expected one of '" + naming.rows[0] + "', "));

    const Finished adapted = head.predict({"--adapter", "out/adapter"});
    INFO(adapted.err);
    REQUIRE(adapted.status == 0);
    head.check_right(objects_of(adapted.out).back());
    CHECK(objects_of(adapted.out).back()["labels"] == names);

    const Finished again = head.federation("again", {"--adapter", "out/adapter"});
    INFO(again.err);
    REQUIRE(again.status == 0);
    head.check_right(head.summary("again")["federated"]);
    CHECK(head.summary("again")["config"]["labels"] == names);
  }
}

TEST_CASE("the positive label may be called as the table calls it") {
  const TrainedHead head({"contradiction", "neutral", "entailment"}, {"1", "2", "3"});
  const Finished run = head.predict({"--file", "train.csv", "--metric", "f1", "--positive-label", "2"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(has(run.err, "'2' = row 1 (neutral)"));
  CHECK(has(run.err, "F1 of neutral"));
}

TEST_CASE("a head for other labels is not taken over in silence") {
  const TrainedHead head({"contradiction", "neutral", "entailment"}, {"x", "y", "z"});
  const Finished trained = head.federation("out");
  INFO(trained.err);
  REQUIRE(trained.status == 0);
  CHECK(has(trained.out, "has it for 'contradiction', 'neutral', 'entailment', not for 'x', 'y', 'z'; initialised"));
  CHECK(has(head.predict().err, "label] expected one of 'contradiction', 'neutral', 'entailment', got "));
  const TrainedHead other({"contradiction", "neutral", "entailment"}, {"contradiction", "neutral", "entailment"});
  const Finished onto = other.federation("again", {"--adapter", (head.scratch.path() / "out/adapter").string()});
  CHECK(onto.status == 1);
  CHECK(has(onto.err, "labels of the head in "));
  CHECK(has(onto.err, "'x', 'y', 'z', got 'contradiction', 'entailment', 'neutral'"));
}

TEST_CASE("an adapter without names of its own has those of config.json, and a table need not have all labels") {
  TrainedHead head({"contradiction", "neutral", "entailment"}, {"contradiction", "neutral", "entailment"});
  REQUIRE(head.federation("out").status == 0);
  const fs::path file = head.scratch.path() / "out/adapter/adapter_model.safetensors";
  std::string bytes = read_text(file);  // as PEFT would leave it: no metadata of ours
  for (const char* key : {"id2label", "fedlora"}) {
    const std::size_t at = bytes.find(std::string("\"") + key + "\"");
    REQUIRE(at != std::string::npos);
    bytes[at + 1] = '_';
  }
  write_text(file, bytes);
  const Finished predicted = head.predict({"--adapter", "out/adapter"});
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  head.check_right(objects_of(predicted.out).back());
  head.call({"", "neutral", "entailment"});  // no row of the first kind is left
  const Finished again = head.federation("again", {"--adapter", "out/adapter"});
  INFO(again.err);
  REQUIRE(again.status == 0);
  CHECK(has(again.out, "without an example for training: 'contradiction'"));
  head.check_right(head.summary("again")["federated"]);
  CHECK(head.summary("again")["config"]["labels"] == Json({"contradiction", "neutral", "entailment"}));
}

TEST_CASE("pooling and the limit of texts go with the adapter") {
  const TrainedHead head({"contradiction", "neutral", "entailment"}, {"contradiction", "neutral", "entailment"});
  const Finished trained =
      head.federation("out", {"--pooling", "mean", "--max-tokens", "5", "--lr", "0.05", "--rounds", "3"});
  INFO(trained.err);
  REQUIRE(trained.status == 0);
  CHECK(has(trained.err, "pooling mean is kept in the metadata of the adapter's file"));
  const Json measures = head.summary("out")["federated"];
  const auto agrees = [&](const Json& line) {
    CHECK(line["accuracy"] == measures["accuracy"]);
    CHECK(std::abs(line["loss"].get<double>() - measures["loss"].get<double>()) < 1e-5);
  };
  const Finished predicted = head.predict({"--adapter", "out/adapter"});
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  CHECK(has(predicted.err, "texts reach the limit of 5 tokens"));
  CHECK(predicted.err.find("note: ") == predicted.err.rfind("note: "));
  agrees(objects_of(predicted.out).back());
  const Finished otherwise = head.predict({"--adapter", "out/adapter", "--pooling", "cls"});
  CHECK(has(otherwise.err, "was trained with pooling mean, the model here has cls"));
  CHECK(objects_of(otherwise.out).back()["loss"] != objects_of(predicted.out).back()["loss"]);
  CHECK(has(head.predict({"--adapter", "out/adapter", "--max-tokens", "8"}).err,
            "up to 5 tokens, here they are cut at 8"));

  const Finished merged =
      head.run("merge", {"--model", head.base.string(), "--adapter", "out/adapter", "--out", "merged"});
  INFO(merged.err);
  REQUIRE(merged.status == 0);
  CHECK(has(merged.err, "warning: the adapter was trained with pooling mean"));
  const Finished whole = head.run("predict", {"--model", "merged", "--file", "test.csv", "--label-column", "label"});
  INFO(whole.err);
  REQUIRE(whole.status == 0);
  agrees(objects_of(whole.out).back());

  const Finished again = head.federation("again", {"--adapter", "out/adapter"});
  INFO(again.err);
  REQUIRE(again.status == 0);
  CHECK(head.summary("again")["config"]["pooling"] == "mean");
  CHECK(head.summary("again")["config"]["max_tokens"] == 5);
  agrees(head.summary("again")["federated"]);
}

TEST_CASE("a model that sentence-transformers made for the mean is told apart") {
  const TrainedHead head({"contradiction", "neutral", "entailment"}, {"contradiction", "neutral", "entailment"});
  const auto noted = [&](const std::string& out, const Arguments& more = {}) {
    const Finished run = head.federation(out, more);
    INFO(run.err);
    REQUIRE(run.status == 0);
    return has(run.out, "made for the mean over all tokens, --pooling mean");
  };
  fs::create_directory(head.base / "1_Pooling");
  write_text(head.base / "1_Pooling/config.json", R"({"pooling_mode_mean_tokens": false})");
  CHECK_FALSE(noted("first"));
  write_text(head.base / "1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true})");
  CHECK(noted("none said"));
  CHECK_FALSE(noted("mean", {"--pooling", "mean"}));
  CHECK_FALSE(noted("own", {"--pooling", "family"}));
}

TEST_CASE("adapters of public reports are read as peft reads them") {
  for (const char* name :
       {"adapted_modules_told_by_tensors/layers_to_transform", "adapted_modules_told_by_tensors/python_regex",
        "embeddings_saved_with_adapter", "fan_in_fan_out_over_linear", "merge_without_task_type"}) {
    const std::string report = name;
    CAPTURE(report);
    const fs::path folder = public_case(report);
    const Json reference = Json::parse(read_text(folder / "reference.json"));
    const TemporaryDirectory scratch;
    std::string texts;
    for (const Json& text : reference["texts"]) texts += text.get<std::string>() + "\n";
    const auto check = [&](const Finished& predicted, double tolerance) {
      INFO(predicted.err);
      REQUIRE(predicted.status == 0);
      const auto lines = objects_of(predicted.out);
      REQUIRE(lines.size() == reference["answer"].size());
      for (std::size_t i = 0; i < lines.size(); ++i) {
        const Json& expected = reference["answer"][i];
        if (expected.is_number()) {
          CHECK(std::abs(lines[i]["nll"].get<double>() - expected.get<double>()) < tolerance);
          continue;
        }
        for (std::size_t k = 0; k < expected.size(); ++k)
          CHECK(std::abs(lines[i]["logits"][k].get<double>() - expected[k].get<double>()) < tolerance);
      }
    };
    const std::string base = (folder / "base").string(), adapter = (folder / "adapter").string();
    // transformers computes Llama's norms in float32.
    const double tolerance = report == "merge_without_task_type" ? 1e-13 : 2e-6;
    check(run_program(scratch.path(), "predict",
                      {"--model", base, "--adapter", adapter, "--file", "-", "--dtype", "f64"}, texts),
          tolerance);
    const Finished merged =
        run_program(scratch.path(), "merge", {"--model", base, "--adapter", adapter, "--out", "merged"});
    INFO(merged.err);
    REQUIRE(merged.status == 0);
    check(run_program(scratch.path(), "predict", {"--model", "merged", "--file", "-", "--dtype", "f64"}, texts), 5e-6);
  }
}

}  // namespace fedlora::tests
