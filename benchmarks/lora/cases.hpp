// SPDX-License-Identifier: Apache-2.0
// What the benches of LoRA linear layers measure, as values: shapes, names, the least work there is, and the options
// that choose among them. The same for the CPU and for GPUs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::benchmarks {

/// Frozen matrices that read the same x, as those of q, k and v do: each is (out, in).
struct LayerShape {
  Index in = 0;
  std::vector<Index> outs;
};

/// One thing to measure.
struct Case {
  std::string op;     ///< forward, backward, both, or block: both, through all linear layers of a block
  Index rows = 0;     ///< tokens
  std::string sizes;  ///< as in the name: in/out, or hidden/intermediate size of a block
  std::vector<LayerShape> layers;
  Index rank = 0;  ///< 0: without low-rank terms
  double dropout = 0;

  bool has_forward() const { return op != "backward"; }
  bool has_backward() const { return op != "forward"; }

  /// The frozen layers alone.
  Case bare() const {
    Case result = *this;
    result.rank = 0;
    result.dropout = 0;
    return result;
  }

  /// op_variant/M/K/N/r/p/rest…
  std::string name(const std::string& variant, const std::string& rest) const {
    std::ostringstream text;
    text << op << '_' << variant << '/' << rows << '/' << sizes << "/r" << rank << "/p" << dropout << '/' << rest;
    return text.str();
  }

  /// Operations of the frozen products.
  double flops() const {
    return sum([&](double in, double out) { return (has_forward() + has_backward()) * 2.0 * m() * in * out; });
  }

  /// Bytes if each operand is read once, and each result written once; gradients, in float32, are added to. Elements
  /// have `size` bytes.
  double forward_bytes(double size) const {
    double elements = 0;
    for (const LayerShape& layer : layers) elements += m() * static_cast<double>(layer.in);  // x
    elements += sum([&](double in, double out) {
      return in * out + m() * out + r() * (in + out) + m() * r();  // W, y, A and B, S
    });
    return size * elements;
  }
  double backward_bytes(double size) const {
    double elements = 0;
    for (const LayerShape& layer : layers)  // dx, and x for the gradient of A
      elements += (rank > 0 ? 2 : 1) * m() * static_cast<double>(layer.in);
    elements += sum([&](double in, double out) { return in * out + m() * out + r() * (in + out) + m() * r(); });
    return size * elements + 8 * sum([&](double in, double out) { return r() * (in + out); });
  }
  double bytes(double size) const {
    return (has_forward() ? forward_bytes(size) : 0) + (has_backward() ? backward_bytes(size) : 0);
  }

  /// Bytes that backward needs of forward beyond what frozen layers need, which is nothing: x and S.
  double saved_bytes(double size) const {
    double elements = 0;
    for (const LayerShape& layer : layers)
      if (rank > 0) elements += m() * static_cast<double>(layer.in + rank * static_cast<Index>(layer.outs.size()));
    return size * elements;
  }

 private:
  double m() const { return static_cast<double>(rows); }
  double r() const { return static_cast<double>(rank); }

  template <class Term>
  double sum(const Term& term) const {
    double result = 0;
    for (const LayerShape& layer : layers)
      for (const Index out : layer.outs) result += term(static_cast<double>(layer.in), static_cast<double>(out));
    return result;
  }
};

/// The linear layers of a Transformer block. `kv` is the width of k and of v; a gated block has gate and up where
/// another has one matrix.
struct Block {
  Index hidden, intermediate, kv;
  bool gated;

  std::string sizes() const { return std::to_string(hidden) + "/" + std::to_string(intermediate); }
  std::vector<LayerShape> layers() const {
    return {{hidden, {hidden, kv, kv}},
            {hidden, {hidden}},
            {hidden, std::vector<Index>(gated ? 2 : 1, intermediate)},
            {intermediate, {hidden}}};
  }
};

inline constexpr Block known_blocks[] = {{768, 3072, 768, false},     // BERT-base, GPT-2
                                         {1024, 4096, 1024, false},   // BERT-large, GPT-2 medium
                                         {2048, 8192, 512, true},     // Llama-3.2-1B
                                         {4096, 14336, 1024, true}};  // Llama-3.1-8B

