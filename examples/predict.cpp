// SPDX-License-Identifier: Apache-2.0
// fedlora-predict: a text in, a JSON object out, a line each.
//
// A classifier gives {"label": name, "logits": […]}; for regression {"prediction": number, or numbers of several
// outputs, "logits"}; for multi-label {"labels": [those above one half], "probabilities": […], "logits"}. A language
// model gives {"nll": mean per predicted token in nats, "tokens": predicted tokens}; a text of a single token predicts
// nothing: {"nll": null, "tokens": 0}. With --label-column the last line holds the measures by name, "loss",
// "examples", "labels" and, where a text has one label, "confusion" ([true][predicted]), which also goes to standard
// error as a table.
#include <algorithm>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "backend.hpp"
#include "command_line.hpp"
#include "cuda/on_cuda.hpp"
#include "fedlora/core/parallel.hpp"
#include "fedlora/data/table_notes.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/report/text_table.hpp"
#include "predict/predictor.hpp"

namespace {

using namespace fedlora;
using namespace fedlora::examples;

/// A table, or any other file as one text per line; "-" is standard input.
Table read_texts(const std::string& file, const TableColumns& columns) {
  for (const char* extension : {".csv", ".tsv", ".jsonl"})
    if (file.ends_with(extension)) return read_table(std::filesystem::path(file), columns);
  if (!columns.label.empty() || !columns.labels.empty() || !columns.targets.empty() || !columns.text_pair.empty())
    fail<UsageError>("--file", "a table (.csv, .tsv or .jsonl) for columns", file);
  Bytes bytes = file == "-" ? bytes_of(std::string(std::istreambuf_iterator<char>(std::cin), {}), "standard input")
                            : map_downloaded_file(file);
  Table table;
  table.source = bytes.name;
  for (std::string_view rest = bytes.text(); !rest.empty();) {
    const std::size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    table.text.emplace_back(line);
    table.line.push_back(table.size());
  }
  return table;
}

/// Calls the table's labels by the names of the head's rows (data/labels.hpp), and says so where names alone did not
/// tell. A positive label that is one of the table's is called as its row too. \throws FormatError naming the line of a
/// label that has no row.
void name_labels(Table& table, const std::vector<std::string>& head, std::string& positive_label) {
  const std::vector<std::string> labels = table.label_names();
  if (labels.empty()) return;
  LabelMatch match = match_labels(head, labels);
  if (!match && table.label_sets.empty()) table.label_ids(head);
  if (!match) table.label_set_ids(head);
  if (match.rule != LabelRule::name)
    std::cerr << "note: labels of " << table.source << ": " << label_rows_text(match, head, labels) << '\n';
  match.names = head;
  table.name_labels(labels, match);
  if (const auto found = std::find(labels.begin(), labels.end(), positive_label); found != labels.end())
    positive_label = head[static_cast<std::size_t>(match.rows[static_cast<std::size_t>(found - labels.begin())])];
}

std::string confusion_table(const Evaluation& evaluation, const std::vector<std::string>& labels) {
  std::vector<std::string> header = {"true \\ predicted"};
  header.insert(header.end(), labels.begin(), labels.end());
  TextTable table(std::move(header));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    std::vector<std::string> row = {labels[i]};
    for (const Index count : evaluation.confusion[i]) row.push_back(std::to_string(count));
    table.add(std::move(row));
  }
  return table.text();
}

/// The last line, and the same for a person.
void write_measures(const Evaluation& evaluation, const Measures& measures, const std::vector<std::string>& labels) {
  Json last = {{"examples", evaluation.examples}, {"labels", labels}};
  for (const std::string& field : measures.fields()) last[field] = Measures::json(measures.value(evaluation, field));
  if (!evaluation.confusion.empty()) last["confusion"] = evaluation.confusion;
  std::cout << last.dump() << std::endl;
  std::cerr << measures.line(last) << ", " << evaluation.examples << " texts\n";
  if (!evaluation.confusion.empty()) std::cerr << confusion_table(evaluation, labels);
}

