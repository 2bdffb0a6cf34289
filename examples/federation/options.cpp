// SPDX-License-Identifier: Apache-2.0
#include "federation/options.hpp"

#include <filesystem>
#include <limits>

#include "backend.hpp"
#include "command_line.hpp"
#include "fedlora/core/parallel.hpp"

namespace fedlora::examples {

namespace {

constexpr const char* natural = "natural:";

/// Whether `path`, with or without a slash at its end, lies directly in `directory`.
bool is_inside(const std::filesystem::path& path, const std::filesystem::path& directory) {
  const std::filesystem::path whole = std::filesystem::absolute(path);
  std::error_code error;
  return std::filesystem::equivalent((whole.has_filename() ? whole : whole.parent_path()).parent_path(), directory,
                                     error);
}

CLI::Validator partition_name() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (text == "dirichlet" || text == "iid" || text == "shards") return {};
        if (text.starts_with(natural) && text != natural) return {};
        return "expected dirichlet, iid, shards or natural:COLUMN, got " + text;
      },
      "");
}

}  // namespace

std::string Options::natural_column() const { return partition.starts_with(natural) ? partition.substr(8) : ""; }

std::vector<std::string> Options::text_columns() const { return comma_separated(text_column); }

void declare(CLI::App& app, Options& o) {
  set_conventions(app);
  const auto fraction =
      number("a fraction of the clients in (0, 1]", [](double value) { return value > 0 && value <= 1; });

  app.add_option("--model", o.model, "Directory or org/name in the Hugging Face cache [the stories260K in the program]")
      ->group("Model");
  app.add_option("--adapter", o.adapter, "Start from this PEFT adapter, which decides rank, alpha and targets")
      ->group("Model");
  app.add_option("--rank", o.rank, "Rank of the low-rank terms")
      ->check(whole_between(1, 65536))
      ->capture_default_str()
      ->group("Model");
  app.add_option("--alpha", o.alpha, "Their scale is alpha / rank")
      ->check(positive())
      ->capture_default_str()
      ->group("Model");
  app.add_option("--dropout", o.dropout, "Dropout on the adapter's input [0]")->check(probability())->group("Model");
  app.add_option("--base-dropout", o.base_dropout, "Instead of every dropout in config.json")
      ->check(probability())
      ->group("Model");
  app.add_option("--targets", o.targets, "Modules to adapt: names, comma between, all-linear, or regex:PATTERN")
      ->capture_default_str()
      ->group("Model");
  app.add_option(
         "--pooling", o.pooling,
         "Row that stands for a text: the family's own, cls, last, or the mean of all [the adapter's, else family]")
      ->check(CLI::IsMember({"family", "cls", "last", "mean"}))
      ->group("Model");
  declare(app, o.device, "Model");

  app.add_option("--train", o.train, "Table: .csv, .tsv or .jsonl [the CLINC150 domains in the program]")
      ->group("Data");
  app.add_option("--test", o.test, "Table of the same form")->group("Data");
  app.add_option("--text-column", o.text_column,
                 "Name, or number from 1 without a header; several, comma between, are joined [text]")
      ->group("Data");
  declare_header(app, o.header)->group("Data");
  app.add_option("--text-pair-column", o.text_pair_column, "The second text of a pair")->group("Data");
  app.add_option(
         "--label-column", o.label_column,
         "Labels are any strings; several columns of numbers, or of 0 and 1 for a label each, comma between [label]")
      ->group("Data");
  declare(app, o.problem, "Data");
  app.add_option("--max-tokens", o.max_tokens,
                 "Longer texts are cut; 0: at the model's own limit [the adapter's limit, else 0]")
      ->check(whole_between(0, 1'000'000'000))
      ->group("Data");

  app.add_option("--clients", o.clients, "Number of clients")
      ->check(whole_between(1, 100'000'000))
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--partition", o.partition,
                 "dirichlet, iid, shards (two per client) or natural:COLUMN; the first and third go by labels, of "
                 "numbers by ten quantiles, of several labels by the rarest")
      ->check(partition_name())
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--dirichlet", o.dirichlet, "Concentration: small is skewed")
      ->check(positive())
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--cohort", o.cohort, "Fraction of the clients in a round")
      ->check(fraction)
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--rounds", o.rounds, "Rounds")
      ->check(whole_between(1, 1'000'000))
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--method", o.method, "fedavg, or fedprox: the same average with a proximal term in local training")
      ->check(CLI::IsMember({"fedavg", "fedprox"}))
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--mu", o.mu, "FedProx's pull towards the global adapter [0.01 with fedprox]")
      ->check(not_negative())
      ->group("Federation");
  app.add_option("--mode", o.mode, "What to run: all of them, or federated, centralised, local, head")
      ->check(CLI::IsMember({"all", "federated", "centralised", "local", "head"}))
      ->capture_default_str()
      ->group("Federation");
  app.add_option("--reference-epochs", o.reference_epochs,
                 "Epochs of centralised, local and head [rounds x local epochs; 3 for the data in the program]")
      ->check(whole_between(1, 1'000'000))
      ->group("Federation");

  app.add_option("--local-epochs", o.local_epochs, "Epochs of a client in a round")
      ->check(whole_between(1, 1'000'000))
      ->capture_default_str()
      ->group("Training");
  app.add_option("--local-steps", o.local_steps,
                 "Optimizer steps in a round instead; also those of an epoch of the reference runs")
      ->check(whole_between(1, 1'000'000))
      ->group("Training");
  app.add_option("--batch", o.batch, "Examples per step")
      ->check(whole_between(1, 1'000'000))
      ->capture_default_str()
      ->group("Training");
  app.add_option("--lr", o.lr, "AdamW's learning rate")->check(positive())->capture_default_str()->group("Training");
  app.add_option("--head-lr", o.head_lr, "The same in the run that trains the head alone")
      ->check(positive())
      ->capture_default_str()
      ->group("Training");
  app.add_option("--lr-schedule", o.lr_schedule, "Over the rounds (reference runs: epochs)")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str()
      ->group("Training");
  app.add_option("--weight-decay", o.weight_decay, "AdamW's weight decay")
      ->check(not_negative())
      ->capture_default_str()
      ->group("Training");
  app.add_option("--seed", o.seed, "Of everything random")
      ->check(whole_between(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->group("Training");
  app.add_option("--threads", o.threads, "Results do not depend on it; 0: one per processor; " + cuda_threads_help)
      ->check(whole_between(0, 4096))
      ->capture_default_str()
      ->group("Training");

  app.add_option("--eval-every", o.eval_every, "Rounds between evaluations; local-only runs have one, at the end")
      ->check(whole_between(1, 1'000'000))
      ->capture_default_str()
      ->group("Output");
  app.add_option("--out", o.out,
                 "Directory for summary.json, metrics.csv, metrics.jsonl, adapters and the state; one that holds "
                 "another run is refused")
      ->capture_default_str()
      ->group("Output");
  app.add_flag("--resume", o.resume, "Go on where the run in --out stopped, with its options where none are given")
      ->group("Output");
  app.add_flag("--overwrite", o.overwrite, "Replace the run in --out, when the first round is done")->group("Output");
  app.add_option("--export-plan", o.export_plan, "Write what tests/golden/federation_twin.py replays")->group("Output");
  app.footer(metrics_help);
}

void complete(const CLI::App& app, Options& o) {
  const auto given = [&](const char* option) { return app.count(option) > 0; };
  const auto refuse = [](const std::string& option, const std::string& expected, const std::string& got) {
    fail<UsageError>(option, expected, got);
  };
  check(o.device);
  if (given("--train") != given("--test"))
    refuse(given("--train") ? "--test" : "--train", "a table for both --train and --test", "none");
  if (!given("--train")) {
    for (const char* option : {"--text-column", "--text-pair-column", "--label-column", "--header"})
      if (given(option)) refuse(option, "--train and --test with it", "neither");
    o.train = "embedded:clinc150/domain_train.tsv";
    o.test = "embedded:clinc150/domain_test.tsv";
    o.label_column = "domain";
  }
  if (o.text_column.empty()) o.text_column = "text";
  if (o.label_column.empty()) o.label_column = "label";
  for (const std::string& label : comma_separated(o.label_column))
    for (const std::string& text : o.text_columns())
      if (label == text || label == o.text_pair_column)
        refuse("--label-column", "another column than those of the text, which would hold the answer", label);
  const bool embedded = !given("--train") && !given("--model");
  if (!given("--model")) o.model = "embedded:stories260K";

  if (o.resume && o.overwrite) refuse("--overwrite", "to go on with a run or to replace it", "--resume too");
  if (!o.adapter.empty() && is_inside(o.adapter, o.out))
    refuse("--out", "another directory than the one that --adapter is in and would be replaced", o.out);
  if (!o.adapter.empty())
    for (const char* option : {"--rank", "--alpha", "--targets"})
      if (given(option)) refuse(option, "not to be given with --adapter, whose own configuration holds", "both");
  if (!o.natural_column().empty() && given("--clients"))
    refuse("--clients", "not to be given with --partition natural:COLUMN: every value of the column is a client",
           "both");
  if (given("--dirichlet") && o.partition != "dirichlet")
    refuse("--dirichlet", "--partition dirichlet with it", "--partition " + o.partition);
  if (given("--mu") && o.method != "fedprox") refuse("--mu", "--method fedprox with it", "--method " + o.method);
  if (o.method == "fedprox" && !given("--mu")) o.mu = 0.01;
  if (given("--local-steps") && given("--local-epochs")) refuse("--local-steps", "steps or epochs", "both");
  if (!o.export_plan.empty() && !o.runs("federated")) refuse("--export-plan", "a federated run", "--mode " + o.mode);
  if (o.reference_epochs == 0) o.reference_epochs = embedded ? 3 : o.rounds * o.local_epochs;
  o.threads = worker_count(o.device.cuda() && !given("--threads") ? cuda_threads : o.threads);
}

Json config_of(const Options& o) {
  const auto or_null = [](const auto& value) { return value ? Json(*value) : Json(nullptr); };
  const auto text = [](const std::string& value) { return value.empty() ? Json(nullptr) : Json(value); };
  return {{"model", o.model},
          {"adapter", text(o.adapter)},
          {"train", o.train},
          {"test", o.test},
          {"text_columns", o.text_columns()},
          {"text_pair_column", text(o.text_pair_column)},
          {"label_column", o.label_column},
          {"label_separator", text(o.problem.label_separator)},
          {"metric", text(o.problem.metric)},
          {"positive_label", text(o.problem.positive_label)},
          {"header", o.header},
          {"clients", o.clients},
          {"partition", o.partition},
          {"dirichlet", o.partition == "dirichlet" ? Json(o.dirichlet) : Json(nullptr)},
          {"cohort", o.cohort},
          {"rounds", o.rounds},
          {"local_epochs", o.local_epochs},
          {"local_steps", o.local_steps > 0 ? Json(o.local_steps) : Json(nullptr)},
          {"reference_epochs", o.reference_epochs},
          {"batch", o.batch},
          {"optimizer", "adamw"},
          {"lr", o.lr},
          {"head_lr", o.head_lr},
          {"lr_schedule", o.lr_schedule},
          {"weight_decay", o.weight_decay},
          {"rank", o.rank},
          {"alpha", o.alpha},
          {"dropout", o.dropout.value_or(0)},
          {"base_dropout", or_null(o.base_dropout)},
          {"targets", o.targets},
          {"method", o.method},
          {"mu", o.mu},
          {"seed", o.seed},
          {"threads", o.threads},
          {"device", o.device.kind()},
          {"dtype", o.device.dtype},
          {"cpu", o.device.cuda() ? Json(nullptr) : Json(chosen_cpu().name)},
          {"gemm", o.device.cuda() ? "cublas" : ProgramGemm<float>::name},
          {"eval_every", o.eval_every},
          {"mode", o.mode}};
}

const std::set<std::string>& may_differ() {
  // Files may be called by other names, as digests of what they hold are compared.
  static const std::set<std::string> fields = {"rounds", "reference_epochs", "threads", "eval_every",
                                               "model",  "adapter",          "train",   "test",
                                               "metric", "positive_label",   "cpu"};
  return fields;
}

}  // namespace fedlora::examples
