// SPDX-License-Identifier: Apache-2.0
// A run between two rounds, as one value and one file: what a killed run needs to go on with the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/client_store.hpp"
#include "fedlora/fed/ledger.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/state_dict.hpp"

namespace fedlora {

/// Everything a run has become by the end of `round`. Together with the configuration it decides all that follows:
/// samples, shuffles and masks are addressed by seed and round, so there is no generator to save.
template <class T>
struct RunState {
  Json config = Json::object();  ///< the configuration the run was started with
  std::uint64_t seed = 0;
  Index round = 0;                   ///< rounds completed
  std::vector<Adapter<T>> adapters;  ///< the global adapter; or, where everybody has an own one, one per client
  CommunicationLedger ledger;
  ClientStore<T> clients;
  std::vector<Json> metrics;    ///< rows written so far
  Json extra = Json::object();  ///< anything else the program wants back: elapsed seconds, finished modes
};

namespace detail {

inline constexpr int run_state_version = 1;

inline Json layout_json(const AdapterLayout& layout) {
  Json places = Json::array();
  for (const AdapterSite& site : layout.sites) places.push_back({site.name, site.in, site.out, site.rank, site.scale});
  for (const SavedTensor& tensor : layout.saved) places.push_back({tensor.name, tensor.shape});
  return places;
}

/// A whole number in [0, 2^53] among a file's JSON.
inline Index json_count(const Json& object, std::string_view field, const std::string& where) {
  const auto value = json_get<Index>(object, field, where);
  if (value < 0 || value > (Index{1} << 53))
    fail<FormatError>(where + ", field " + std::string(field), "a whole number in [0, 2^53]", std::to_string(value));
  return value;
}

}  // namespace detail

/// The state as one safetensors file: a flat tensor per adapter ("adapter.0", …) and per remembered tensor
/// ("client.7.exp_avg"), the rest as JSON under the metadata key "fedlora_run_state".
template <class T>
std::string run_state_bytes(const RunState<T>& state) {
  std::vector<TensorToWrite> tensors;
  const auto add = [&](std::string name, std::span<const T> values) {
    tensors.push_back({std::move(name), dtype_of<T>, {static_cast<Index>(values.size())}, std::as_bytes(values)});
  };
  for (std::size_t i = 0; i < state.adapters.size(); ++i)
    add("adapter." + std::to_string(i), state.adapters[i].values());
  Json clients = Json::array();
  for (const auto& [client, entry] : state.clients.entries()) {
    Json names = Json::array();
    for (const auto& [name, values] : entry.tensors) {
      add("client." + std::to_string(client) + "." + name, std::span<const T>(values));
      names.push_back(name);
    }
    clients.push_back(
        {{"client", client}, {"round", entry.round}, {"steps", entry.steps}, {"tensors", std::move(names)}});
  }
  const Json json = {
      {"version", detail::run_state_version},
      {"config", state.config},
      {"seed", state.seed},
      {"round", state.round},
      {"adapters", state.adapters.size()},
      {"layout", state.adapters.empty() ? Json::array() : detail::layout_json(state.adapters.front().layout())},
      {"ledger", state.ledger.to_json()},
      {"clients", std::move(clients)},
      {"metrics", state.metrics},
      {"extra", state.extra}};
  return safetensors_bytes(tensors, {{"fedlora_run_state", json_text(json)}});
}

/// Writes the state atomically: after a kill at any instant the file holds the old state or the new one, whole.
template <class T>
void save_run_state(const RunState<T>& state, const std::filesystem::path& path) {
  write_file_atomically(path, std::string_view(run_state_bytes(state)));
}

/// \throws FormatError naming file and field for anything but a state of adapters with this layout in this precision.
template <class T>
RunState<T> parse_run_state(const Bytes& bytes, const std::shared_ptr<const AdapterLayout>& layout) {
  const std::string& name = bytes.name;
  const SafetensorsFile file(bytes);
  const auto text = file.metadata().find("fedlora_run_state");
  if (text == file.metadata().end())
    fail<FormatError>(name + ", metadata fedlora_run_state", "the state of a run", "none");
  const std::string where = name + ", fedlora_run_state";
  const Json json = parse_json(bytes_of(text->second, where));
  if (!json.is_object()) fail<FormatError>(where, "an object", json.type_name());
  const auto version = json_get<int>(json, "version", where);
  if (version != detail::run_state_version)
    fail<FormatError>(where + ", field version", std::to_string(detail::run_state_version), std::to_string(version));
  const auto member = [&](const char* field, auto is, const char* expected) -> const Json& {
    const auto found = json.find(field);
    if (found == json.end() || !((*found).*is)())
      fail<FormatError>(where + ", field " + field, expected, found == json.end() ? "nothing" : found->type_name());
    return *found;
  };

  RunState<T> state;
  state.config = member("config", &Json::is_object, "an object");
  state.seed = json_get<std::uint64_t>(json, "seed", where);
  state.round = detail::json_count(json, "round", where);
  state.ledger =
      CommunicationLedger::from_json(member("ledger", &Json::is_array, "an array"), where + ", field ledger");
  const Json& rows = member("metrics", &Json::is_array, "an array");
  state.metrics.assign(rows.begin(), rows.end());
  state.extra = member("extra", &Json::is_object, "an object");

  std::set<std::string> used;
  const auto read = [&](const std::string& tensor) {
    const TensorView* view = file.find(tensor);
    if (view == nullptr) fail<FormatError>(name + ", tensor " + tensor, "it", "no such tensor");
    const std::vector<Index> shape = {layout->size};
    if (view->shape != shape || view->dtype != dtype_of<T>)
      fail<FormatError>(
          name + ", tensor " + tensor,
          std::string(dtype_name(dtype_of<T>)) + " of shape " + shape_text(std::span<const Index>(shape)),
          std::string(dtype_name(view->dtype)) + " of shape " + shape_text(std::span<const Index>(view->shape)));
    if (!used.insert(tensor).second) fail<FormatError>(name + ", tensor " + tensor, "one use", "two");
    std::vector<T> values(static_cast<std::size_t>(layout->size));
    copy_tensor(*view, std::span<T>(values));
    return values;
  };
  const Index adapters = detail::json_count(json, "adapters", where);
  if (adapters > static_cast<Index>(file.tensors().size()))
    fail<FormatError>(where + ", field adapters",
                      "at most the file's " + std::to_string(file.tensors().size()) + " tensors",
                      std::to_string(adapters));
  if (adapters > 0 && member("layout", &Json::is_array, "an array") != detail::layout_json(*layout))
    fail<FormatError>(where + ", field layout", "the modules, shapes and scales of this model's adapter", "others");
  for (Index i = 0; i < adapters; ++i) state.adapters.emplace_back(layout, read("adapter." + std::to_string(i)));

  Index last_client = -1;
  for (const Json& row : member("clients", &Json::is_array, "an array")) {
    const std::string entry_where = where + ", field clients";
    if (!row.is_object()) fail<FormatError>(entry_where, "objects", row.type_name());
    const Index client = detail::json_count(row, "client", entry_where);
    if (client <= last_client)
      fail<FormatError>(entry_where, "clients in ascending order",
                        std::to_string(client) + " after " + std::to_string(last_client));
    last_client = client;
    ClientEntry<T> entry{
        detail::json_count(row, "round", entry_where), detail::json_count(row, "steps", entry_where), {}};
    if (entry.round > state.round)
      fail<FormatError>(entry_where + ", client " + std::to_string(client),
                        "a round of at most " + std::to_string(state.round), std::to_string(entry.round));
    for (const auto& tensor : json_get<std::vector<std::string>>(row, "tensors", entry_where))
      entry.tensors.emplace(tensor, read("client." + std::to_string(client) + "." + tensor));
    state.clients.put(client, std::move(entry));
  }
  if (used.size() != file.tensors().size())
    for (const auto& [tensor, view] : file.tensors())
      if (!used.contains(tensor))
        fail<FormatError>(name, "tensors that the state names", "tensor " + detail::in_quotes(tensor));
  return state;
}

template <class T>
RunState<T> load_run_state(const std::filesystem::path& path, const std::shared_ptr<const AdapterLayout>& layout) {
  return parse_run_state<T>(map_file(path), layout);
}

/// The configuration a saved run was started with, read without knowing its model: to refuse a resume before loading
/// anything.
inline Json saved_config(const Bytes& bytes) {
  const SafetensorsFile file(bytes);
  const auto text = file.metadata().find("fedlora_run_state");
  if (text == file.metadata().end())
    fail<FormatError>(bytes.name + ", metadata fedlora_run_state", "the state of a run", "none");
  const Json json = parse_json(bytes_of(text->second, bytes.name + ", fedlora_run_state"));
  if (!json.is_object() || !json.contains("config") || !json["config"].is_object())
    fail<FormatError>(bytes.name + ", fedlora_run_state, field config", "an object", "something else");
  return json["config"];
}

/// Compares two configurations field by field; nested fields are named "local.batch". A field in `may_differ` is passed
/// over, with everything under it. \throws ConfigError naming the first field that differs, what the saved run has, and
/// what came.
inline void check_resumable(const Json& saved, const Json& config, const std::set<std::string>& may_differ,
                            const std::string& prefix = "") {
  const auto text = [](const Json* value) {
    return value == nullptr ? std::string("nothing") : json_text(*value);
  };
  std::set<std::string> fields;
  for (const auto& [field, value] : saved.items()) fields.insert(field);
  for (const auto& [field, value] : config.items()) fields.insert(field);
  for (const std::string& field : fields) {
    const std::string path = prefix.empty() ? field : prefix + "." + field;
    if (may_differ.contains(path)) continue;
    const Json* const before = saved.contains(field) ? &saved[field] : nullptr;
    const Json* const now = config.contains(field) ? &config[field] : nullptr;
    if (before != nullptr && now != nullptr && before->is_object() && now->is_object()) {
      check_resumable(*before, *now, may_differ, path);
    } else if (before == nullptr || now == nullptr || (*before != *now && text(before) != text(now))) {
      fail<ConfigError>("resume, field " + path, text(before) + ", as the saved run has it", text(now));
    }
  }
}

}  // namespace fedlora
