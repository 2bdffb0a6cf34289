// SPDX-License-Identifier: Apache-2.0
// What is predicted, where a table says it, and how it is measured: what the programs have in common about that.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "command_line.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/peft_config.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/evaluation.hpp"
#include "fedlora/nn/config.hpp"
#include "fedlora/report/text_table.hpp"

namespace fedlora::examples {

/// The options, as given; empty where they were not.
struct ProblemOptions {
  std::string type, label_separator, metric, positive_label;
};

/// "multi-label", "multi_label", or as config.json spells it.
inline std::optional<ProblemType> problem_type_option(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  if (!name.ends_with("_classification") && name != "regression") name += "_classification";
  return problem_type_of(name);
}

inline void declare(CLI::App& app, ProblemOptions& o, const std::string& group) {
  app.add_option(
         "--problem-type", o.type,
         "What a text has: single-label, multi-label (any number of labels) or regression (numbers) [the checkpoint's, "
         "else single-label]")
      ->check(CLI::Validator(
          [](std::string& text) {
            return problem_type_option(text) ? std::string()
                                             : "expected single-label, multi-label or regression, got " + text;
          },
          ""))
      ->group(group);
  app.add_option("--label-separator", o.label_separator,
                 "Between the labels of a text in one column, for multi-label; arrays in .jsonl and columns of 0 and 1 "
                 "need none")
      ->group(group);
  app.add_option("--metric", o.metric, "Show this measure too; several, comma between; they stand below")->group(group);
  app.add_option("--positive-label", o.positive_label, "The label that --metric f1 is of [the second]")->group(group);
}

/// All measures, for the end of --help.
inline std::string metrics_help() {
  std::string text = "Measures (* unasked):\n";
  for (const auto type : {ProblemType::single_label, ProblemType::multi_label, ProblemType::regression}) {
    std::string kind(problem_type_name(type).substr(0, problem_type_name(type).find("_classification")));
    std::replace(kind.begin(), kind.end(), '_', '-');
    text += "  " + kind + "\n";
    for (const Metric& metric : all_metrics) {
      if (metric.problem_type != type) continue;
      const std::string name(metric.name);
      text += (metric.usual ? "   *" : "    ") + name + std::string(17 - name.size(), ' ') +
              std::string(metric.definition) + "\n";
    }
  }
  return text;
}

/// Where a table has what is to be predicted: `label_column` is the label's, or the numbers' or labels', comma between.
inline void set_label_columns(ProblemType type, const std::string& label_column, const ProblemOptions& options,
                              TableColumns& columns) {
  if (!options.label_separator.empty() && type != ProblemType::multi_label)
    fail<UsageError>("--label-separator", "--problem-type multi-label with it", std::string(problem_type_name(type)));
  if (label_column.empty()) return;
  if (type == ProblemType::single_label) columns.label = label_column;
  if (type == ProblemType::regression) columns.targets = comma_separated(label_column);
  if (type == ProblemType::multi_label) columns.labels = comma_separated(label_column);
  columns.label_separator = options.label_separator;
}

/// \throws UsageError where labels are asked for of an adapter that predicts numbers.
inline void check_problem_type(const ProblemOptions& options, const std::string& adapter, const PeftConfig& config) {
  if (options.type.empty() || config.context.problem_type != ProblemType::regression) return;
  if (const ProblemType asked = *problem_type_option(options.type); asked != ProblemType::regression)
    fail<UsageError>("--problem-type", "regression, which the adapter " + adapter + " is for",
                     std::string(problem_type_name(asked)));
}

/// Reads a table by `read`; where it is refused because its labels are columns or arrays, and a text is to have one
/// label, says which option takes them.
template <class Read>
Table read_answers(ProblemType type, const std::string& label_column, const Read& read) {
  try {
    return read();
  } catch (const FormatError& error) {
    const std::string what = error.what();
    const bool several = label_column.find(',') != std::string::npos && what.find(label_column) != std::string::npos;
    const bool array = what.ends_with("got an array") &&
                       what.find(", field " + detail::printable(label_column) + "]") != std::string::npos;
    if (type != ProblemType::single_label || (!several && !array)) throw;
    throw FormatError(what + (array ? "; --problem-type multi-label takes arrays of labels"
                                    : "; --problem-type multi-label takes columns of 0 and 1, one for each label, "
                                      "--problem-type regression columns of numbers"));
  }
}

/// Puts the numbers of a table, which stand in these columns, into the places of a head's outputs (`match_numbers`);
/// the return value says which became which where that is a guess. Empty: it is none.
inline std::string place_targets(Table& table, const std::vector<std::string>& columns,
                                 const std::vector<std::string>& head) {
  if (columns.size() < 2 || columns.size() != head.size()) return "";
  LabelMatch match{LabelRule::order, match_numbers(head, columns), head};
  table.place_targets(match.rows);
  const bool nameless = head == row_names({}, static_cast<Index>(head.size()));
  const bool by_name = match_labels(head, columns).rule == LabelRule::name;
  return nameless || by_name ? "" : "numbers of " + table.source + ": " + label_rows_text(match, head, columns);
}

/// What numbers in these columns are called where no head names them: as the columns, unless those go by number.
inline std::vector<std::string> target_names(const std::vector<std::string>& columns) {
  const bool named = columns.size() > 1 && std::none_of(columns.begin(), columns.end(), [](const std::string& column) {
                       return whole_number(column).has_value();
                     });
  return named ? columns : row_names({}, static_cast<Index>(columns.size()));
}

/// The measures that are shown, and their values.
struct Measures {
  std::vector<Metric> shown;
  Index positive = 1;          ///< the label that "f1" is of
  std::string positive_label;  ///< its name; empty where "f1" is not shown

