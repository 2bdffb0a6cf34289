// SPDX-License-Identifier: Apache-2.0
// What a LoRA adapter is made of: PEFT's fields, under PEFT's names.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora {

/// How A is drawn; B always starts at zero.
enum class LoraInit {
  kaiming,   ///< uniform in ±1/sqrt(in): PEFT's default, torch's kaiming_uniform(a = sqrt 5)
  gaussian,  ///< normal with standard deviation 1/rank
};

/// What the adapter is trained for; PEFT's task_type.
enum class TaskType { sequence_classification, causal_lm };

/// LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + b + scale · B A dropout(x), A (rank, in), B (out, rank).
struct LoraConfig {
  Index rank = 8;
  double alpha = 8;         ///< scale = alpha / rank
  double dropout = 0.0;     ///< probability, on the adapter's input only
  bool use_rslora = false;  ///< scale = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)

  /// Module names as PEFT reads them: a module matches an entry when it is equal to it or ends in "." + entry.
  /// One entry "all-linear" takes every linear layer that is not trained whole: all of the blocks, and BERT's pooler
  /// when the checkpoint has it. Empty: the family's default (PEFT's, where it has one).
  std::vector<std::string> target_modules = {};
  /// A regular expression (Python's, lora/name_expression.hpp) that must match the whole module name; used instead of
  /// `target_modules` when set.
  std::string target_pattern = {};
  /// True for an adapter with no low-rank term at all: only `modules_to_save` is trained.
  bool head_only = false;

  /// Other ranks and alphas, keyed as PEFT does: a regular expression that matches the end of the module name.
  std::map<std::string, Index> rank_pattern = {};
  std::map<std::string, double> alpha_pattern = {};

  /// Modules trained whole and sent whole, in addition to the task's head.
  std::vector<std::string> modules_to_save = {};
  /// True for a head that stays as the checkpoint has it, as PEFT does without a task_type.
  bool freeze_head = false;

  LoraInit init = LoraInit::kaiming;
};

}  // namespace fedlora
