// SPDX-License-Identifier: Apache-2.0
#include "fedlora/fed/message.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/fed/ledger.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/optim/adamw.hpp"
#include "support.hpp"

using namespace fedlora;
using tests::has;
using tests::same_bits;
using tests::SoftmaxRegression;
using tests::toy_dataset;
using tests::toy_partition;

namespace {

template <class T>
Update<T> some_update(const SoftmaxRegression<T>& model) {
  return {
      12, 345, 6789, {.train_loss = 0.1 + 0.2, .loss_count = 55, .steps = 7, .seconds = 1.5}, model.initial_adapter(3)};
}

std::string rejection(const std::string& message, const std::shared_ptr<const AdapterLayout>& layout) {
  try {
    parse_update<float>(bytes_of(message, "message of client 12"), layout);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE_TEMPLATE("messages come back with every bit", T, float, double) {
  const SoftmaxRegression<T> model;
  const auto update = some_update(model);
  const auto back = parse_update<T>(bytes_of(update_message(update), "m"), model.layout());
  CHECK(back.client == 12);
  CHECK(back.round == 345);
  CHECK(back.num_examples == 6789);
  CHECK(back.metrics.train_loss == update.metrics.train_loss);
  CHECK(back.metrics.loss_count == 55);
  CHECK(back.metrics.steps == 7);
  CHECK(back.metrics.seconds == 0);  // the clock is not sent
  CHECK(same_bits(back.adapter, update.adapter));

  const auto broadcast = parse_broadcast<T>(bytes_of(broadcast_message(update.adapter, 345, 12), "m"), model.layout());
  CHECK(broadcast.round == 345);
  CHECK(broadcast.client == 12);
  CHECK(same_bits(broadcast.adapter, update.adapter));
}

TEST_CASE("equal training gives equal bytes, whatever the clock says") {
  const SoftmaxRegression<float> model;
  auto update = some_update(model);
  const auto message = update_message(update);
  update.metrics.seconds = 99;
  CHECK(update_message(update) == message);
}

TEST_CASE_TEMPLATE("sizes are those of the bytes, part by part", T, float, double) {
  for (const Index rank : {1, 3, 8}) {
    const SoftmaxRegression<T> model({.vocabulary = 17, .classes = 5, .rank = rank});
    const MessageSizes<T> sizes(*model.layout());
    auto update = some_update(model);
    for (const Index scale : {1, 10, 1000, 1000000}) {
      update.client = scale;
      update.round = 7 * scale;
      update.metrics.train_loss = 1.0 / static_cast<double>(scale + 2);
      const MessageSize up = sizes.update(update), down = sizes.broadcast(update.round, update.client);
      CHECK(up.total() == static_cast<std::int64_t>(update_message(update).size()));
      CHECK(down.total() ==
            static_cast<std::int64_t>(broadcast_message(update.adapter, update.round, update.client).size()));
      CHECK(up.adapter == rank * (17 + 5) * static_cast<Index>(sizeof(T)));
      CHECK(up.head == 5 * static_cast<Index>(sizeof(T)));
      CHECK(up.protocol > 0);
    }
  }
}

TEST_CASE("sizes hold for adapters that are all head, or all factors, or nothing") {
  for (const int kind : {0, 1, 2}) {
    auto layout = std::make_shared<AdapterLayout>();
    layout->config.rank = 2;
    if (kind == 0) layout->add_saved("score.weight", {3, 4});
    if (kind == 1) layout->add_site("q", 3, 4, 2, 2);
    Update<float> update{1, 2, 3, {}, Adapter<float>(layout)};
    CHECK(MessageSizes<float>(*layout).update(update).total() ==
          static_cast<std::int64_t>(update_message(update).size()));
  }
}

TEST_CASE("the ledger holds the bytes of every message of a round, exactly") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(90), toy_partition(90, 4), AdamW{});
  CommunicationLedger ledger;
  const auto global = model.initial_adapter(1);
  std::int64_t up = 0, down = 0;
  for (Index round = 1; round <= 12; ++round) {
    const auto cohort = sample_uniform(clients, {.fraction = 0.5, .seed = 1, .round = round});
    std::int64_t round_up = 0;
    for (const auto& update : train(cohort, global, {}, ledger)) {
      round_up += static_cast<std::int64_t>(update_message(update).size());
      down += static_cast<std::int64_t>(broadcast_message(global, round, update.client).size());
    }
    up += round_up;
    CHECK(ledger.round(round).up.bytes.total() == round_up);
    CHECK(ledger.round(round).up.messages == 2);
    CHECK(ledger.round(round).down.messages == 2);
  }
  const RoundTraffic total = ledger.total();
  CHECK(total.up.bytes.total() == up);
  CHECK(total.down.bytes.total() == down);
  CHECK(total.up.bytes.adapter == 24 * 2 * (12 + 3) * 4);
  CHECK(total.up.bytes.head == 24 * 3 * 4);
  CHECK(total.up.messages == 24);
  CHECK(ledger.round(99) == RoundTraffic{});
  CHECK(CommunicationLedger::from_json(ledger.to_json(), "ledger") == ledger);
}

TEST_CASE("a ledger in a file is checked") {
  const auto bad = [](const char* text) { CommunicationLedger::from_json(Json::parse(text), "ledger"); };
  CHECK_NOTHROW(bad("[[1,2,3,4,5,6,7,8,9]]"));
  CHECK_THROWS_AS(bad("{}"), FormatError);
  CHECK_THROWS_AS(bad("[1]"), FormatError);
  CHECK_THROWS_AS(bad("[[1,2,3,4,5,6,7,8]]"), FormatError);
  CHECK_THROWS_AS(bad("[[1,2,3,4,5,6,7,8,-9]]"), FormatError);
  CHECK_THROWS_AS(bad("[[1,2,3,4,5,6,7,8,1.5]]"), FormatError);
  CHECK_THROWS_AS(bad("[[1,2,3,4,5,6,7,8,18446744073709551615]]"), FormatError);
  CHECK_THROWS_AS(bad("[[1,2,3,4,5,6,7,8,9],[1,2,3,4,5,6,7,8,9]]"), FormatError);
}

TEST_CASE("a message for another layout, of another kind or precision, or with bad fields is refused by name") {
  const SoftmaxRegression<float> model, wider({.rank = 3});
  const SoftmaxRegression<double> precise;
  const auto layout = model.layout();
  CHECK(rejection(update_message(some_update(model)), layout) == "accepted");
  CHECK(has(rejection(update_message(some_update(wider)), layout), "message of client 12, tensor"));
  CHECK(
      has(rejection(update_message(some_update(wider)), layout), "lora_A.weight] expected shape (2, 12), got (3, 12)"));
  CHECK(has(rejection(update_message(some_update(precise)), layout), "expected F32, got F64"));
  CHECK(has(rejection(broadcast_message(model.initial_adapter(1), 1, 1), layout), "field message] expected update"));

  auto fields = detail::update_fields(345, 12, 6789, {});
  const auto with = [&](const std::string& field, const std::string& value) {
    auto changed = fields;
    if (value == "absent") {
      changed.erase(field);
    } else {
      changed[field] = value;
    }
    return rejection(adapter_bytes(model.initial_adapter(1), changed), layout);
  };
  CHECK(has(with("num_examples", "absent"), "field num_examples] expected a value, got none"));
  CHECK(has(with("num_examples", "-4"), "field num_examples] expected a number of at least 0"));
  CHECK(has(with("num_examples", "4 or so"), "field num_examples] expected a number"));
  CHECK(has(with("num_examples", ""), "field num_examples] expected a number"));
  CHECK(has(with("client", "99999999999999999999"), "field client] expected a number"));
  CHECK(has(with("train_loss", "x"), "field train_loss]"));
}

TEST_CASE("a damaged message is an error, never a crash, and never half an update") {
  const SoftmaxRegression<float> model;
  const std::string message = update_message(some_update(model));
  for (std::size_t length = 0; length < message.size(); length += 7)
    CHECK(rejection(message.substr(0, length), model.layout()) != "accepted");
  RandomSequence random(derive_key(5, Purpose::user));
  std::uint64_t header = 0;
  std::memcpy(&header, message.data(), 8);
  int refused = 0;
  for (int trial = 0; trial < 500; ++trial) {
    std::string damaged = message;
    damaged[random.below(8 + header)] = static_cast<char>(random.below(256));
    refused += rejection(damaged, model.layout()) != "accepted" ? 1 : 0;
  }
  CHECK(refused > 400);  // a changed digit of a count, or padding, may pass
}
