// SPDX-License-Identifier: Apache-2.0
// A run between two rounds, as one value and one file: what a killed run needs to go on with the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
#include "fedlora/core/random.hpp"
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

inline constexpr int run_state_version = 2;

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

/// Over the JSON, and over name and bytes of every tensor, sorted by name: bits that a disk has lost would change the
/// result of a run without a word.
class RunStateChecksum {
 public:
  RunStateChecksum& add(std::span<const std::byte> bytes) {
    hash_ = mix(hash_, bytes.size());
    for (std::size_t i = 0; i < bytes.size(); i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + i, std::min<std::size_t>(8, bytes.size() - i));
      hash_ = mix(hash_, word);
    }
    return *this;
  }
  RunStateChecksum& add(std::string_view text) { return add(std::as_bytes(std::span(text.data(), text.size()))); }
  std::string text() const { return std::to_string(hash_); }

 private:
  std::uint64_t hash_ = 0;
};

/// The state's file: `json` and the checksum are its metadata.
inline std::string run_state_file(std::vector<TensorToWrite> tensors, const Json& json) {
  std::string text = json_text(json);
  RunStateChecksum checksum;
  checksum.add(text);
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (const TensorToWrite& tensor : tensors) checksum.add(tensor.name).add(tensor.bytes);
  return safetensors_bytes(tensors, {{"checksum", checksum.text()}, {"fedlora_run_state", std::move(text)}});
}

/// The JSON in the metadata of a state's file, of this version, once the checksum has shown the file to be whole.
struct RunStateJson {
  std::string where;
  Json json;

  RunStateJson(const SafetensorsFile& file, const std::string& name) : where(name + ", fedlora_run_state") {
    const auto text = file.metadata().find("fedlora_run_state"), sum = file.metadata().find("checksum");
    if (text == file.metadata().end())
      fail<FormatError>(name + ", metadata fedlora_run_state", "the state of a run", "none");
    RunStateChecksum checksum;
    checksum.add(text->second);
    for (const auto& [tensor, view] : file.tensors()) checksum.add(tensor).add(view.bytes);
    if (sum == file.metadata().end() || sum->second != checksum.text())
      fail<FormatError>(name, "a state as it was written, with the checksum " + checksum.text(),
                        sum == file.metadata().end() ? "none" : sum->second);
    json = parse_json(bytes_of(text->second, where));
    if (!json.is_object()) fail<FormatError>(where, "an object", json.type_name());
    const auto version = json_get<int>(json, "version", where);
    if (version != run_state_version)
      fail<FormatError>(where + ", field version", std::to_string(run_state_version), std::to_string(version));
  }

  const Json& member(const char* field, bool (Json::*is)() const noexcept, const char* expected) const {
    const auto found = json.find(field);
    if (found == json.end() || !((*found).*is)())
      fail<FormatError>(where + ", field " + field, expected, found == json.end() ? "nothing" : found->type_name());
    return *found;
  }
};

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
  return detail::run_state_file(std::move(tensors), json);
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
  const detail::RunStateJson saved(file, name);
  const Json& json = saved.json;
  const std::string& where = saved.where;

  RunState<T> state;
  state.config = saved.member("config", &Json::is_object, "an object");
  state.seed = json_get<std::uint64_t>(json, "seed", where);
  state.round = detail::json_count(json, "round", where);
  state.ledger =
      CommunicationLedger::from_json(saved.member("ledger", &Json::is_array, "an array"), where + ", field ledger");
  const Json& rows = saved.member("metrics", &Json::is_array, "an array");
  state.metrics.assign(rows.begin(), rows.end());
  state.extra = saved.member("extra", &Json::is_object, "an object");

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
  if (adapters > 0 && saved.member("layout", &Json::is_array, "an array") != detail::layout_json(*layout))
    fail<FormatError>(where + ", field layout", "the modules, shapes and scales of this model's adapter", "others");
  for (Index i = 0; i < adapters; ++i) state.adapters.emplace_back(layout, read("adapter." + std::to_string(i)));

  Index last_client = -1;
  for (const Json& row : saved.member("clients", &Json::is_array, "an array")) {
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

/// What a state says of its run without its model: to see what it was before anything is loaded.
struct SavedRun {
  Json config;  ///< the configuration the run was started with
  Index round = 0;
  Json extra;
};

/// \throws FormatError naming file and field for anything but the state of a run.
inline SavedRun read_saved_run(const Bytes& bytes) {
  const SafetensorsFile file(bytes);
  const detail::RunStateJson state(file, bytes.name);
  return {state.member("config", &Json::is_object, "an object"), detail::json_count(state.json, "round", state.where),
          state.member("extra", &Json::is_object, "an object")};
}

/// A field in which two configurations differ, and its values as JSON; "nothing" where one lacks it.
struct ConfigDifference {
  std::string field, saved, now;
};

/// Compares two configurations field by field; nested fields are named "local.batch". A field in `passed_over` is left
/// out, with everything under it. A run that goes on under another configuration than it was started with ends with
/// something that neither gives.
inline std::vector<ConfigDifference> config_differences(const Json& saved, const Json& now,
                                                        const std::set<std::string>& passed_over,
                                                        const std::string& prefix = "") {
  const auto text = [](const Json* value) { return value == nullptr ? std::string("nothing") : json_text(*value); };
  std::set<std::string> fields;
  for (const auto& [field, value] : saved.items()) fields.insert(field);
  for (const auto& [field, value] : now.items()) fields.insert(field);
  std::vector<ConfigDifference> differences;
  for (const std::string& field : fields) {
    const std::string path = prefix.empty() ? field : prefix + "." + field;
    if (passed_over.contains(path)) continue;
    const Json* const before = saved.contains(field) ? &saved[field] : nullptr;
    const Json* const after = now.contains(field) ? &now[field] : nullptr;
    if (before != nullptr && after != nullptr && before->is_object() && after->is_object()) {
      for (auto& below : config_differences(*before, *after, passed_over, path))
        differences.push_back(std::move(below));
    } else if (before == nullptr || after == nullptr || (*before != *after && text(before) != text(after))) {
      differences.push_back({path, text(before), text(after)});
    }
  }
  return differences;
}

}  // namespace fedlora
