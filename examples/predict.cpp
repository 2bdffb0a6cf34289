// SPDX-License-Identifier: Apache-2.0
// fedlora-predict: a text in, a JSON object out, a line each.
//
// A classifier gives {"label": name, "logits": […]}, a language model {"nll": mean per predicted token in nats, "tokens":
// predicted tokens}; a text of a single token predicts nothing: {"nll": null, "tokens": 0}. With --label-column the last
// line is {"accuracy", "confusion" ([true][predicted]), "examples", "labels", "loss", "macro_f1"}, and the confusion matrix
// goes to standard error as a table.
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "backend.hpp"
#include "command_line.hpp"
#include "cuda/on_cuda.hpp"
#include "fedlora/core/parallel.hpp"
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
  if (!columns.label.empty() || !columns.text_pair.empty())
    fail<UsageError>("--file", "a table (.csv, .tsv or .jsonl) for columns", file);
  Bytes bytes = file == "-" ? bytes_of(std::string(std::istreambuf_iterator<char>(std::cin), {}), "standard input")
                            : map_file(file);
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
  CLI::App app("Reads texts and writes a JSON object per text: logits and label, or for a language model nll and tokens.",
               "fedlora-predict");
  set_conventions(app);
  PredictorOptions options;
  std::string file, text_column = "text";
  TableColumns columns;
  app.add_option("--model", options.model, "Directory or org/name in the Hugging Face cache")->required();
  app.add_option("--adapter", options.adapter, "PEFT adapter");
  app.add_option("--file", file, "Table (.csv, .tsv, .jsonl), or any other file with a text per line; - is standard input")
      ->required();
  app.add_option("--text-column", text_column, "Name, or number from 1 without a header; several, comma between, are joined")
      ->capture_default_str();
  app.add_option("--text-pair-column", columns.text_pair, "The second text of a pair");
  app.add_option("--label-column", columns.label, "End with accuracy, macro F1 and confusion matrix");
  app.add_option("--max-tokens", options.max_tokens, "Longer texts are cut; 0: at the model's own limit")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--pooling", options.pooling, "Row that stands for a text")
      ->check(CLI::IsMember({"family", "cls", "last", "mean"}))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "0: one per processor; " + cuda_threads_help)
      ->check(at_least(0))
      ->capture_default_str();
  declare(app, options.device, "Options");
  return run_program(app, argc, argv, [&] {
    std::ios::sync_with_stdio(false);
    check(options.device);
    if (options.device.cuda() && app.count("--threads") == 0) options.threads = cuda_threads;
    columns.text = comma_separated(text_column);
    const Table table = read_texts(file, columns);
    if (!options.adapter.empty()) options.adapter_config = read_peft_config(std::filesystem::path(options.adapter));
    const Predictor predictor = load(options);
    if (!columns.label.empty() && predictor.labels.empty())
      fail<UsageError>("--label-column", "a classifier", "a language model");
    Evaluation evaluation;
    const bool labelled = !columns.label.empty();
    for (const Json& line : predictor.predict(table, labelled ? &evaluation : nullptr)) std::cout << line.dump() << '\n';
    if (labelled) {
      std::cout << Json{{"accuracy", evaluation.accuracy}, {"macro_f1", evaluation.macro_f1},
                        {"loss", evaluation.loss},         {"examples", evaluation.examples},
                        {"labels", predictor.labels},      {"confusion", evaluation.confusion}}
                       .dump()
                << std::endl;
      std::cerr << "accuracy " << decimals(evaluation.accuracy, 4) << ", macro F1 " << decimals(evaluation.macro_f1, 4)
                << ", loss " << decimals(evaluation.loss, 4) << ", " << evaluation.examples << " texts\n"
                << confusion_table(evaluation, predictor.labels);
    }
    return 0;
  });
}
