// SPDX-License-Identifier: Apache-2.0
// --export-plan: all that another framework needs to run the same federation and to be compared with it. The directory
// holds plan.json (configuration, cohort and example order of every round), train_ids.jsonl and test_ids.jsonl,
// initial/ and round-001/ … (PEFT adapters) and metrics.jsonl.
#pragma once

#include <filesystem>
#include <string>

#include "federation/run.hpp"
#include "fedlora/report/metrics.hpp"

namespace fedlora::examples {

/// What is to be predicted of an example: its label's number, the numbers of its set of labels, or its targets.
inline Json answer_json(const Dataset& data, Index example) {
  const auto labels = data.labels_of(example);
  if (data.outputs() > 0) {
    const auto first = data.targets.begin() + example * data.outputs();
    return std::vector<double>(first, first + data.outputs());
  }
  return data.label_offsets.empty() ? Json(labels[0]) : Json(std::vector<std::int32_t>(labels.begin(), labels.end()));
}

/// Token ids, token types and answer of every example, a line each.
inline std::string ids_jsonl(const Dataset& data) {
  std::string lines;
  for (Index i = 0; i < data.size(); ++i) {
    const auto slice = [&](const std::vector<std::int32_t>& from) {
      const auto begin = from.begin() + data.offsets[static_cast<std::size_t>(i)];
      return std::vector<std::int32_t>(begin, begin + data.length(i));
    };
    lines +=
        Json{{"ids", slice(data.tokens)}, {"types", slice(data.token_types)}, {"label", answer_json(data, i)}}.dump() +
        "\n";
  }
  return lines;
}

inline std::filesystem::path round_directory(const std::filesystem::path& directory, Index round) {
  const std::string number = std::to_string(round);
  return directory / ("round-" + std::string(number.size() < 3 ? 3 - number.size() : 0, '0') + number);
}

/// Writes everything but the rounds, and arranges for each round to be added when it is done.
/// \throws ConfigError when dropouts are on, whose masks no other framework has, or when rounds done before a resume
///         are not in the directory.
template <class Model>
void export_plan(Run<Model>& run, const std::filesystem::path& directory, Json config, const Dataset& train,
                 const Dataset& test, const Adapter<typename Model::Scalar>& initial) {
  const ModelConfig& base = run.model->base().config();
  const bool base_drops = config["base_dropout"].is_null()
                              ? base.hidden_dropout > 0 || base.attention_dropout > 0 || base.classifier_dropout > 0
                              : config["base_dropout"].template get<double>() > 0;
  if (base_drops || run.model->layout()->config.dropout > 0)
    fail<ConfigError>("--export-plan", "--dropout 0 and --base-dropout 0: masks differ between frameworks",
                      base_drops ? "dropout in the base" : "dropout in the adapter");
  for (Index round = 1; round <= run.state.round; ++round)
    if (!std::filesystem::exists(round_directory(directory, round)))
      fail<ConfigError>(round_directory(directory, round).string(),
                        "the directory that the run was started with, to go on exporting", "nothing");
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail<IoError>(directory.string(), "a directory to write to (--export-plan)", error.message());

  config["max_tokens"] = run.model->max_tokens();
  config.erase("head_lr");  // of the run that trains the head alone
  Json rounds = Json::array();
  for (Index round = 1; round <= run.rounds; ++round) {
    Json clients = Json::array();
    const auto cohort = run.cohort_of(round);
    for (const auto* client : cohort.clients)
      clients.push_back({{"client", client->id},
                         {"num_examples", client->num_examples()},
                         {"steps", batch_plan(*client, cohort, run.plan)}});
    rounds.push_back({{"round", round}, {"clients", std::move(clients)}});
  }
  const Json plan = {{"config", std::move(config)},
                     {"train_ids", "train_ids.jsonl"},
                     {"test_ids", "test_ids.jsonl"},
                     {"rounds", std::move(rounds)}};
  write_file_atomically(directory / "train_ids.jsonl", std::string_view(ids_jsonl(train)));
  write_file_atomically(directory / "test_ids.jsonl", std::string_view(ids_jsonl(test)));
  save_peft(initial, directory / "initial");
  write_file_atomically(directory / "plan.json", std::string_view(plan.dump() + "\n"));
  run.after_round = [directory](const RunState<typename Model::Scalar>& state) {
    save_peft(state.adapters[0], round_directory(directory, state.round));
    write_file_atomically(directory / "metrics.jsonl", std::string_view(jsonl_of(state.metrics)));
  };
}

}  // namespace fedlora::examples
