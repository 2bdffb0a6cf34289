// SPDX-License-Identifier: Apache-2.0
#include "federation/inputs.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "command_line.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/data/table_notes.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/hf/tokenizer_files.hpp"
#include "fedlora/report/text_table.hpp"
#include "sha256.hpp"

namespace fedlora::examples {

namespace {

/// The digest of a base: of all its tensors' names and bytes.
std::string digest_of(const Checkpoint& checkpoint) {
  Sha256 digest;
  for (const std::string& name : checkpoint.names()) {
    digest.add(std::as_bytes(std::span<const char>(name)));
    digest.add(checkpoint.find(name)->bytes);
  }
  return digest.hex();
}

/// Digests of config.json and of the tokenizer's files, as far as they are there.
Json digests_of_files(const FileSet& model) {
  Json digests = Json::object();
  std::vector<std::string> files(std::begin(detail::tokenizer_file_names), std::end(detail::tokenizer_file_names));
  files.emplace_back("config.json");
  for (const std::string& file : files) {
    try {
      if (const auto bytes = model.open(file)) digests[file] = Sha256().add(bytes->data).hex();
    } catch (const FormatError&) {  // a stand-in for a file; whoever reads it refuses it
    }
  }
  return digests;
}

/// The names of the rows of the head that training starts from: the adapter's, else the checkpoint's. Empty: a new
/// head.
std::vector<std::string> head_labels(const std::optional<PeftConfig>& adapter, const FileSet& model,
                                     const Checkpoint& checkpoint) {
  const Json config = parse_json(model.require("config.json"));
  const std::vector<std::string> named = detail::read_id2label(config, model.path_of("config.json"));
  if (adapter && adapter->num_labels) return adapter_labels(*adapter, named);
  for (const char* weight : {"classifier.out_proj.weight", "classifier.weight", "score.weight"})
    if (const TensorView* tensor = checkpoint.find(weight);
        tensor != nullptr && tensor->shape.size() == 2 && tensor->size() > 0)
      return row_names(named, tensor->shape[0]);
  return {};
}

/// Which label is which row of that head (data/labels.hpp), and the tables' labels called by the rows' names; without
/// one, or where it is for other labels, those of the training file. \throws ConfigError when an adapter's is for
/// others.
void name_labels(Inputs& inputs, const std::vector<std::string>& head, const std::optional<PeftConfig>& adapter,
                 const Options& options) {
  const std::vector<std::string> trained = inputs.train.label_names(), tested = inputs.test.label_names();
  inputs.labels = trained;
  if (head.empty()) return;
  std::set<std::string, LabelOrder> both(trained.begin(), trained.end());
  both.insert(tested.begin(), tested.end());
  std::vector<std::string> labels(both.begin(), both.end());
  if (!inputs.train.label_columns.empty()) labels = trained;  // in the order that they were given in
  LabelMatch match = match_labels(head, labels);
  if (!match) match = match_labels(head, labels = trained);  // a label that only the test has is an error of its own
  const bool adapted = adapter && adapter->num_labels;
  if (!match && adapted && adapter->id2label.empty())  // the names may be those of another head
    match = match_labels(row_names({}, *adapter->num_labels), labels);
  if (!match) {
    if (adapted)
      fail<ConfigError>(inputs.train.source + ", column " + options.label_column,
                        "labels of the head in " + options.adapter + ": " + detail::quoted_list(head),
                        detail::quoted_list(trained));
    return;  // the model says that its head is a new one
  }
  if (match.rule == LabelRule::order && !adapted) return;  // the model says which became which
  if (match.rule != LabelRule::name || (adapted && adapter->id2label.empty()))
    inputs.notes.push_back("labels and rows of the head in " + (adapted ? options.adapter : options.model) + ": " +
                           label_rows_text(match, head, labels));
  if (adapted && !adapter->id2label.empty()) match.names = head;
  inputs.train.name_labels(labels, match);
  inputs.test.name_labels(labels, match);
  inputs.labels = match.names;
  std::vector<std::string> absent;
  const std::vector<std::string> present = inputs.train.label_names();
  for (const std::string& name : inputs.labels)
    if (std::find(present.begin(), present.end(), name) == present.end()) absent.push_back(name);
  if (!absent.empty())
    inputs.notes.push_back("labels of the head without an example for training: " + detail::quoted_list(absent));
}

/// The problem type asked for, else the adapter's, else config.json's, else what transformers makes of the number of
/// outputs: a number of one, one label of several. And what a refusal may add: who says so, where no option does.
std::pair<ProblemType, std::string> problem_type(const Options& options, const std::optional<PeftConfig>& adapter) {
  if (!options.problem.type.empty()) return {*problem_type_option(options.problem.type), ""};
  const auto is_what = [](ProblemType type) { return "; " + std::string(problem_type_name(type)) + " is what "; };
  const std::string the_adapter = "the adapter " + options.adapter + " is for";
  if (adapter && adapter->context.problem_type) {
    const ProblemType type = *adapter->context.problem_type;
    return {type, is_what(type) + the_adapter};
  }
  const FileSet files = model_files(options.model);
  const std::string where = files.path_of("config.json");
  const Json config = parse_json(files.require("config.json"));
  const auto named = problem_type_of(json_get_or<std::string>(config, "problem_type", where, ""));
  const auto outputs = adapter && adapter->num_labels ? *adapter->num_labels
                                                      : static_cast<Index>(detail::read_id2label(config, where).size());
  const ProblemType type = named.value_or(outputs == 1 ? ProblemType::regression : ProblemType::single_label);
  return {type, is_what(type) + (adapter && adapter->num_labels && !named
                                     ? the_adapter
                                     : "the checkpoint is for, --problem-type single-label takes labels")};
}

/// The names of a head's rows, `head` those of the one that is there.
void set_labels(Inputs& inputs, const std::vector<std::string>& head, const std::optional<PeftConfig>& adapter,
                const Options& options) {
  const std::string where = inputs.train.source + ", column " + options.label_column;
  if (inputs.problem_type == ProblemType::regression) {
    const std::vector<std::string> columns = comma_separated(options.label_column);
    const auto outputs = static_cast<Index>(columns.size());
    if (adapter && adapter->num_labels.value_or(outputs) != outputs)
      fail<ConfigError>(where,
                        "the " + std::to_string(*adapter->num_labels) + " numbers of the head in " + options.adapter,
                        std::to_string(outputs));
    inputs.labels = target_names(columns);
    if (head.size() != columns.size() || head == row_names({}, outputs)) return;
    inputs.labels = head;
    place_targets(inputs.test, columns, head);
    if (std::string note = place_targets(inputs.train, columns, head); !note.empty())
      inputs.notes.push_back(std::move(note));
    return;
  }
  name_labels(inputs, head, adapter, options);
  if (inputs.labels.size() < (inputs.problem_type == ProblemType::single_label ? 2 : 1))
    fail<ConfigError>(where,
                      inputs.problem_type == ProblemType::single_label
                          ? "at least two labels (with a single one every answer is right, and nothing is learned)"
                          : "at least one label",
                      inputs.labels.empty() ? "none" : "only " + detail::in_quotes(inputs.labels[0]));
}

/// What label skew goes by: labels; the quantiles of the (first) number; of a set the rarest label.
void set_groups(Inputs& inputs) {
  if (inputs.problem_type == ProblemType::single_label) {
    inputs.groups = inputs.train.label_ids(inputs.labels);
    inputs.group_names = inputs.labels;
  } else if (inputs.problem_type == ProblemType::multi_label) {
    const auto [labels, offsets] = inputs.train.label_set_ids(inputs.labels);
    inputs.groups = rarest_labels(labels, offsets, static_cast<Index>(inputs.labels.size()));
    inputs.group_names = inputs.labels;
    inputs.group_names.push_back("(none)");
  } else {
    std::vector<double> numbers;
    for (std::size_t i = 0; i < inputs.train.targets.size(); i += inputs.labels.size())
      numbers.push_back(inputs.train.targets[i]);
    inputs.groups = quantile_groups(numbers);
    std::vector<double> least(*std::max_element(inputs.groups.begin(), inputs.groups.end()) + 1, HUGE_VAL);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      double& number = least[static_cast<std::size_t>(inputs.groups[i])];
      number = std::min(number, numbers[i]);
    }
    for (const double number : least) inputs.group_names.push_back("from " + Json(number).dump());
  }
}

/// Texts in the place of labels would end in a message about thousands of labels, or in a head for them.
void refuse_exchanged_columns(const Inputs& inputs, const Options& options) {
  const auto unlikely = unlikely_labels(inputs.train);
  const std::set<std::string_view> known(inputs.labels.begin(), inputs.labels.end());
  const auto is_known = [&](const std::string& label) { return known.contains(label); };
  if (unlikely && !std::all_of(inputs.test.label.begin(), inputs.test.label.end(), is_known))
    fail<ConfigError>(inputs.train.source + ", column " + options.label_column,
                      "labels that come again in " + inputs.test.source, *unlikely);
}

/// Whether sentence-transformers made this model for the mean over all tokens, which config.json has no field for.
bool made_for_the_mean(const FileSet& model) {
  const auto file = model.open("1_Pooling/config.json");
  if (!file) return false;
  const Json json = parse_json(*file);
  return json.is_object() && json_get_or<bool>(json, "pooling_mode_mean_tokens", file->name, false);
}

LoraConfig lora_config(const Options& options, const std::optional<PeftConfig>& adapter) {
  LoraConfig lora;
  if (adapter) {
    lora = adapter->lora;
  } else {
    lora.rank = options.rank;
    lora.alpha = options.alpha;
    if (options.targets.starts_with("regex:"))
      lora.target_pattern = options.targets.substr(6);
    else
      lora.target_modules = comma_separated(options.targets);
  }
  if (options.dropout) lora.dropout = *options.dropout;
  return lora;
}

/// Deals the examples for training to clients.
void set_partition(Inputs& inputs, const Options& options) {
  set_groups(inputs);
  if (!options.natural_column().empty()) {
    auto dealt = partition_natural(inputs.train.id);
    inputs.partition = std::move(dealt.partition);
    inputs.client_names = std::move(dealt.names);
  } else if (options.partition == "iid") {
    inputs.partition = partition_iid(inputs.train.size(), {.clients = options.clients, .seed = options.seed});
  } else if (options.partition == "shards") {
    inputs.partition = partition_shards(inputs.groups, {.clients = options.clients, .seed = options.seed});
  } else {
    inputs.partition = partition_dirichlet(
        inputs.groups, {.clients = options.clients, .alpha = options.dirichlet, .seed = options.seed});
  }
}

/// What the run is recorded as.
void set_config(Inputs& inputs, const Options& options, const std::optional<PeftConfig>& adapter, const FileSet& model,
                const Checkpoint& checkpoint) {
  Json& config = inputs.config;
  config = config_of(options);
  config["clients"] = inputs.partition.empty() ? Json(nullptr) : Json(inputs.partition.size());
  config["problem_type"] = problem_type_name(inputs.problem_type);
  config["labels"] = inputs.labels;
  if (!inputs.measures.positive_label.empty()) config["positive_label"] = inputs.measures.positive_label;
  config["pooling"] = inputs.pooling ? Json(pooling_name(*inputs.pooling)) : Json("family");
  config["max_tokens"] = inputs.max_tokens;
  config["rank"] = inputs.lora.rank;
  config["alpha"] = inputs.lora.alpha;
  config["dropout"] = inputs.lora.dropout;
  if (adapter) {
    config["targets"] = nullptr;
    config["adapter_sha256"] = Sha256().add(map_file(options.adapter + "/adapter_model.safetensors").data).hex();
    config["adapter_config_sha256"] = Sha256().add(map_file(options.adapter + "/adapter_config.json").data).hex();
  }
  config["model_sha256"] = digest_of(checkpoint);
  config["model_files_sha256"] = digests_of_files(model);
  config["train_sha256"] = Sha256().add(table_file(options.train).data).hex();
  config["test_sha256"] = Sha256().add(table_file(options.test).data).hex();
}

}  // namespace

