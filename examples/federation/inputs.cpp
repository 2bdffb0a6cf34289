// SPDX-License-Identifier: Apache-2.0
#include "federation/inputs.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "command_line.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/hf/checkpoint.hpp"
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

/// The label names: the training file's, or in the adapter's order where its head was trained on the same ones.
std::vector<std::string> label_names(const Table& train, const std::optional<PeftConfig>& adapter,
                                     const Options& options) {
  std::vector<std::string> names = train.label_names();
  if (!adapter || !adapter->num_labels) return names;
  const std::string where = train.source + ", column " + options.label_column;
  if (static_cast<Index>(names.size()) > *adapter->num_labels)
    fail<ConfigError>(where,
                      "at most the " + std::to_string(*adapter->num_labels) + " labels of the head in " + options.adapter,
                      std::to_string(names.size()));
  if (!adapter->id2label.empty()) return adapter->id2label;
  if (static_cast<Index>(names.size()) < *adapter->num_labels)
    fail<ConfigError>(where, "the " + std::to_string(*adapter->num_labels) + " labels of the head in " + options.adapter,
                      std::to_string(names.size()));
  return names;
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

}  // namespace

Inputs read_inputs(const Options& options) {
  Inputs inputs;
  const auto read = [&](const std::string& path, const std::string& id) {
    const TableColumns columns{options.text_columns(), options.text_pair_column, options.label_column, id};
    return read_table(table_file(path), columns);
  };
  const std::string natural = options.natural_column();
  inputs.train = read(options.train, natural);
  inputs.test = read(options.test, {});
  std::optional<PeftConfig> adapter;
  if (!options.adapter.empty()) {
    adapter = read_peft_config(std::filesystem::path(options.adapter));
    if (adapter->task.value_or(TaskType::sequence_classification) != TaskType::sequence_classification)
      fail<ConfigError>(options.adapter + "/adapter_config.json, field task_type", "SEQ_CLS", "CAUSAL_LM");
  }
  inputs.labels = label_names(inputs.train, adapter, options);
  inputs.lora = lora_config(options, adapter);

  const std::vector<std::int32_t> ids = inputs.train.label_ids(inputs.labels);
  if (!natural.empty()) {
    auto dealt = partition_natural(inputs.train.id);
    inputs.partition = std::move(dealt.partition);
    inputs.client_names = std::move(dealt.names);
  } else if (options.partition == "iid") {
    inputs.partition = partition_iid(inputs.train.size(), {.clients = options.clients, .seed = options.seed});
  } else if (options.partition == "shards") {
    inputs.partition = partition_shards(ids, {.clients = options.clients, .seed = options.seed});
  } else {
    inputs.partition =
        partition_dirichlet(ids, {.clients = options.clients, .alpha = options.dirichlet, .seed = options.seed});
  }

  Json& config = inputs.config;
  config = config_of(options);
  config["clients"] = inputs.partition.size();
  config["labels"] = inputs.labels;
  config["rank"] = inputs.lora.rank;
  config["alpha"] = inputs.lora.alpha;
  config["dropout"] = inputs.lora.dropout;
  if (adapter) {
    config["targets"] = nullptr;
    config["adapter_sha256"] = Sha256().add(map_file(options.adapter + "/adapter_model.safetensors").data).hex();
  }
  config["model_sha256"] = digest_of(Checkpoint(model_files(options.model)));
  config["train_sha256"] = Sha256().add(table_file(options.train).data).hex();
  config["test_sha256"] = Sha256().add(table_file(options.test).data).hex();
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

}  // namespace

std::string partition_table(const Inputs& inputs) {
  const auto table = label_distribution(inputs.train.label_ids(inputs.labels), inputs.partition,
                                        static_cast<Index>(inputs.labels.size()));
  const std::vector<std::string> names = column_names(inputs.labels);
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
    std::vector<std::string> row = {inputs.client_names.empty() ? std::to_string(client)
                                                                : inputs.client_names[static_cast<std::size_t>(client)]};
    Index rest = table.examples(client);
    for (Index label = 0; label < shown_labels; ++label) {
      rest -= table(client, label);
      row.push_back(table(client, label) == 0 ? "." : std::to_string(table(client, label)));
    }
    if (shown_labels < table.labels) row.push_back(std::to_string(rest));
    row.push_back(std::to_string(table.examples(client)));
    text.add(std::move(row));
  }
  std::string out = text.text();
  if (shown_clients < table.clients) out += "and " + std::to_string(table.clients - shown_clients) + " clients more\n";
  return out;
}

}  // namespace fedlora::examples
