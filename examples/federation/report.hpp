// SPDX-License-Identifier: Apache-2.0
// What fedlora-federation prints before and after training.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "federation/inputs.hpp"
#include "federation/output_directory.hpp"
#include "fedlora/data/table_notes.hpp"
#include "fedlora/fed/message.hpp"
#include "fedlora/fed/sampling.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/report/text_table.hpp"

namespace fedlora::examples {

/// Numbers in the base as transformers counts them: embeddings, norms, linear layers.
template <class Model>
Index base_parameters(const Model& model) {
  const auto& transformer = *model.base().transformer;
  using Arch = typename std::remove_cvref_t<decltype(transformer)>::Arch;
  const ModelConfig& config = transformer.config();
  const Index hidden = config.hidden_size;
  Index rows = config.vocab_size + config.token_types;
  if (Arch::positions == Positions::learned) rows += config.max_positions + config.position_offset;
  const Index norms =
      2 * config.layers + (Arch::names.embedding_norm.empty() ? 0 : 1) + (Arch::names.final_norm.empty() ? 0 : 1);
  Index count = rows * hidden + norms * hidden * (Arch::norm == NormKind::layer_norm ? 2 : 1);
  for (Index layer = 0; layer < config.layers; ++layer)
    for (std::size_t i = 0; i < layer_linears; ++i)
      if (!Arch::names.linears[i].empty()) {
        const auto& linear = transformer.linear(layer, static_cast<LayerLinear>(i));
        count += linear.weight.rows * linear.weight.cols + linear.bias.cols;
      }
  return count;
}

/// PEFT's line. Like PEFT, it counts a head that is trained whole twice: the trained copy and the original beside it.
template <class Model>
std::string trainable_line(const Model& model) {
  using Arch = typename std::remove_cvref_t<decltype(*model.base().transformer)>::Arch;
  Index head = 0;
  for (const HeadLayer& layer : Arch::head(model.base().config())) {
    const Index out = layer.out == 0 ? static_cast<Index>(model.labels().size()) : layer.out;
    head += out * (layer.in + (layer.bias ? 1 : 0));
  }
  const Index trainable = model.layout()->size;
  const Index all = base_parameters(model) + head + trainable;
  return "trainable params: " + grouped(trainable) + " || all params: " + grouped(all) +
         " || trainable%: " + decimals(100.0 * static_cast<double>(trainable) / static_cast<double>(all), 4) + "\n";
}

template <class Model>
std::string traffic_line(const Model& model, const Options& options, Index clients) {
  using T = typename Model::Scalar;
  const MessageSizes<T> sizes(*model.layout());
  const MessageSize down = sizes.broadcast(1, 0);
  const MessageSize up =
      sizes.update(Update<T>{0, 1, 100, {0.123456789012345, 100, 10, 0}, Adapter<T>(model.layout())});
  const auto parts = [](const MessageSize& size) {
    return grouped(size.total()) + " (adapter " + grouped(size.adapter) + ", head " + grouped(size.head) +
           ", file header " + grouped(size.protocol) + ")";
  };
  const Index cohort = detail::cohort_size(clients, {.fraction = options.cohort});
  return "bytes per client and round: down " + parts(down) + ", up about " + parts(up) + "\n" + "per round of " +
         std::to_string(cohort) + (cohort == 1 ? " client: about " : " clients: about ") +
         bytes_text((down.total() + up.total()) * cohort) + "\n";
}

/// How long the texts are, and how many may have been cut.
inline std::string length_line(const Dataset& data, Index max_tokens) {
  Index longest = 0;
  for (Index i = 0; i < data.size(); ++i) longest = std::max(longest, data.length(i));
  const std::string cut = cut_note(data, max_tokens);
  const double mean = static_cast<double>(data.tokens.size()) / static_cast<double>(std::max<Index>(1, data.size()));
  return "tokens per text: mean " + decimals(mean, 1) + ", longest " + std::to_string(longest) +
         (cut.empty() ? "" : "; " + cut) + "\n";
}

/// What is predicted, and the first example.
inline std::string answer_line(const Inputs& inputs) {
  const Table& train = inputs.train;
  const auto counted = [&](const char* one) {
    const std::size_t count = inputs.labels.size();
    return std::to_string(count) + " " + one + (count == 1 ? "" : "s");
  };
  const std::string first = "\nfirst example: " + detail::in_quotes(train.text.at(0)) +
                            (train.text_pair.empty() ? "" : " with " + detail::in_quotes(train.text_pair.at(0))) + ", ";
  if (inputs.problem_type == ProblemType::regression) {
    std::string numbers;
    for (std::size_t i = 0; i < inputs.labels.size(); ++i)
      numbers += (i == 0 ? "" : ", ") + Json(train.targets[i]).dump();
    return counted("number") + " to predict (regression)" + first + numbers;
  }
  if (inputs.problem_type == ProblemType::multi_label) {
    const std::vector<std::string>& labels = train.label_sets.at(0);
    return counted("label") + ", any of which a text may have (multi-label)" + first +
           (labels.empty() ? "no label" : "labels " + detail::quoted_list(labels));
  }
  std::string text = counted("label") + first + "label " + detail::in_quotes(train.label.at(0));
  const auto number = [](const std::string& label) {
    char* end = nullptr;
    return !label.empty() && std::isfinite(std::strtod(label.c_str(), &end)) && *end == '\0';
  };
  if (std::all_of(inputs.labels.begin(), inputs.labels.end(), number) &&
      !std::all_of(inputs.labels.begin(), inputs.labels.end(), whole_number))
    text += "\nnote: the labels are numbers, which are taken for names; --problem-type regression predicts a number";
  return text;
}

/// All that is known before training.
template <class Model>
std::string introduction(const std::string& machine, const Options& options, const Inputs& inputs, const Model& model,
                         const Model* head, const Dataset& train) {
  using Arch = typename std::remove_cvref_t<decltype(*model.base().transformer)>::Arch;
  const ModelConfig& config = model.base().config();
  std::string text = "model: " + options.model + " (" + std::string(Arch::model_type) + ", " +
                     std::to_string(config.layers) + " layers, hidden " + std::to_string(config.hidden_size) + "), " +
                     machine + ", " + std::to_string(options.threads) +
                     (options.threads == 1 ? " thread\n" : " threads\n");
  for (const std::string& warning : model.base().warnings) text += "warning: " + warning + "\n";
  if (options.adapter.empty() || inputs.lora.freeze_head)
    for (const std::string& note : model.notes()) text += "note: " + note + "\n";
  const std::string pairs =
      text_pairs_note(model.base().context.text_pairs, !inputs.train.text_pair.empty(), options.model);
  if (options.adapter.empty() && !pairs.empty()) text += "note: " + pairs + "\n";
  if (!options.adapter.empty())
    text += "starts from the adapter " + options.adapter + " (rank " + std::to_string(inputs.lora.rank) + ", alpha " +
            Json(inputs.lora.alpha).dump() + (inputs.lora.freeze_head ? ", the base's head)\n" : ", its own head)\n");
  for (const std::string& note : table_notes(inputs.train, inputs.test)) text += "note: " + note + "\n";
  for (const std::string& note : inputs.notes) text += "note: " + note + "\n";
  text += "data: " + std::to_string(inputs.train.size()) + " examples for training (" + inputs.train.source + "), " +
          std::to_string(inputs.test.size()) + " for testing, " + answer_line(inputs) + "\n" +
          length_line(train, model.max_tokens());
  if (options.mode != "head") text += trainable_line(model);
  if (head != nullptr) text += "head alone: " + trainable_line(*head);
  if (options.runs("federated")) text += traffic_line(model, options, static_cast<Index>(inputs.partition.size()));
  if (options.runs("federated") || options.runs("local")) text += "\n" + partition_table(inputs);
  return text + "\n";
}

/// The runs side by side, from summary.json's entries.
inline std::string result_table(const Json& summary, const Measures& measures) {
  std::vector<std::string> header = {""};
  for (const Metric& metric : measures.shown) header.push_back(measures.title(metric));
  header.insert(header.end(), {"bytes up", "bytes down", "seconds"});
  TextTable table(std::move(header));
  for (const auto& [mode, name] : {std::pair{"head", "frozen base, trained head"},
                                   {"local", "local-only clients (mean)"},
                                   {"federated", "federated"},
                                   {"centralised", "centralised"}}) {
    const Json run = summary.value(mode, Json());
    if (!run.is_object()) continue;
    const auto field = [&](const std::string& of) {  // as a file has it, which may be anything
      const Json value = run.value(of, Json());
      return value.is_number() ? value : Json();
    };
    const auto bytes = [&](const char* of) {
      const Json count = field(of);
      return count.is_null() || count == 0 ? std::string("-") : bytes_text(count.get<std::int64_t>());
    };
    std::vector<std::string> row = {name};
    for (const Metric& metric : measures.shown) row.push_back(Measures::text(field(std::string(metric.name))));
    const Json seconds = field("seconds");
    row.insert(row.end(),
               {bytes("bytes_up"), bytes("bytes_down"), seconds.is_null() ? "-" : decimals(seconds.get<double>(), 1)});
    table.add(std::move(row));
  }
  return table.text();
}

}  // namespace fedlora::examples