Inputs read_inputs(const Options& options) {
  Inputs inputs;
  std::optional<PeftConfig> adapter;
  if (!options.adapter.empty()) {
    adapter = read_peft_config(std::filesystem::path(options.adapter));
    if (adapter->task.value_or(TaskType::sequence_classification) != TaskType::sequence_classification)
      fail<ConfigError>(options.adapter + "/adapter_config.json, field task_type", "SEQ_CLS", "CAUSAL_LM");
    check_problem_type(options.problem, options.adapter, *adapter);
  }
  std::string said_by;
  std::tie(inputs.problem_type, said_by) = problem_type(options, adapter);
  const auto read = [&](const std::string& path, const std::string& id) {
    TableColumns columns{.text = options.text_columns(),
                         .text_pair = options.text_pair_column,
                         .id = id,
                         .header = table_header_of(options.header)};
    set_label_columns(inputs.problem_type, options.label_column, options.problem, columns);
    try {
      return read_answers(inputs.problem_type, options.label_column,
                          [&] { return read_table(table_file(path), columns); });
    } catch (const FormatError& error) {
      if (inputs.problem_type == ProblemType::single_label) throw;
      throw FormatError(error.what() + said_by);
    }
  };
  const std::string natural = options.natural_column();
  inputs.train = read(options.train, natural);
  inputs.test = read(options.test, {});
  const FileSet model = model_files(options.model);
  const Checkpoint checkpoint(model);
  set_labels(inputs, head_labels(adapter, model, checkpoint), adapter, options);
  refuse_exchanged_columns(inputs, options);
  inputs.measures = Measures(inputs.problem_type, options.problem, inputs.labels);
  inputs.pooling = pooling_named(options.pooling);
  if (adapter && options.pooling.empty()) inputs.pooling = adapter->context.pooling;
  if (options.pooling.empty() && !inputs.pooling && made_for_the_mean(model))
    inputs.notes.push_back(
        model.path_of("1_Pooling/config.json") +
        ": the model was made for the mean over all tokens, --pooling mean; without it transformers' "
        "pooler for classification is built");
  inputs.max_tokens = options.max_tokens.value_or(adapter ? adapter->context.max_tokens : 0);
  inputs.lora = lora_config(options, adapter);

  if (options.runs("federated") || options.runs("local")) set_partition(inputs, options);
  set_config(inputs, options, adapter, model, checkpoint);
  return inputs;
}

