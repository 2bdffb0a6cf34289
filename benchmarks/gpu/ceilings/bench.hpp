// SPDX-License-Identifier: Apache-2.0
// What the parts of ceilings.cpp measure with, and where they say what they have found.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/core/random.hpp"
#include "lora/timing.cuh"

namespace fedlora::benchmarks {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

inline double quantile_of(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

inline std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result + '"';
}

/// What has been found; a line at once, and all of it as JSON.
class Report {
 public:
  void add(const std::string& what, const std::vector<double>& values, const std::string& unit) {
    const double median = quantile_of(values, 0.5);
    const double spread = median == 0 ? 0 : (quantile_of(values, 0.8) - quantile_of(values, 0.2)) / std::abs(median);
    if (!std::isfinite(median)) fail<CudaError>(what, "a number", std::to_string(median));
    std::printf("%s\t%.5g\t%s\t%.1f\n", what.c_str(), median, unit.c_str(), 100 * spread);
    std::fflush(stdout);
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "\"value\": %.9g, \"spread\": %.4g", median, spread);
    lines_.push_back("{\"what\": " + quoted(what) + ", " + numbers + ", \"unit\": " + quoted(unit) + "}");
  }
  void say(const std::string& what, const std::string& said, const std::string& why = "") {
    std::printf("%s\t%s\t%s\n", what.c_str(), said.c_str(), why.c_str());
    std::fflush(stdout);
    lines_.push_back("{\"what\": " + quoted(what) + ", \"said\": " + quoted(said) + ", \"why\": " + quoted(why) + "}");
  }
  bool write(const std::string& path, const DeviceFacts& facts) const {
    std::FILE* const file = std::fopen(path.c_str(), "w");
    if (file == nullptr) return false;
    std::fprintf(file, "{\"context\": {\"device\": %s", quoted(facts.name).c_str());
    for (const auto& [what, value] : facts.others)
      std::fprintf(file, ", %s: %s", quoted(what).c_str(), quoted(value).c_str());
    std::fprintf(file, "},\n \"measurements\": [");
    for (std::size_t i = 0; i < lines_.size(); ++i) std::fprintf(file, "%s\n  %s", i > 0 ? "," : "", lines_[i].c_str());
    std::fprintf(file, "\n]}\n");
    return std::fclose(file) == 0;
  }

 private:
  std::vector<std::string> lines_;
};

/// The device, and what a part needs to measure with.
class Bench {
 public:
  Bench(const DeviceFacts& facts, Report& report_) : report(report_), l2_bytes(facts.l2_bytes) {}

  Report& report;
  std::size_t l2_bytes;
  cuda::OwnedStream owned;
  cuda::DeviceMemory memory;
  Clock::time_point deadline;

  cuda::Stream stream() const { return owned.get(); }
  cuda::Blas& blas() {
    if (!blas_) blas_.emplace(memory, stream());
    return *blas_;
  }

  /// Enough copies that the L2 cache holds none of them when its turn comes again.
  Index copies(double bytes, bool cold) const {
    return cold ? 1 + static_cast<Index>(std::ceil(2.0 * static_cast<double>(l2_bytes) / bytes)) : 1;
  }

  /// Random numbers in [-1, 1).
  template <class T>
  void fill(T* to, Index count) {
    constexpr Index block = Index{1} << 22;
    auto& [buffer, size] = noise_[sizeof(T) == 4 ? 2 : std::is_same_v<T, Half> ? 1 : 0];
    if (size == 0) {
      std::vector<T> values(static_cast<std::size_t>(block));
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = T(static_cast<float>(mix(11, i) >> 40) * 0x1p-23f - 1.0f);
      buffer = cuda::DeviceBuffer(memory, values.size() * sizeof(T), "random numbers", stream());
      cuda::upload<T>(values, buffer.template as<T>(), stream());
      size = block;
    }
    const Index shift = 8 * static_cast<Index>(mix(12, turn_++) % 4096);  // no two matrices begin alike
    for (Index at = 0; at < count;) {
      const Index from = at == 0 ? shift : 0;
      const Index part = std::min(count - at, size - from);
      cuda::detail::copy(cuda::detail::Copy::on_device, to + at, buffer.template as<T>() + from,
                         static_cast<std::size_t>(part) * sizeof(T), stream());
      at += part;
    }
  }
  template <class T>
  MatrixView<T> random(cuda::Arena& arena, Index rows, Index cols, Index stride = 0) {
    const Index whole = std::max(cols, stride);
    MatrixView<T> matrix(arena.take<T>(rows * whole), rows, cols, whole);
    fill(matrix.data, rows * whole);
    return matrix;
  }

  /// Seconds of one of `passes` passes that `work` queues, in several measurements.
  std::vector<double> times(Index passes, const std::function<void()>& work, int most = 20) {
    in_time();
    work();  // arenas grow, libraries load
    cuda::synchronize(stream());
    Recording recording(stream(), work);
    for (int i = 0; i < 3; ++i) recording.launch();
    static_cast<void>(recording.seconds());
    std::vector<double> found;
    const auto begin = Clock::now();
    while (static_cast<int>(found.size()) < 5 ||
           (static_cast<int>(found.size()) < most && seconds_since(begin) < 0.15)) {
      recording.launch();
      found.push_back(recording.seconds() / static_cast<double>(passes));
      in_time();
    }
    return found;
  }
  /// The rate of so many units of 1 (bytes, operations) a pass.
  void rate(const std::string& what, double amount, const std::string& unit, double scale,
            const std::vector<double>& seconds) {
    std::vector<double> rates;
    for (const double second : seconds) rates.push_back(scale * amount / second);
    report.add(what, rates, unit);
  }
  void micro(const std::string& what, const std::vector<double>& seconds) {
    std::vector<double> values;
    for (const double second : seconds) values.push_back(1e6 * second);
    report.add(what, values, "us");
  }
  void in_time() const {
    if (Clock::now() > deadline) fail<CudaError>("time", "to be done", "its seconds are over");
  }

 private:
  std::optional<cuda::Blas> blas_;
  std::pair<cuda::DeviceBuffer, Index> noise_[3];
  std::uint64_t turn_ = 0;
};

}  // namespace fedlora::benchmarks
