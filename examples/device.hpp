// SPDX-License-Identifier: Apache-2.0
// --device, --dtype and --cpu: what the programs compute with.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "command_line.hpp"
#include "cpu/choice.hpp"

namespace fedlora::examples {

/// A processor or a GPU, and the precision of everything that is computed there.
struct Device {
  std::string name = "cpu";   ///< cpu, cuda or cuda:N
  std::string dtype = "f32";  ///< f32 or f64 on a CPU; f32, tf32, bf16 or f16 with CUDA
  std::string cpu = "native";  ///< the level of its instructions

  bool cuda() const { return name != "cpu"; }
  /// cpu or cuda.
  std::string kind() const { return name.substr(0, name.find(':')); }
  /// Which GPU.
  int number() const { return cuda_number(name).value_or(0); }

  /// N of "cuda:N", 0 of "cuda"; nothing for another name.
  static std::optional<int> cuda_number(std::string_view name) {
    if (name == "cuda") return 0;
    if (!name.starts_with("cuda:")) return std::nullopt;
    const char* const begin = name.data() + 5;
    const char* const end = name.data() + name.size();
    int number = 0;
    const auto [rest, error] = std::from_chars(begin, end, number);
    if (error != std::errc() || rest != end || number < 0) return std::nullopt;
    return number;
  }
};

/// --threads where a GPU computes and nobody says otherwise: so many clients or batches are there side by side.
inline constexpr int cuda_threads = 2;
inline const std::string cuda_threads_help =
    "with --device cuda it is " + std::to_string(cuda_threads) + " unless given, each with a stream of the GPU to itself";

/// Declares the options on `app`; `check` has to follow once it has parsed.
inline void declare(CLI::App& app, Device& device, const std::string& group) {
  const auto name = [](std::string& text) -> std::string {
    if (text == "cpu" || Device::cuda_number(text)) return {};
    return "expected cpu, cuda or cuda:N, got " + text;
  };
  app.add_option("--device", device.name, "cpu, or an NVIDIA GPU: cuda, or cuda:N for the one of that number, from 0")
      ->check(CLI::Validator(name, ""))
      ->capture_default_str()
      ->group(group);
  app.add_option("--dtype", device.dtype, "Precision of everything: f32 or f64 on a CPU; f32, tf32, bf16 or f16 with CUDA")
      ->check(CLI::IsMember({"f32", "f64", "tf32", "bf16", "f16"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--cpu", device.cpu,
                 "Instructions of the CPU: sse2, avx2 or avx512 where the program was built for it, native for the best; nothing "
                 "to --device cuda")
      ->capture_default_str()
      ->group(group);
}

/// Fixes the level of CPU instructions. \throws UsageError for a precision or a level that is not there.
inline void check(const Device& device) {
  const bool both = device.dtype == "f32";
  if (!both && device.cuda() == (device.dtype == "f64"))
    fail<UsageError>("--dtype", (device.cuda() ? "f32, tf32, bf16 or f16" : "f32 or f64") + std::string(" with --device ") + device.name,
                     device.dtype);
  choose_cpu(device.cpu);
}

}  // namespace fedlora::examples