namespace {

/// Names short enough for a column each; all of them by number where that would make two of them one.
std::vector<std::string> column_names(const std::vector<std::string>& labels) {
  std::vector<std::string> names;
  std::set<std::string> distinct;
  for (const std::string& label : labels) distinct.insert(names.emplace_back(detail::printable(label, 11)));
  if (distinct.size() < labels.size())
    for (std::size_t i = 0; i < names.size(); ++i) names[i] = "label " + std::to_string(i);
  return names;
}

/// "20 clients of 31 to 2,042 examples, median 598", and how many have a single one to learn from.
std::string sizes_line(const Partition& partition) {
  std::vector<Index> sizes;
  for (const auto& examples : partition) sizes.push_back(static_cast<Index>(examples.size()));
  std::sort(sizes.begin(), sizes.end());
  const auto single = std::count(sizes.begin(), sizes.end(), 1);
  if (sizes.size() == 1) return {};
  return grouped(static_cast<Index>(sizes.size())) + " clients of " + grouped(sizes.front()) + " to " +
         grouped(sizes.back()) + " examples, median " + grouped(sizes[(sizes.size() - 1) / 2]) +
         (single == 0 ? "" : "; " + grouped(single) + (single == 1 ? " has" : " have") + " a single one") + "\n";
}

}  // namespace