/// What is to be measured, as the command line chooses it.
struct Choice {
  std::vector<std::string> shapes;  ///< rows/in/out
  std::vector<std::string> blocks;  ///< rows/hidden/intermediate
  std::vector<std::string> ops = {"forward", "backward", "both"};
  std::vector<std::string> ranks = {"16"};
  std::vector<std::string> dropouts = {"0", "0.1"};
  std::vector<std::string> dtypes;
  int device = 0;

  static std::string help() {
    return "  --shapes=ROWS/IN/OUT,...               single layers\n"
           "  --blocks=ROWS/HIDDEN/INTERMEDIATE,...  all linear layers of a block\n"
           "  --ops=forward,backward,both            what single layers do\n"
           "  --ranks=R,...  --dropouts=P,...  --dtypes=NAME,...\n";
  }

  /// Takes its own options out of the command line. \throws ConfigError
  void read(int& argc, char** argv) {
    int kept = 1;
    for (int i = 1; i < argc; ++i)
      if (!take(argv[i])) argv[kept++] = argv[i];
    argc = kept;
  }

  /// \throws ConfigError
  std::vector<Case> cases() const {
    std::vector<Case> result;
    const auto add = [&](const std::string& op, const std::string& option, const std::string& text) {
      const std::vector<std::string> fields = split(text, '/');
      if (fields.size() != 3) fail<ConfigError>("--" + option, "three numbers with / between them", text);
      Case one;
      one.op = op;
      one.rows = number(option, fields[0]);
      one.sizes = fields[1] + "/" + fields[2];
      one.layers = option == "blocks"
                       ? block(one.sizes).layers()
                       : std::vector<LayerShape>{{number(option, fields[1]), {number(option, fields[2])}}};
      for (const std::string& rank : ranks)
        for (const std::string& dropout : dropouts) {
          one.rank = number("ranks", rank);
          one.dropout = real("dropouts", dropout);
          result.push_back(one);
        }
    };
    for (const std::string& text : blocks) add("block", "blocks", text);
    for (const std::string& text : shapes)
      for (const std::string& op : ops) {
        if (op != "forward" && op != "backward" && op != "both")
          fail<ConfigError>("--ops", "forward, backward or both", op);
        add(op, "shapes", text);
      }
    return result;
  }

  static std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts;
    while (!text.empty()) {
      const std::size_t end = std::min(text.find(separator), text.size());
      parts.emplace_back(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
  }

 private:
  bool take(std::string_view argument) {
    const auto list = [&](std::string_view option, std::vector<std::string>& to) {
      if (argument.substr(0, option.size()) != option) return false;
      to = split(argument.substr(option.size()), ',');
      return true;
    };
    std::vector<std::string> one;
    if (list("--device=", one)) {
      if (one.size() != 1) fail<ConfigError>("--device", "a number", std::string(argument));
      device = static_cast<int>(whole("device", one[0], 0));
      return true;
    }
    return list("--shapes=", shapes) || list("--blocks=", blocks) || list("--ops=", ops) || list("--ranks=", ranks) ||
           list("--dropouts=", dropouts) || list("--dtypes=", dtypes);
  }

  static Block block(const std::string& sizes) {
    std::string known;
    for (const Block& each : known_blocks) {
      if (each.sizes() == sizes) return each;
      known += (known.empty() ? "" : ", ") + each.sizes();
    }
    fail<ConfigError>("--blocks", "one of " + known + " (known_blocks in lora/cases.hpp)", sizes);
  }

  static Index whole(const std::string& option, const std::string& text, Index least) {
    std::istringstream in(text);
    Index value = -1;
    if (!(in >> value) || !in.eof() || value < least)
      fail<ConfigError>("--" + option, "a whole number from " + std::to_string(least) + " on", text);
    return value;
  }
  static Index number(const std::string& option, const std::string& text) { return whole(option, text, 1); }
  static double real(const std::string& option, const std::string& text) {
    std::istringstream in(text);
    double value = -1;
    if (!(in >> value) || !in.eof() || !(value >= 0) || value >= 1)
      fail<ConfigError>("--" + option, "a probability below 1", text);
    return value;
  }
};

/// The value below which `share` of them lie.
inline double quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::size_t>(std::lround(share * static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

}  // namespace fedlora::benchmarks
