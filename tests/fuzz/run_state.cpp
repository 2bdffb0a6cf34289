// SPDX-License-Identifier: Apache-2.0
// The state of a run. The input is a safetensors file, or ">>> tensors" (a listing) and ">>> state.json" that goes with
// it into one. What is read is written again as it came.
#include "fedlora/fed/run_state.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "fuzz/checksum.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/small_layout.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

inline std::string state_file(std::string_view input) {
  if (!input.starts_with(">>> ")) return safetensors_of(input);
  const FileContents files = files_of(input);
  const auto contents = [&](const char* name) {
    const auto found = files.find(name);
    return found == files.end() ? std::string() : found->second;
  };
  std::string json = contents("state.json");
  std::replace(json.begin(), json.end(), '\n', ' ');
  return with_checksum(safetensors_of_listing("@fedlora_run_state " + json + "\n" + contents("tensors")));
}

const Target run_state_target("run_state", [](std::string_view input) {
  const Bytes file = bytes_of(state_file(input), "fuzz/state.safetensors");
  if (const auto saved = unless_refused(file.name, [&] { return read_saved_run(file); }))
    require(config_differences(saved->config, saved->config, {}).empty(), "a run may go on under its own options");
  const auto state = unless_refused(file.name, [&] { return parse_run_state<float>(file, small_layout()); });
  if (!state) return;
  require(state->round >= 0, "rounds are not negative");
  for (const auto& [client, entry] : state->clients.entries())
    require(client >= 0 && entry.round >= 0 && entry.round <= state->round && entry.steps >= 0,
            "clients hold together");
  for (const auto& [round, traffic] : state->ledger.rounds())
    require(round >= 0 && traffic.up.bytes.total() >= 0, "traffic is counted");
  state->ledger.total();
  const std::string written = run_state_bytes(*state);
  const RunState<float> back = parse_run_state<float>(bytes_of(written, "again"), small_layout());
  require(back.clients == state->clients || written == run_state_bytes(back), "clients read as they were written");
  require(back.ledger == state->ledger && back.seed == state->seed && back.round == state->round,
          "a state reads as it was written");
  require(run_state_bytes(back) == written, "equal states give equal bytes");
});

}  // namespace fedlora::fuzz