std::string partition_table(const Inputs& inputs) {
  const auto table = label_distribution(inputs.groups, inputs.partition, static_cast<Index>(inputs.group_names.size()));
  const std::vector<std::string> names = column_names(inputs.group_names);
  Index shown_labels = 0;
  for (std::size_t width = 0; shown_labels < table.labels; ++shown_labels) {
    width += std::max<std::size_t>(5, names[static_cast<std::size_t>(shown_labels)].size()) + 2;
    if (width > 120) break;
  }
  const Index shown_clients = table.clients <= 40 ? table.clients : 20;
  std::vector<std::string> header = {"client"};
  header.insert(header.end(), names.begin(), names.begin() + shown_labels);
  if (shown_labels < table.labels) header.push_back(std::to_string(table.labels - shown_labels) + " more");
  header.push_back("all");
  TextTable text(header);
  for (Index client = 0; client < shown_clients; ++client) {
    std::vector<std::string> row = {
        inputs.client_names.empty() ? std::to_string(client) : inputs.client_names[static_cast<std::size_t>(client)]};
    Index rest = table.examples(client);
    for (Index label = 0; label < shown_labels; ++label) {
      rest -= table(client, label);
      row.push_back(table(client, label) == 0 ? "." : std::to_string(table(client, label)));
    }
    if (shown_labels < table.labels) row.push_back(std::to_string(rest));
    row.push_back(std::to_string(table.examples(client)));
    text.add(std::move(row));
  }
  std::string out = inputs.problem_type == ProblemType::regression    ? "texts by the quantile of their target:\n"
                    : inputs.problem_type == ProblemType::multi_label ? "texts by the rarest of their labels:\n"
                                                                      : "";
  out += text.text();
  if (shown_clients < table.clients) out += "and " + std::to_string(table.clients - shown_clients) + " clients more\n";
  return out + sizes_line(inputs.partition);
}

}  // namespace fedlora::examples