template <class T>
Predictor load_on_cpu(const PredictorOptions& options) {
  using B = ProgramBackend<T>;
  return with_pretrained(B(), model_files(options.model), [&]<class Arch>(Pretrained<Arch, B> base) {
    return make_predictor(std::move(base), options);
  });
}

Predictor load(const PredictorOptions& options) {
  if (options.device.cuda())
    return with_cuda_type(options.device, [&]<class T>(T) { return load_on_cuda<T>(options); });
  return options.device.dtype == "f64" ? load_on_cpu<double>(options) : load_on_cpu<float>(options);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Reads texts and writes a JSON object per text: logits and label, labels with probabilities, or a number; for a "
      "language\n"
      "model nll and tokens.",
      "fedlora-predict");
  set_conventions(app);
  PredictorOptions options;
  std::string file, text_column = "text", label_column, header = "auto";
  TableColumns columns;
  app.add_option("--model", options.model, "Directory or org/name in the Hugging Face cache")->required();
  app.add_option("--adapter", options.adapter, "PEFT adapter");
  app.add_option("--file", file,
                 "Table (.csv, .tsv, .jsonl), or any other file with a text per line; - is standard input")
      ->required();
  app.add_option("--text-column", text_column,
                 "Name, or number from 1 without a header; several, comma between, are joined")
      ->capture_default_str();
  declare_header(app, header);
  app.add_option("--text-pair-column", columns.text_pair, "The second text of a pair");
  app.add_option("--label-column", label_column,
                 "End with measures; of numbers or labels in columns of their own several, comma between");
  declare(app, options.problem, "Options");
  app.footer(metrics_help);
  app.add_option("--max-tokens", options.max_tokens,
                 "Longer texts are cut; 0: at the model's own limit [the adapter's limit, else 0]")
      ->check(whole_between(0, 1'000'000'000));
  app.add_option("--pooling", options.pooling, "Row that stands for a text [the adapter's, else the family's own]")
      ->check(CLI::IsMember({"family", "cls", "last", "mean"}));
  app.add_option("--threads", options.threads, "0: one per processor; " + cuda_threads_help)
      ->check(whole_between(0, 4096))
      ->capture_default_str();
  declare(app, options.device, "Options");
  return run_program(app, argc, argv, [&] {
    std::ios::sync_with_stdio(false);
    check(options.device);
    if (options.device.cuda() && app.count("--threads") == 0) options.threads = cuda_threads;
    columns.text = comma_separated(text_column);
    columns.header = table_header_of(header);
    if (!options.adapter.empty()) {
      options.adapter_config = read_peft_config(std::filesystem::path(options.adapter));
      check_problem_type(options.problem, options.adapter, *options.adapter_config);
    }
    const Predictor predictor = load(options);
    const bool labelled = !label_column.empty();
    if (predictor.labels.empty())
      for (const char* option : {"--label-column", "--problem-type"})
        if (app.count(option) > 0) fail<UsageError>(option, "a classifier", "a language model");
    if (!labelled && !options.problem.metric.empty()) fail<UsageError>("--metric", "--label-column with it", "none");
    if (!predictor.labels.empty()) set_label_columns(predictor.problem_type, label_column, options.problem, columns);
    Table table = read_answers(predictor.problem_type, label_column, [&] { return read_texts(file, columns); });
    Evaluation evaluation;
    for (const std::string& note : predictor.notes) std::cerr << note_line(note) << '\n';
    if (labelled && predictor.problem_type != ProblemType::regression)
      name_labels(table, predictor.labels, options.problem.positive_label);
    if (const std::string note = one_label_note(table); !note.empty())
      std::cerr << note_line(table.source + ": " + note) << '\n';
    if (const std::string note = place_targets(table, columns.targets, predictor.labels); !note.empty())
      std::cerr << note_line(note) << '\n';
    const Measures measures(predictor.problem_type, options.problem, predictor.labels);
    std::vector<std::string> notes;
    const std::vector<Json> lines = predictor.predict(table, labelled ? &evaluation : nullptr, notes);
    for (const std::string& note : notes) std::cerr << note_line(table.source + ": " + note) << '\n';
    for (const Json& line : lines) std::cout << line.dump() << '\n';
    if (labelled) write_measures(evaluation, measures, predictor.labels);
    return 0;
  });
}
