// SPDX-License-Identifier: Apache-2.0
// Learning-rate schedules, as factors between 0 and 1 of the optimizer's rate.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

enum class ScheduleShape { constant, linear, cosine };

/// The schedules of transformers' get_{constant,linear,cosine}_schedule_with_warmup. A value without memory: the factor
/// follows from the position alone, so that a resumed run cannot be out of step.
struct Schedule {
  ScheduleShape shape = ScheduleShape::constant;
  double warmup = 0.0;  ///< fraction of all positions over which the factor rises linearly from 0
  double floor = 0.0;   ///< the factor that linear and cosine end at

  void check() const {
    if (!(warmup >= 0 && warmup < 1))
      fail<ConfigError>("schedule, warmup", "a fraction in [0, 1)", std::to_string(warmup));
    if (!(floor >= 0 && floor <= 1)) fail<ConfigError>("schedule, floor", "a factor in [0, 1]", std::to_string(floor));
  }

  /// The factor at `position` of `total` positions, counted from 0.
  double factor(Index position, Index total) const {
    if (total <= 0 || position < 0)
      fail<ConfigError>("schedule", "a position of at least 0 and a positive total",
                        std::to_string(position) + " of " + std::to_string(total));
    const auto warm = static_cast<Index>(std::ceil(warmup * static_cast<double>(total)));
    if (position < warm) return static_cast<double>(position) / static_cast<double>(warm);
    const double progress =
        static_cast<double>(std::min(position, total) - warm) / static_cast<double>(std::max<Index>(1, total - warm));
    switch (shape) {
      case ScheduleShape::constant:
        return 1.0;
      case ScheduleShape::linear:
        return floor + (1.0 - floor) * std::max(0.0, 1.0 - progress);
      case ScheduleShape::cosine:
        return floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(3.14159265358979323846 * progress));
    }
    return 1.0;
  }
};

/// The shape of a name: "constant", "linear" or "cosine". ConfigError otherwise.
inline ScheduleShape schedule_shape(const std::string& name) {
  if (name == "constant") return ScheduleShape::constant;
  if (name == "linear") return ScheduleShape::linear;
  if (name == "cosine") return ScheduleShape::cosine;
  fail<ConfigError>("schedule", "constant, linear or cosine", name);
}

}  // namespace fedlora
