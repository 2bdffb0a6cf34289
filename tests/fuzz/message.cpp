// SPDX-License-Identifier: Apache-2.0
// Messages from clients and from the server: whatever arrives, and what is read is written again as it came.
#include "fedlora/fed/message.hpp"

#include <cmath>
#include <string>
#include <string_view>

#include "fuzz/framing.hpp"
#include "fuzz/small_layout.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

template <class T>
void read_message(const Bytes& message) {
  const auto layout = small_layout();
  const MessageSizes<T> sizes(*layout);
  if (const auto update = unless_refused(message.name, [&] { return parse_update<T>(message, layout); })) {
    require(update->client >= 0 && update->round >= 0 && update->num_examples >= 0 && update->metrics.steps >= 0 &&
                update->metrics.loss_count >= 0,
            "counts are not negative");
    const std::string written = update_message(*update);
    require(sizes.update(*update).total() == static_cast<std::int64_t>(written.size()), "a message has the size told");
    const Update<T> back = parse_update<T>(bytes_of(written, "again"), layout);
    require(same_bits(back.adapter, update->adapter) && back.client == update->client && back.round == update->round &&
                back.num_examples == update->num_examples && back.metrics.steps == update->metrics.steps,
            "an update reads as it was written");
    require(std::isnan(update->metrics.train_loss) ? std::isnan(back.metrics.train_loss)
                                                   : back.metrics.train_loss == update->metrics.train_loss,
            "a loss reads as it was written");
  }
  if (const auto broadcast = unless_refused(message.name, [&] { return parse_broadcast<T>(message, layout); })) {
    require(broadcast->round >= 0 && broadcast->client >= 0, "counts are not negative");
    const std::string written = broadcast_message(broadcast->adapter, broadcast->round, broadcast->client);
    const Broadcast<T> back = parse_broadcast<T>(bytes_of(written, "again"), layout);
    require(same_bits(back.adapter, broadcast->adapter) && back.round == broadcast->round &&
                back.client == broadcast->client,
            "a broadcast reads as it was written");
  }
}

const Target message_target("message", [](std::string_view input) {
  const Bytes message = bytes_of(safetensors_of(input), "message of client 3");
  read_message<float>(message);
  read_message<double>(message);
});

}  // namespace fedlora::fuzz
