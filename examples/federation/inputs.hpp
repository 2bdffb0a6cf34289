// SPDX-License-Identifier: Apache-2.0
// What does not depend on the model's family: the tables, their labels, and who gets which examples.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "federation/options.hpp"
#include "fedlora/data/partition.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::examples {

struct Inputs {
  ProblemType problem_type = ProblemType::single_label;
  Table train, test;
  std::vector<std::string> labels;  ///< of the head's rows; the tables call theirs so too
  std::optional<Pooling> pooling;   ///< the person's, else the adapter's; absent: the family's own
  Index max_tokens = 0;             ///< the same; 0: the model's own limit
  std::vector<std::string> notes;   ///< what a person should be told
  Measures measures;
  /// What label skew goes by, and what the table of clients counts: labels, or what stands for them. Empty, as the
  /// partition, where no run has clients.
  std::vector<std::int32_t> groups;
  std::vector<std::string> group_names;
  Partition partition;
  std::vector<std::string> client_names;  ///< of a natural partition; empty for the others
  LoraConfig lora;
  Json config;  ///< of the whole run, with what the data added to it
};

/// Reads tables and adapter configuration, and deals the training examples to the clients.
Inputs read_inputs(const Options& options);

/// Clients × groups, with the totals and the range of these. Beyond forty clients or twenty groups the middle is left
/// out.
std::string partition_table(const Inputs& inputs);

}  // namespace fedlora::examples
