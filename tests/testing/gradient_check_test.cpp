// SPDX-License-Identifier: Apache-2.0
// The gradient check finds what is wrong, and names it.
#include "fedlora/testing/gradient_check.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace fedlora::testing {
namespace {

double f(std::span<const double> x) { return std::sin(x[0]) * x[1] + std::exp(0.1 * x[2]) + 100 * x[1] * x[1]; }

std::vector<double> gradient(std::span<const double> x) {
  return {std::cos(x[0]) * x[1], std::sin(x[0]) + 200 * x[1], 0.1 * std::exp(0.1 * x[2])};
}

struct NoBackend {};

/// loss_i = t · w · (i + 1)² / 2 over the parameters w, with `flaw` added to one entry of the gradient.
struct Quadratic {
  using Scalar = double;
  using Backend = NoBackend;
  struct Workspace {
    explicit Workspace(const NoBackend&) {}
  };
  std::shared_ptr<const AdapterLayout> places;
  double flaw = 0;
  bool overwrites = false;

  Quadratic() {
    auto made = std::make_shared<AdapterLayout>();
    made->add_site("layer", 3, 2, 1, 1);
    made->add_saved("head.weight", {2, 2});
    places = made;
  }
  const std::shared_ptr<const AdapterLayout>& layout() const { return places; }
  NoBackend backend() const { return {}; }
  Index loss_count(const Dataset&, std::span<const Index> examples) const {
    return static_cast<Index>(examples.size());
  }
  double accumulate_gradient(Workspace&, const Dataset&, std::span<const Index> examples, std::span<const double> w,
                             std::span<double> g, double weight, const StepAddress&) const {
    double loss = 0;
    for (const Index example : examples)
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double factor = static_cast<double>(example + 1) * static_cast<double>(i + 1);
        loss += factor * w[i] * w[i] / 2;
        if (overwrites) g[i] = 0;
        g[i] += weight * (factor * w[i] + (i == 7 ? flaw : 0));
      }
    return loss;
  }
};

}  // namespace

TEST_CASE("a right gradient passes at every scale of its entries") {
  const std::vector<double> x = {0.3, -2, 5};
  const GradientReport report = check_gradient(f, x, gradient(x));
  CHECK(report.compared == 3);
  CHECK_MESSAGE(report.within(1e-9), report.text());
}

TEST_CASE("a wrong entry is found and named, however small beside the others") {
  const std::vector<double> x = {0.3, -2, 5};
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<double> wrong = gradient(x);
    wrong[i] += 1;
    const GradientReport report = check_gradient(f, x, wrong);
    CHECK_FALSE(report.within(1e-4));
    CHECK(report.worst == static_cast<Index>(i));
    CHECK(report.name == "[" + std::to_string(i) + "]");
    CHECK(report.analytic - report.numeric == doctest::Approx(1).epsilon(1e-6));
    CHECK(report.text().find(report.name) != std::string::npos);
  }
}

TEST_CASE("what is not a number fails, and nothing compared is not a pass") {
  const std::vector<double> x = {0.3, -2, 5};
  std::vector<double> wrong = gradient(x);
  wrong[1] = std::numeric_limits<double>::quiet_NaN();
  CHECK_FALSE(check_gradient(f, x, wrong).within(1e300));
  CHECK_FALSE(GradientReport{}.within(1));
  CHECK_THROWS_AS(check_gradient(f, x, std::vector<double>(2)), ShapeError);
}

TEST_CASE("only every n-th entry is looked at when asked") {
  const std::vector<double> x = {0.3, -2, 5};
  std::vector<double> wrong = gradient(x);
  wrong[1] += 1;
  const GradientReport report = check_gradient(f, x, wrong, {.every = 2});
  CHECK(report.compared == 2);
  CHECK(report.within(1e-9));
}

TEST_CASE("numeric_gradient leaves its argument as it was") {
  std::vector<double> x = {0.1, 1e6, -3};
  const std::vector<double> before = x;
  const auto slopes =
      numeric_gradient([](std::span<const double> at) { return at[0] * at[1] + at[2]; }, std::span<double>(x));
  CHECK(x == before);
  CHECK(slopes[0] == doctest::Approx(1e6));
  CHECK(slopes[1] == doctest::Approx(0.1));
  CHECK(slopes[2] == doctest::Approx(1));
}

TEST_CASE("a model's gradient is checked tensor by tensor, by the names in its layout") {
  Quadratic model;
  const std::vector<Index> examples = {0, 2};
  std::vector<double> w(9);
  for (std::size_t i = 0; i < 9; ++i) w[i] = 0.5 + static_cast<double>(i);
  CHECK(check_model_gradient(model, Dataset{}, examples, w).within(1e-9));
  model.flaw = 0.5;
  const GradientReport report = check_model_gradient(model, Dataset{}, examples, w);
  CHECK_FALSE(report.within(1e-3));
  CHECK(report.worst == 7);
  CHECK(report.name == "base_model.model.head.weight[1, 0]");
  model.flaw = 0;
  model.overwrites = true;  // a gradient must be added to
  CHECK_FALSE(check_model_gradient(model, Dataset{}, examples, w).within(1e-3));
}

}  // namespace fedlora::testing
