// SPDX-License-Identifier: Apache-2.0
// config.json of every family, and JSON as such: it reads the same when it is written again, and a configuration that
// is read holds together.
#include "fedlora/io/json.hpp"

#include <string>
#include <string_view>

#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

inline constexpr const char* config_file = "fuzz/config.json";

template <class Arch>
void read_as(const Json& json) {
  const auto config = unless_refused(config_file, [&] { return Arch::read_config(json, config_file); });
  if (!config) return;
  require(config->vocab_size > 0 && config->hidden_size > 0 && config->layers > 0 && config->heads > 0 &&
              config->kv_heads > 0 && config->head_dim > 0 && config->intermediate_size > 0 &&
              config->max_positions > 0 && config->token_types >= 0 && config->position_offset >= 0,
          "sizes are positive");
  require(config->heads % config->kv_heads == 0, "query heads are shared out evenly");
  require(config->layers <= 1024 && config->hidden_size <= (1 << 24) && config->head_dim <= (1 << 24) &&
              config->vocab_size <= (1 << 24),
          "sizes are bounded");
  for (const double probability : {config->hidden_dropout, config->attention_dropout, config->classifier_dropout})
    require(probability >= 0 && probability < 1, "a dropout is a probability");
  require(config->norm_eps > 0 && config->rope_theta > 0 && config->rope_scaling.factor > 0, "constants are positive");
  for (const HeadLayer& layer : Arch::head(*config)) require(!layer.name.empty() && layer.in > 0, "a head has layers");
}

const Target json_target("json", [](std::string_view input) {
  const Bytes bytes = bytes_of(std::string(input), config_file);
  const auto json = unless_refused(config_file, [&] { return parse_json(bytes); });
  if (!json) return;
  const std::string written = json->dump();
  require(parse_json(bytes_of(written, "again")).dump() == written, "JSON reads as it was written");
  read_as<Bert>(*json);
  read_as<DistilBert>(*json);
  read_as<Roberta>(*json);
  read_as<Llama>(*json);
});

}  // namespace fedlora::fuzz
