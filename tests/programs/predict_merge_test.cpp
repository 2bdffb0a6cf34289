// SPDX-License-Identifier: Apache-2.0
// fedlora-predict and fedlora-merge: what they write, and that base + adapter and the merged checkpoint agree.
#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <sstream>

#include "fedlora/core/shape.hpp"
#include "fedlora/io/json.hpp"
#include "program.hpp"

namespace fedlora::tests {
namespace {

namespace fs = std::filesystem;

std::vector<Json> lines_of(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

/// A directory with a tiny random model of tests/golden and a vocabulary for it: words of the table below are its
/// pieces.
std::string tiny_model(const std::string& family, const fs::path& scratch) {
  const fs::path from = fs::path(FEDLORA_TEST_DIR) / "golden/models" / family, to = scratch / family;
  fs::create_directory(to);
  for (const char* file : {"config.json", "model.safetensors"}) fs::copy_file(from / file, to / file);
  std::string vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nsat\non\nmat\npay\nbill\nof\nbank\n";
  for (int i = 14; i < 96; ++i) vocabulary += "[unused" + std::to_string(i) + "]\n";
  write_text(to / "vocab.txt", vocabulary);
  write_text(to / "tokenizer_config.json", R"({"tokenizer_class": "BertTokenizer"})");  // of whichever family it is
  return to.string();
}

/// Texts of two easily told kinds.
std::string table(int rows) {
  std::string text = "text,label\n";
  for (int i = 0; i < rows; ++i)
    text += (i % 2 == 0 ? "the cat sat on mat " : "pay the bill of the bank ") + std::to_string(i) +
            (i % 2 == 0 ? ",animals\n" : ",money\n");
  return text;
}

/// An adapter that a short federation has trained, on a tiny model of that family or, without one, on the embedded.
struct Adapted {
  TemporaryDirectory scratch;
  std::string model, adapter = (scratch.path() / "out/adapter").string(),
                     rows = (scratch.path() / "table.csv").string();

  explicit Adapted(const std::string& family = "")
      : model(family.empty() ? stories : tiny_model(family, scratch.path())) {
    write_text(rows, table(24));
    const Finished run =
        program("federation",
                {"--model",     model,  "--train",   rows,         "--test",   rows,
                 "--clients",   "2",    "--rounds",  "4",          "--batch",  "4",
                 "--lr",        "0.01", "--mode",    "federated",  "--cohort", "1",
                 "--partition", "iid",  "--targets", "all-linear", "--out",    (scratch.path() / "out").string()});
    INFO(run.err);
    REQUIRE(run.status == 0);
  }
  Finished program(const std::string& name, std::vector<std::string> arguments, const std::string& input = "") const {
    return run_program(scratch.path(), name, std::move(arguments), input);
  }
};

TEST_CASE("predict says how many texts may have been cut") {
  const Adapted adapted;
  const auto said = [&](const std::string& limit) {
    return adapted
        .program("predict",
                 {"--model", stories, "--adapter", adapted.adapter, "--file", adapted.rows, "--max-tokens", limit})
        .err;
  };
  CHECK(has(said("4"), "note: " + adapted.rows + ": 24 of the 24 texts reach the limit of 4 tokens"));
  CHECK_FALSE(has(said("0"), "limit"));
}

TEST_CASE("predict gives a line per text, and ends with measures when there are labels") {
  const Adapted adapted;
  const Finished run = adapted.program(
      "predict", {"--model", stories, "--adapter", adapted.adapter, "--file", adapted.rows, "--label-column", "label"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto lines = lines_of(run.out);
  REQUIRE(lines.size() == 25);
  for (std::size_t i = 0; i < 24; ++i) {
    REQUIRE(lines[i]["logits"].size() == 2);
    const bool money = lines[i]["logits"][1].get<double>() > lines[i]["logits"][0].get<double>();
    CHECK(lines[i]["label"] == (money ? "money" : "animals"));
  }
  const Json summary = Json::parse(read_text(adapted.scratch.path() / "out/summary.json"));
  CHECK(lines[24]["accuracy"] == summary["federated"]["accuracy"]);
  CHECK(lines[24]["macro_f1"] == summary["federated"]["macro_f1"]);
  CHECK(lines[24]["labels"] == Json({"animals", "money"}));
  Index counted = 0;
  for (const auto& row : lines[24]["confusion"])
    for (const auto& cell : row) counted += cell.get<Index>();
  CHECK(counted == 24);
}

TEST_CASE("the merged checkpoint is a classifier of its own with the same logits") {
  const std::map<std::string, std::string> architectures = {{"", "LlamaForSequenceClassification"},
                                                            {"bert", "BertForSequenceClassification"},
                                                            {"distilbert", "DistilBertForSequenceClassification"},
                                                            {"roberta", "RobertaForSequenceClassification"}};
  for (const auto& family : architectures) {
    const std::string& expected = family.second;
    CAPTURE(expected);
    const Adapted adapted(family.first);
    const std::string merged = (adapted.scratch.path() / "merged").string();
    const Finished merge =
        adapted.program("merge", {"--model", adapted.model, "--adapter", adapted.adapter, "--out", merged});
    INFO(merge.err);
    REQUIRE(merge.status == 0);
    const Json config = Json::parse(read_text(fs::path(merged) / "config.json"));
    CHECK(config["architectures"] == Json({expected}));
    CHECK(config["id2label"] == Json({{"0", "animals"}, {"1", "money"}}));
    CHECK(config["label2id"] == Json({{"animals", 0}, {"money", 1}}));

    const std::string texts = "the cat\npay the bill\n";
    const auto apart = lines_of(
        adapted.program("predict", {"--model", adapted.model, "--adapter", adapted.adapter, "--file", "-"}, texts).out);
    const auto together = lines_of(adapted.program("predict", {"--model", merged, "--file", "-"}, texts).out);
    REQUIRE(apart.size() == 2);
    REQUIRE(together.size() == 2);
    CHECK(apart[0]["logits"] != apart[1]["logits"]);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(together[i]["label"] == apart[i]["label"]);
      for (std::size_t j = 0; j < 2; ++j)
        CHECK(std::abs(together[i]["logits"][j].get<double>() - apart[i]["logits"][j].get<double>()) < 1e-5);
    }
    const Finished onto_itself =
        adapted.program("merge", {"--model", merged, "--adapter", adapted.adapter, "--out", merged, "--overwrite"});
    const Finished again =
        adapted.program("merge", {"--model", adapted.model, "--adapter", adapted.adapter, "--out", merged});
    CHECK(again.status == 1);
    CHECK(again.err.find("a new or an empty directory (--out); --overwrite replaces") != std::string::npos);
    CHECK(onto_itself.status == 1);
    CHECK(onto_itself.err.find("another directory than the base model's") != std::string::npos);
    const Finished onto_adapter = adapted.program(
        "merge", {"--model", adapted.model, "--adapter", adapted.adapter, "--out", adapted.adapter, "--overwrite"});
    CHECK(onto_adapter.status == 1);
    CHECK(has(onto_adapter.err, "transformers would apply the one there to the merged checkpoint, a second time"));
    CHECK_FALSE(fs::exists(fs::path(adapted.adapter) / "config.json"));
  }
}

TEST_CASE("training goes on from an adapter, unless the data has a label that its head lacks") {
  const Adapted adapted;
  const auto federation = [&] {
    return adapted.program(
        "federation", {"--adapter", adapted.adapter, "--train", adapted.rows, "--test", adapted.rows, "--clients", "2",
                       "--rounds", "1", "--partition", "iid", "--mode", "federated", "--out", "again"});
  };
  CHECK(federation().status == 0);
  write_text(adapted.rows, table(24) + "a third kind,plants\n");
  const Finished run = federation();
  INFO(run.err);
  CHECK(run.status == 1);
  CHECK(run.err.find("table.csv") != std::string::npos);
  CHECK(run.err.find("labels of the head in") != std::string::npos);
}

TEST_CASE("the loop of the README runs") {
  const TemporaryDirectory scratch;
  const std::string rows = (scratch.path() / "rows.csv").string();
  write_text(rows, table(240));
  const Finished run = run_program(scratch.path(), "quickstart", {tiny_model("bert", scratch.path()), rows, rows});
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(run.out.find("round 20: accuracy ") != std::string::npos);
  CHECK(fs::exists(scratch.path() / "quickstart-adapter/adapter_model.safetensors"));
  CHECK(run_program(scratch.path(), "quickstart", {}).status == 2);
}

TEST_CASE("a language model gives the mean negative log-likelihood of predicted tokens") {
  const TemporaryDirectory scratch;
  const Finished run =
      run_program(scratch.path(), "predict", {"--model", stories, "--file", "-"}, "Once upon a time\n\nzxqj wvk\n");
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto lines = lines_of(run.out);
  REQUIRE(lines.size() == 3);
  CHECK(lines[0]["tokens"] == 4);
  CHECK(lines[0]["nll"].get<double>() < 0.2);  // the model has seen little else
  CHECK(lines[1] == Json({{"nll", nullptr}, {"tokens", 0}}));
  CHECK(lines[2]["nll"].get<double>() > 2.0);
}

TEST_CASE("what cannot be predicted is an error") {
  const TemporaryDirectory scratch;
  const auto predict = [&](std::vector<std::string> arguments) {
    return run_program(scratch.path(), "predict", std::move(arguments), "text\n");
  };
  const std::string bert = std::string(FEDLORA_TEST_DIR) + "/golden/models/bert";
  const Finished neither = predict({"--model", bert, "--file", "-"});
  CHECK(neither.status == 1);
  CHECK(neither.err.find("config.json, field architectures]") != std::string::npos);
  CHECK(predict({"--file", "-"}).status == 2);
  CHECK(predict({"--model", stories, "--file", "-", "--label-column", "label"}).status == 2);
  CHECK(predict({"--model", stories, "--file", "/no/such/file"}).err.find("/no/such/file") != std::string::npos);
  for (const char* table : {"texts.txt", "table.csv", "table.tsv", "table.jsonl"}) {
    write_text(scratch.path() / table, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 711396\n");
    for (const Finished& run : {predict({"--model", stories, "--file", table}),
                                run_program(scratch.path(), "federation", {"--train", table, "--test", table})}) {
      CHECK(run.status == 1);
      CHECK(run.err.find(std::string(table) + "] expected the file itself, got a Git LFS pointer") !=
            std::string::npos);
    }
  }
  const Finished merge = run_program(scratch.path(), "merge", {"--model", stories, "--adapter", stories, "--out", "x"});
  CHECK(merge.status == 1);
  CHECK(merge.err.find("adapter_config.json") != std::string::npos);
}

}  // namespace
}  // namespace fedlora::tests
