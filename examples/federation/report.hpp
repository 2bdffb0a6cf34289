// SPDX-License-Identifier: Apache-2.0
// What fedlora-federation prints before and after training.
#pragma once

#include <string>
#include <string_view>

#include "federation/inputs.hpp"
#include "federation/output_directory.hpp"
#include "fedlora/fed/message.hpp"
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
  const Index norms = 2 * config.layers + (Arch::names.embedding_norm.empty() ? 0 : 1) +
                      (Arch::names.final_norm.empty() ? 0 : 1);
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
  return "trainable params: " + grouped(trainable) + " || all params: " + grouped(all) + " || trainable%: " +
         decimals(100.0 * static_cast<double>(trainable) / static_cast<double>(all), 4) + "\n";
}

template <class Model>
std::string traffic_line(const Model& model, const Options& options) {
  using T = typename Model::Scalar;
  const MessageSizes<T> sizes(*model.layout());
  const MessageSize down = sizes.broadcast(1, 0);
  const MessageSize up = sizes.update(Update<T>{0, 1, 100, {0.123456789012345, 100, 10, 0}, Adapter<T>(model.layout())});
  const auto parts = [](const MessageSize& size) {
    return grouped(size.total()) + " (adapter " + grouped(size.adapter) + ", head " + grouped(size.head) + ", file header " +
           grouped(size.protocol) + ")";
  };
  const auto cohort = std::max<Index>(1, std::llround(options.cohort * static_cast<double>(options.clients)));
  return "bytes per client and round: down " + parts(down) + ", up about " + parts(up) + "\n" + "per round of " +
         std::to_string(cohort) + (cohort == 1 ? " client: about " : " clients: about ") + bytes_text((down.total() + up.total()) * cohort) + "\n";
}

/// How long the texts are, and how many may have been cut.
inline std::string length_line(const Dataset& data, Index max_tokens) {
  Index longest = 0, at_limit = 0;
  for (Index i = 0; i < data.size(); ++i) {
    longest = std::max(longest, data.length(i));
    at_limit += data.length(i) == max_tokens ? 1 : 0;
  }
  const double mean = static_cast<double>(data.tokens.size()) / static_cast<double>(std::max<Index>(1, data.size()));
  return "tokens per text: mean " + decimals(mean, 1) + ", longest " + std::to_string(longest) +
         (at_limit == 0 ? "" : "; " + std::to_string(at_limit) + " texts reach the limit of " + std::to_string(max_tokens) +
                                   ", where longer ones are cut") +
         "\n";
}

/// All that is known before training.
template <class Model>
std::string introduction(const std::string& machine, const Options& options, const Inputs& inputs, const Model& model,
                         const Model* head, const Dataset& train) {
  using Arch = typename std::remove_cvref_t<decltype(*model.base().transformer)>::Arch;
  const ModelConfig& config = model.base().config();
  std::string text = "model: " + options.model + " (" + std::string(Arch::model_type) + ", " +
                     std::to_string(config.layers) + " layers, hidden " + std::to_string(config.hidden_size) + "), " +
                     machine + ", " + std::to_string(options.threads) + (options.threads == 1 ? " thread\n" : " threads\n");
  for (const std::string& warning : model.base().warnings) text += "warning: " + warning + "\n";
  if (options.adapter.empty())
    for (const std::string& note : model.notes()) text += "note: " + note + "\n";
  else
    text += "starts from the adapter " + options.adapter + " (rank " + std::to_string(inputs.lora.rank) + ", alpha " +
            Json(inputs.lora.alpha).dump() + ", its own head)\n";
  text += "data: " + std::to_string(inputs.train.size()) + " examples for training (" + inputs.train.source + "), " +
          std::to_string(inputs.test.size()) + " for testing, " + std::to_string(inputs.labels.size()) + " labels\n";
  text += "first example: " + detail::in_quotes(inputs.train.text.at(0)) + ", label " +
          detail::in_quotes(inputs.train.label.at(0)) + "\n" + length_line(train, model.max_tokens());
  text += trainable_line(model);
  if (head != nullptr) text += "head alone: " + trainable_line(*head);
  if (options.runs("federated")) text += traffic_line(model, options);
  if (options.runs("federated") || options.runs("local")) text += "\n" + partition_table(inputs);
  return text + "\n";
}

/// The runs side by side, from summary.json's entries.
inline std::string result_table(const Json& summary) {
  TextTable table({"", "accuracy", "loss", "macro F1", "bytes up", "bytes down", "seconds"});
  for (const auto& [mode, name] : {std::pair{"head", "frozen base, trained head"},
                                   {"local", "local-only clients (mean)"},
                                   {"federated", "federated"},
                                   {"centralised", "centralised"}}) {
    if (!summary.contains(mode)) continue;
    const Json& run = summary[mode];
    const auto number = [&](const char* field, int places) { return decimals(run[field].get<double>(), places); };
    const auto bytes = [&](const char* field) {
      const auto count = run[field].get<std::int64_t>();
      return count == 0 ? std::string("-") : bytes_text(count);
    };
    table.add({name, number("accuracy", 4), number("loss", 4), number("macro_f1", 4), bytes("bytes_up"),
               bytes("bytes_down"), number("seconds", 1)});
  }
  return table.text();
}

}  // namespace fedlora::examples
