// SPDX-License-Identifier: Apache-2.0
// What crosses the boundary, as bytes: a broadcast to a client and an update from it, both safetensors with the adapter
// under PEFT's keys and a few fields of protocol in the metadata. Parsing trusts nothing.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/update.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/state_dict.hpp"

namespace fedlora {

/// Bytes of a message, by what they are for.
struct MessageSize {
  std::int64_t adapter = 0;   ///< low-rank factors
  std::int64_t head = 0;      ///< whole trained tensors
  std::int64_t protocol = 0;  ///< everything else: lengths, names, shapes, round, client

  std::int64_t total() const { return adapter + head + protocol; }
  MessageSize& operator+=(const MessageSize& other) {
    adapter += other.adapter;
    head += other.head;
    protocol += other.protocol;
    return *this;
  }
  friend bool operator==(const MessageSize&, const MessageSize&) = default;
};

/// What a server sends to a client at the start of a round.
template <class T>
struct Broadcast {
  Index round = 0;
  Index client = 0;
  Adapter<T> adapter;
};

namespace detail {

using MessageFields = std::map<std::string, std::string>;

inline MessageFields broadcast_fields(Index round, Index client) {
  return {{"message", "broadcast"}, {"round", std::to_string(round)}, {"client", std::to_string(client)}};
}

/// The shortest text that reads back as the same double; the same on every platform.
inline std::string number_text(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return error == std::errc() ? std::string(buffer, end) : std::string("nan");
}

inline MessageFields update_fields(Index round, Index client, Index num_examples, const ClientMetrics& metrics) {
  return {{"message", "update"},
          {"round", std::to_string(round)},
          {"client", std::to_string(client)},
          {"num_examples", std::to_string(num_examples)},
          {"train_loss", number_text(metrics.train_loss)},
          {"loss_count", std::to_string(metrics.loss_count)},
          {"steps", std::to_string(metrics.steps)}};
}

inline const std::string& message_field(const SafetensorsFile& file, const std::string& name,
                                        const std::string& field) {
  const auto found = file.metadata().find(field);
  if (found == file.metadata().end()) fail<FormatError>(name + ", field " + field, "a value", "none");
  return found->second;
}

template <class Number>
Number message_number(const SafetensorsFile& file, const std::string& name, const std::string& field) {
  const std::string& text = message_field(file, name, field);
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail<FormatError>(name + ", field " + field, "a number", in_quotes(text));
  return value;
}

inline Index message_count(const SafetensorsFile& file, const std::string& name, const std::string& field) {
  const auto value = message_number<Index>(file, name, field);
  if (value < 0) fail<FormatError>(name + ", field " + field, "a number of at least 0", std::to_string(value));
  return value;
}

inline void expect_message(const SafetensorsFile& file, const std::string& name, const std::string& kind) {
  const std::string& got = message_field(file, name, "message");
  if (got != kind) fail<FormatError>(name + ", field message", kind, in_quotes(got));
}

/// Bytes of the header that names these tensors and fields, without its padding and the eight bytes of its length.
inline std::int64_t header_length(std::string_view message) {
  std::uint64_t length = 0;
  std::memcpy(&length, message.data(), sizeof length);
  std::string_view header = message.substr(8, static_cast<std::size_t>(length));
  while (header.ends_with(' ')) header.remove_suffix(1);
  return static_cast<std::int64_t>(header.size());
}

}  // namespace detail

/// A broadcast as bytes.
template <class T>
std::string broadcast_message(const Adapter<T>& adapter, Index round, Index client) {
  return adapter_bytes(adapter, detail::broadcast_fields(round, client));
}

/// An update as bytes. `metrics.seconds` stays behind, so that equal training gives equal bytes.
template <class T>
std::string update_message(const Update<T>& update) {
  return adapter_bytes(update.adapter,
                       detail::update_fields(update.round, update.client, update.num_examples, update.metrics));
}

/// \throws FormatError naming the message, and the tensor or field, for anything but a broadcast for exactly this
/// layout.
template <class T>
Broadcast<T> parse_broadcast(const Bytes& message, const std::shared_ptr<const AdapterLayout>& layout) {
  const SafetensorsFile file(message);
  const std::string& name = message.name;
  detail::expect_message(file, name, "broadcast");
  return {detail::message_count(file, name, "round"), detail::message_count(file, name, "client"),
          adapter_from<T>(file.tensors(), layout, name, DtypePolicy::exact)};
}

/// \throws FormatError naming the message, and the tensor or field, for anything but an update for exactly this layout.
template <class T>
Update<T> parse_update(const Bytes& message, const std::shared_ptr<const AdapterLayout>& layout) {
  const SafetensorsFile file(message);
  const std::string& name = message.name;
  detail::expect_message(file, name, "update");
  ClientMetrics metrics;
  metrics.train_loss = detail::message_number<double>(file, name, "train_loss");
  metrics.loss_count = detail::message_count(file, name, "loss_count");
  metrics.steps = detail::message_count(file, name, "steps");
  return {detail::message_count(file, name, "client"), detail::message_count(file, name, "round"),
          detail::message_count(file, name, "num_examples"), metrics,
          adapter_from<T>(file.tensors(), layout, name, DtypePolicy::exact)};
}

/// Sizes of messages without making them: names and shapes are measured once, the fields each time.
template <class T>
class MessageSizes {
 public:
  explicit MessageSizes(const AdapterLayout& layout)
      : adapter_(layout.lora_size * static_cast<Index>(sizeof(T))),
        head_((layout.size - layout.lora_size) * static_cast<Index>(sizeof(T))) {
    // A header's length depends on names and shapes alone; the zeros are never looked at.
    const std::vector<T> zeros(static_cast<std::size_t>(layout.size));
    std::vector<TensorToWrite> tensors;
    for (const StateEntry& entry : state_entries(layout))
      tensors.push_back({entry.key, dtype_of<T>, entry.shape,
                         std::as_bytes(std::span(zeros).first(static_cast<std::size_t>(entry.size())))});
    names_ = detail::header_length(safetensors_bytes(tensors, {}));
    any_ = !tensors.empty();
  }

  MessageSize broadcast(Index round, Index client) const { return with(detail::broadcast_fields(round, client)); }
  MessageSize update(const Update<T>& update) const {
    return with(detail::update_fields(update.round, update.client, update.num_examples, update.metrics));
  }

 private:
  MessageSize with(const detail::MessageFields& fields) const {
    // Both headers are objects: joined, they share one pair of braces and need a comma.
    const std::int64_t header = names_ + detail::header_length(safetensors_bytes({}, fields)) - 2 + (any_ ? 1 : 0);
    return {adapter_, head_, 8 + (header + 7) / 8 * 8};
  }

  std::int64_t adapter_;
  std::int64_t head_;
  std::int64_t names_ = 0;
  bool any_ = false;
};

}  // namespace fedlora