  Measures() = default;
  /// The usual ones of a problem type and those asked for. \throws UsageError for what is none, and for F1 of a label
  /// that there is not, or that is not named among more than two
  Measures(ProblemType type, const ProblemOptions& options, const std::vector<std::string>& labels) {
    for (const Metric& metric : all_metrics)
      if (metric.problem_type == type && metric.usual) shown.push_back(metric);
    if (!options.metric.empty())
      for (const std::string& name : comma_separated(options.metric)) add(type, name);
    const bool f1 = std::any_of(shown.begin(), shown.end(), [](const Metric& metric) { return metric.name == "f1"; });
    if (!options.positive_label.empty()) {
      if (!f1)
        fail<UsageError>("--positive-label", "--metric f1 with it",
                         options.metric.empty() ? "no --metric" : options.metric);
      const LabelMatch found = match_labels(labels, {&options.positive_label, 1});  // as the labels of a table
      if (!found)
        fail<UsageError>("--positive-label", "one of " + detail::quoted_list(labels),
                         detail::in_quotes(options.positive_label));
      positive = found.rows[0];
    } else if (f1 && labels.size() != 2) {
      fail<UsageError>("--metric f1", "--positive-label, as there are not two labels", "none");
    }
    if (f1) positive_label = labels[static_cast<std::size_t>(positive)];
  }

  /// What a person reads.
  std::string title(const Metric& metric) const {
    return metric.name == "f1" ? "F1 of " + detail::printable(positive_label, 20) : std::string(metric.title);
  }

  /// Their fields in files, the loss among them in any case.
  std::vector<std::string> fields() const {
    std::vector<std::string> names;
    if (shown[0].problem_type == ProblemType::regression) names.push_back("loss");
    for (const Metric& metric : shown) names.emplace_back(metric.name);
    return names;
  }

  double value(const Evaluation& evaluation, std::string_view field) const {
    return field == "loss" ? evaluation.loss : measure(evaluation, field, positive);
  }

  /// A field of a row for people.
  static std::string text(const Json& value) {
    return value.is_number() ? decimals(value.get<double>(), 4) : "undefined";
  }
  /// "accuracy 0.7345, loss 0.8129, macro F1 0.7290", from a row.
  std::string line(const Json& row) const {
    std::string text;
    for (const Metric& metric : shown)
      text += (text.empty() ? "" : ", ") + title(metric) + " " + Measures::text(row[std::string(metric.name)]);
    return text;
  }

  /// As files have it: what is undefined is null.
  static Json json(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

 private:
  void add(ProblemType type, const std::string& name) {
    try {
      const Metric& metric = find_metric(type, name);
      if (std::none_of(shown.begin(), shown.end(), [&](const Metric& one) { return one.name == name; }))
        shown.push_back(metric);
    } catch (const ConfigError& error) {
      throw UsageError("[--" + std::string(error.what()).substr(1));  // of "[metric] expected …"
    }
  }
};

}  // namespace fedlora::examples
