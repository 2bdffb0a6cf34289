// SPDX-License-Identifier: Apache-2.0
// What does not depend on the model's family: the tables, their labels, and who gets which examples.
#pragma once

#include <string>
#include <vector>

#include "command_line.hpp"
#include "federation/options.hpp"
#include "fedlora/data/partition.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/report/text_table.hpp"
#include "sha256.hpp"

namespace fedlora::examples {

struct Inputs {
  Table train, test;
  std::vector<std::string> labels;
  Partition partition;
  std::vector<std::string> client_names;  ///< of a natural partition; empty for the others
  LoraConfig lora;
  Json config;  ///< of the whole run, with what the data added to it
};

/// The label names: the training file's, or in the adapter's order where its head was trained on the same ones.
inline std::vector<std::string> label_names(const Table& train, const std::optional<PeftConfig>& adapter,
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

inline LoraConfig lora_config(const Options& options, const std::optional<PeftConfig>& adapter) {
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

/// Reads tables and adapter configuration, and deals the training examples to the clients.
inline Inputs read_inputs(const Options& options) {
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
  config["train_sha256"] = Sha256().add(table_file(options.train).data).hex();
  config["test_sha256"] = Sha256().add(table_file(options.test).data).hex();
  return inputs;
}

/// Clients × classes, with the totals. Beyond forty clients or twenty classes the middle is left out.
inline std::string partition_table(const Inputs& inputs) {
  const auto table = label_distribution(inputs.train.label_ids(inputs.labels), inputs.partition,
                                        static_cast<Index>(inputs.labels.size()));
  const Index shown_labels = table.labels <= 20 ? table.labels : 19;
  const Index shown_clients = table.clients <= 40 ? table.clients : 20;
  std::vector<std::string> header = {"client"};
  for (Index label = 0; label < shown_labels; ++label) {
    std::string name = inputs.labels[static_cast<std::size_t>(label)];
    header.push_back(name.size() <= 12 ? name : name.substr(0, 11) + "~");
  }
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
