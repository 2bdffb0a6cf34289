// SPDX-License-Identifier: Apache-2.0
// Which modules carry a low-rank term: PEFT's answers to many target lists, ranks and alphas by pattern, what is
// trained whole, and every configuration that is refused.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/lora/binding.hpp"
#include "fedlora/lora/sites.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"

namespace fedlora::tests {
namespace {

using Names = std::vector<std::string>;

template <class Arch>
ModelConfig config_of() {
  const std::string family(Arch::model_type);
  const auto file = std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "models" / family / "config.json";
  return Arch::read_config(parse_json(map_file(file)), file.string());
}

/// The plan over a checkpoint that has the layers of its head, for three labels.
template <class Arch>
AdapterPlan plan_of(const LoraConfig& lora, TaskType task = TaskType::sequence_classification,
                    const Names& always_saved = {}) {
  const ModelConfig config = config_of<Arch>();
  std::vector<HeadLayer> head;
  if (task == TaskType::sequence_classification) head = Arch::head(config);
  for (HeadLayer& layer : head)
    if (layer.out == 0) layer.out = 3;
  return plan_adapter<Arch>(config, head, lora, task, always_saved, [&](Index, LayerLinear which) {
    const Index hidden = config.hidden_size, inner = config.intermediate_size;
    if (which == LayerLinear::gate || which == LayerLinear::up) return std::pair{inner, hidden};
    if (which == LayerLinear::down) return std::pair{hidden, inner};
    const bool narrow = which == LayerLinear::key || which == LayerLinear::value;
    return std::pair{narrow ? config.kv_heads * config.head_dim : hidden, hidden};
  });
}

Names sites_of(const AdapterLayout& layout) {
  Names names;
  for (const AdapterSite& site : layout.sites) names.push_back(site.name);
  return names;
}

const AdapterSite& site_of(const AdapterLayout& layout, std::string_view end) {
  for (const AdapterSite& site : layout.sites)
    if (site.name.ends_with(end)) return site;
  throw std::runtime_error("no site " + std::string(end));
}

template <class Arch>
void check_targets() {
  const auto file =
      std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "models" / std::string(Arch::model_type) / "cases.json";
  const Json cases = parse_json(map_file(file));
  int compared = 0;
  for (const Json& entry : cases["targets"]) {
    CAPTURE(entry.dump());
    const Json& target = entry["target_modules"];
    LoraConfig lora{.rank = 4, .alpha = 8};
    if (target.is_array())
      lora.target_modules = target.get<Names>();
    else if (target == "all-linear")
      lora.target_modules = {"all-linear"};
    else if (target.is_string())
      lora.target_pattern = target.get<std::string>();
    const TaskType task = entry["task_type"] == "CAUSAL_LM" ? TaskType::causal_lm : TaskType::sequence_classification;
    ++compared;
    if (!entry.contains("error")) {
      const AdapterPlan plan = plan_of<Arch>(lora, task);
      CHECK(sites_of(*plan.layout) == entry["modules"].get<Names>());
      if (entry["modules_to_save"].is_array())
        CHECK(plan.layout->modules_to_save == entry["modules_to_save"].get<Names>());
    } else if (target.is_null()) {
      // PEFT has no default for DistilBERT and refuses; this library takes the layers that correspond to BERT's.
      CHECK(Arch::model_type == "distilbert");
      CHECK(sites_of(*plan_of<Arch>(lora, task).layout).size() ==
            2 * static_cast<std::size_t>(config_of<Arch>().layers));
      CHECK(plan_of<Arch>(lora, task).layout->target_modules == Names{"q_lin", "v_lin"});
    } else {
      check_error<ConfigError>([&] { plan_of<Arch>(lora, task); }, {"target_modules", target[0].get<std::string>()});
    }
  }
  CHECK(compared >= 11);
}

}  // namespace

TEST_CASE("BERT's targets are PEFT's") { check_targets<Bert>(); }
TEST_CASE("DistilBERT's targets are PEFT's") { check_targets<DistilBert>(); }
TEST_CASE("RoBERTa's targets are PEFT's") { check_targets<Roberta>(); }
TEST_CASE("Llama's targets are PEFT's") { check_targets<Llama>(); }

TEST_CASE("a target matches whole names between dots only") {
  check_error<ConfigError>([] { plan_of<Bert>({.target_modules = {"uery"}}); }, {"'uery'"});
  check_error<ConfigError>([] { plan_of<Bert>({.target_modules = {"query", "valu"}}); }, {"'valu'"});
  check_error<ConfigError>([] { plan_of<Bert>({.target_modules = {"all-linear", "query"}}); }, {"'all-linear'"});
  CHECK(sites_of(*plan_of<Bert>({.target_modules = {"bert.encoder.layer.0.attention.self.query"}}).layout).size() == 1);
  check_error<ConfigError>([] { plan_of<Bert>({.target_pattern = "query"}); },
                           {"'query'"});  // the whole name must match
}

TEST_CASE("a layout has A and B of every site one after another, then the head") {
  const AdapterPlan plan = plan_of<Bert>({.rank = 4, .alpha = 6, .target_modules = {"query", "intermediate.dense"}});
  const AdapterLayout& layout = *plan.layout;
  REQUIRE(layout.sites.size() == 4);
  Index offset = 0;
  for (const AdapterSite& site : layout.sites) {
    CHECK(site.rank == 4);
    CHECK(site.alpha == 6);
    CHECK(site.scale == 1.5);
    CHECK(site.a_offset == offset);
    CHECK(site.b_offset == offset + 4 * site.in);
    offset += 4 * (site.in + site.out);
  }
  CHECK(layout.lora_size == offset);
  CHECK(layout.sites[0].name == "bert.encoder.layer.0.attention.self.query");
  CHECK(layout.sites[1].name == "bert.encoder.layer.0.intermediate.dense");
  CHECK(layout.sites[1].in == 32);
  CHECK(layout.sites[1].out == 48);
  REQUIRE(layout.saved.size() == 2);
  CHECK(layout.saved[0].name == "classifier.weight");
  CHECK(layout.saved[0].shape == std::vector<Index>{3, 32});
  CHECK(layout.saved[0].offset == offset);
  CHECK(layout.saved[1].name == "classifier.bias");
  CHECK(layout.saved[1].shape == std::vector<Index>{3});
  CHECK(layout.size == offset + 3 * 33);
  CHECK(layout.target_modules == Names{"intermediate.dense", "query"});
  CHECK(layout.find_saved("classifier.bias") == &layout.saved[1]);
  CHECK(layout.find_saved("classifier") == nullptr);
  CHECK(plan.lowest_adapted == 0);
  CHECK(plan.layer_sites[static_cast<std::size_t>(LayerLinear::query)] == 0);
  CHECK(plan.layer_sites[static_cast<std::size_t>(LayerLinear::key)] == -1);
  CHECK(plan.layer_sites[layer_linears + static_cast<std::size_t>(LayerLinear::up)] == 3);
  CHECK(plan_of<Bert>({.target_pattern = ".*layer\\.1\\..*query"}).lowest_adapted == 1);
}

TEST_CASE("rsLoRA divides alpha by the root of the rank") {
  const auto layout = plan_of<Llama>({.rank = 9, .alpha = 6, .use_rslora = true, .target_modules = {"q_proj"}}).layout;
  CHECK(layout->sites[0].scale == 2.0);
}

TEST_CASE("rank_pattern and alpha_pattern match the end of a name, at a dot") {
  const AdapterPlan plan = plan_of<Bert>(
      {.rank = 4,
       .alpha = 8,
       .target_modules = {"query", "key", "output.dense"},
       .rank_pattern = {{"layer.0.attention.self.query", 2}, {"layer\\.1\\.output\\.dense", 6}, {"uery", 3}},
       .alpha_pattern = {{"key", 3}, {"layer.[01].attention.output.dense", 5}}});
  const AdapterLayout& layout = *plan.layout;
  CHECK(site_of(layout, "layer.0.attention.self.query").rank == 2);
  CHECK(site_of(layout, "layer.0.attention.self.query").scale == 4);
  CHECK(site_of(layout, "layer.1.attention.self.query").rank == 4);  // "uery" does not begin at a dot
  CHECK(site_of(layout, "layer.1.output.dense").rank == 6);
  CHECK(site_of(layout, "layer.1.output.dense").scale == doctest::Approx(8.0 / 6));
  CHECK(site_of(layout, "layer.1.attention.output.dense").alpha == 5);
  CHECK(site_of(layout, "layer.0.attention.self.key").alpha == 3);
}

TEST_CASE("what is trained whole has no low-rank term beside it") {
  const AdapterPlan plan = plan_of<Bert>({.target_modules = {"dense"}, .modules_to_save = {"pooler"}});
  for (const std::string& name : sites_of(*plan.layout)) CHECK(name.find("pooler") == std::string::npos);
  CHECK(plan.layout->find_saved("bert.pooler.dense.weight") != nullptr);
  CHECK(plan.head_sites[0] == -1);
  const AdapterPlan adapted = plan_of<Bert>({.target_modules = {"dense"}});
  CHECK(sites_of(*adapted.layout).back() == "bert.pooler.dense");
  CHECK(adapted.head_sites[0] == static_cast<Index>(adapted.layout->sites.size()) - 1);
  const AdapterPlan missing =
      plan_of<Bert>({.target_modules = {"dense"}}, TaskType::sequence_classification, {"bert.pooler.dense"});
  CHECK(missing.head_saved[0]);
}

TEST_CASE("a head alone has no sites") {
  const AdapterPlan plan = plan_of<Roberta>({.head_only = true});
  CHECK(plan.layout->sites.empty());
  CHECK(plan.layout->lora_size == 0);
  CHECK(plan.lowest_adapted == config_of<Roberta>().layers);
  CHECK(plan.layout->saved.size() == 4);
}

TEST_CASE("configurations that cannot be are refused by name") {
  check_error<ConfigError>([] { plan_of<Bert>({.rank = 0}); }, {"LoRA rank", "at least 1", "0"});
  check_error<ConfigError>([] { plan_of<Bert>({.rank = -3}); }, {"LoRA rank", "-3"});
  check_error<ConfigError>([] { plan_of<Bert>({.rank = Index{1} << 40}); }, {"LoRA rank", "at most 65536"});
  for (const double alpha : {0.0, -1.0, std::nan("")})
    check_error<ConfigError>([&] { plan_of<Bert>({.alpha = alpha}); }, {"LoRA alpha", "positive"});
  for (const double dropout : {1.0, 1.5, -0.1, std::nan("")})
    check_error<ConfigError>([&] { plan_of<Bert>({.dropout = dropout}); }, {"LoRA dropout", "[0, 1)"});
  check_error<ConfigError>([] { plan_of<Bert>({.target_pattern = "(unclosed"}); }, {"target_modules", "(unclosed"});
  check_error<ConfigError>([] { plan_of<Bert>({.rank_pattern = {{"[", 4}}}); }, {"rank_pattern", "["});
  check_error<ConfigError>([] { plan_of<Bert>({.alpha_pattern = {{"*", 4}}}); }, {"alpha_pattern", "*"});
  for (const char* part : {"(a)\\1", "(a)?(?(1)b|c)", "\\N{COMMA}", "\\p{L}", "(?x)", "\xC3\xA9"})
    check_error<ConfigError>(
        [&] {
          plan_of<Bert>({.alpha_pattern = {{std::string("query") + part, 4}}});
        },
        {"LoRA alpha_pattern", "a regular expression with ", part});
  CHECK_NOTHROW(plan_of<Bert>({.target_pattern = R"(.*\.\d+\.[a-z.\]]*?\w*?(query|value))"}));
  // Patterns that would take for ever, or all of the stack.
  check_error<ConfigError>([] { plan_of<Bert>({.target_pattern = "(([a-z.0-9_]+)+)+X"}); },
                           {"LoRA target_modules", "steps for a name, which is", "attention.self.query"});
  check_error<ConfigError>([] { plan_of<Bert>({.target_pattern = std::string(95000, 'a')}); }, {"8192", "95000"});
  check_error<ConfigError>(
      [] {
        plan_of<Bert>({.rank_pattern = {{std::string(300, '('), 4}}});
      },
      {"groups at most 100 deep"});
  check_error<ConfigError>([] { plan_of<Bert>({.rank_pattern = {{"query", 0}}}); }, {"query", "rank", "0"});
  check_error<ConfigError>([] { plan_of<Bert>({.modules_to_save = {"nothing"}}); },
                           {"modules_to_save", "bert.pooler.dense, classifier", "'nothing'"});
  check_error<ConfigError>([] { plan_of<Llama>({.modules_to_save = {"lm_head"}}, TaskType::causal_lm); },
                           {"modules_to_save", "none here"});
}

TEST_CASE("initial adapters: A by its law and its seed, B zero") {
  for (const LoraInit init : {LoraInit::kaiming, LoraInit::gaussian}) {
    const AdapterPlan plan = plan_of<Bert>({.rank = 16, .alpha = 8, .target_modules = {"all-linear"}, .init = init});
    Adapter<double> adapter(plan.layout), same(plan.layout), other(plan.layout);
    initialise_low_rank(plan, 5, adapter);
    initialise_low_rank(plan, 5, same);
    initialise_low_rank(plan, 6, other);
    CHECK(std::equal(adapter.values().begin(), adapter.values().end(), same.values().begin()));
    CHECK_FALSE(std::equal(adapter.values().begin(), adapter.values().end(), other.values().begin()));
    Adapter<float> narrow(plan.layout);
    initialise_low_rank(plan, 5, narrow);
    for (std::size_t i = 0; i < narrow.values().size(); ++i)
      REQUIRE(narrow.values()[i] == static_cast<float>(adapter.values()[i]));
    for (Index s = 0; s < static_cast<Index>(plan.layout->sites.size()); ++s) {
      const AdapterSite& site = plan.layout->sites[static_cast<std::size_t>(s)];
      CAPTURE(site.name);
      const MatrixView<double> a = adapter.a(s), b = adapter.b(s);
      double sum = 0, square = 0, top = 0;
      for (Index i = 0; i < a.size(); ++i) {
        sum += a.data[i];
        square += a.data[i] * a.data[i];
        top = std::max(top, std::abs(a.data[i]));
      }
      for (Index i = 0; i < b.size(); ++i) CHECK(b.data[i] == 0);
      const auto n = static_cast<double>(a.size());
      const double bound = 1 / std::sqrt(static_cast<double>(site.in));
      const double variance = init == LoraInit::kaiming ? bound * bound / 3 : 1.0 / (16 * 16);
      CHECK(std::abs(sum / n) < 4.5 * std::sqrt(variance / n));
      CHECK(std::abs(square / n / variance - 1) < 4.5 * std::sqrt(2 / n));
      if (init == LoraInit::kaiming) {
        CHECK(top <= bound);
        CHECK(top > 0.95 * bound);
      }
      if (s > 0) CHECK(a.data[0] != adapter.a(s - 1).data[0]);  // every site draws its own
    }
  }
}

TEST_CASE("an adapter of the wrong size is refused, and layouts know whether they agree") {
  const auto layout = plan_of<Bert>({.rank = 4, .target_modules = {"query"}}).layout;
  check_error<ShapeError>([&] { Adapter<float>(layout, std::vector<float>(7)); }, {std::to_string(layout->size), "7"});
  CHECK(same_places(*layout, *plan_of<Bert>({.rank = 4, .target_modules = {"query"}}).layout));
  CHECK_FALSE(same_places(*layout, *plan_of<Bert>({.rank = 4, .target_modules = {"value"}}).layout));
  CHECK_FALSE(same_places(*layout, *plan_of<Bert>({.rank = 5, .target_modules = {"query"}}).layout));
  CHECK_FALSE(same_places(*layout, *plan_of<Bert>({.rank = 4, .alpha = 9, .target_modules = {"query"}}).layout));
}

}  // namespace fedlora::tests
