// SPDX-License-Identifier: Apache-2.0
// fedlora-gpu-smoke: every family of kernels once in every type, on a realistic and on an odd shape, against a
// reference in double. It needs CUDA and this library's headers and nothing else, so it is what to build where nothing
// else builds.
//
//   fedlora-gpu-smoke --list            names of the cases, family/type/shape
//   fedlora-gpu-smoke [NAME or FAMILY/]...   these, or all; a line for each
//   --small                             small shapes, for kernels that run on the host
//
// `ok NAME max error E (bound B, in WHAT), T ms` is the check that came nearest to its bound; errors are shares of the
// largest entry. `FAILED NAME WHAT (row, column): got V, expected E, ...` is the first that failed. Exit status: 0, 1
// if a case failed, 2 for a name that is none, 77 without a GPU.
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/runtime.cuh"
#include "smoke/attention.hpp"
#include "smoke/check.hpp"
#include "smoke/loss.hpp"
#include "smoke/low_rank.hpp"
#include "smoke/norm.hpp"
#include "smoke/optimizer.hpp"
#include "smoke/pointwise.hpp"
#include "smoke/products.hpp"
#include "smoke/rows.hpp"

namespace fedlora::smoke {
namespace {

struct Case {
  std::string name;
  const Shape* shape;
  cuda::FloatMath math;
  void (*run)(Check&);
};

#define FEDLORA_SMOKE_TYPES(function) \
  { function<Bf16>, function<Half>, function<float> }

/// A family; `multiplies` says that floats are computed in two ways.
struct Family {
  const char* name;
  bool multiplies;
  void (*run[3])(Check&);
};

constexpr Family families[] = {
    {"pointwise", false, FEDLORA_SMOKE_TYPES(check_pointwise)},
    {"norm", false, FEDLORA_SMOKE_TYPES(check_norm)},
    {"rows", false, FEDLORA_SMOKE_TYPES(check_rows)},
    {"loss", false, FEDLORA_SMOKE_TYPES(check_loss)},
    {"optimizer", false, FEDLORA_SMOKE_TYPES(check_optimizer)},
    {"attention", true, FEDLORA_SMOKE_TYPES(check_attention)},
    {"attention_backward", true, FEDLORA_SMOKE_TYPES(check_attention_backward)},
    {"low_rank", true, FEDLORA_SMOKE_TYPES(check_low_rank)},
    {"low_rank_backward", true, FEDLORA_SMOKE_TYPES(check_low_rank_backward)},
    {"products", true, FEDLORA_SMOKE_TYPES(check_products)},
    {"runner", true, FEDLORA_SMOKE_TYPES(check_runner)},
};

std::vector<Shape> shapes(bool small) {
  Shape real, odd;
  real.name = "real";
  real.lengths = {128, 128, 128, 128, 128, 128, 256};
  real.hidden = 768;
  real.wide = 3072;
  real.rank = 16;
  real.heads = 12;
  real.kv_heads = 4;
  real.head_dim = 64;
  real.vocabulary = 30522;
  real.logit_rows = 96;
  real.parameters = 300000;
  real.norm_cols = {768, 3072, 6144, 9216};  // a warp to a row, 128, 256 and 512 threads
  if (small) {
    real.lengths = {150, 10};  // more keys than a block has buffers for
    real.hidden = 128;
    real.wide = 320;
    real.heads = 2;
    real.kv_heads = 1;
    real.vocabulary = 2304;
    real.logit_rows = 9;
    real.parameters = 6000;
    real.norm_cols = {128, 1280, 4160};
  }
  odd.name = "odd";
  odd.layout = Layout::odd;
  odd.lengths = {17, 1, 19};
  odd.hidden = 70;
  odd.wide = 291;
  odd.rank = 5;
  odd.heads = 7;
  odd.kv_heads = 1;
  odd.head_dim = 10;
  odd.vocabulary = 2311;
  odd.logit_rows = 7;
  odd.parameters = 5003;
  odd.norm_cols = {70, 1031, 4099};
  return {real, odd};
}

std::vector<Case> cases_of(const std::vector<Shape>& shapes) {
  std::vector<Case> cases;
  for (const Family& family : families) {
    const auto add = [&](const char* type, void (*run)(Check&), cuda::FloatMath math) {
      for (const Shape& shape : shapes)
        cases.push_back({std::string(family.name) + "/" + type + "/" + shape.name, &shape, math, run});
    };
    add("bf16", family.run[0], cuda::FloatMath::tf32);
    add("f16", family.run[1], cuda::FloatMath::tf32);
    if (family.multiplies) add("tf32", family.run[2], cuda::FloatMath::tf32);
    add("float32", family.run[2], cuda::FloatMath::float32);
  }
  return cases;
}

bool passes(const Case& one) {
  const auto begin = std::chrono::steady_clock::now();
  std::string failure;
  double error = 0, bound = 0;
  std::string nearest;
  try {
    Check check(*one.shape, one.math);
    one.run(check);
    cuda::synchronize(check.gpu.stream());
    check.gpu.memory.check();
    failure = check.failure();
    error = check.error();
    bound = check.bound();
    nearest = check.nearest();
  } catch (const std::exception& thrown) {
    failure = thrown.what();
  }
  const double ms = 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (failure.empty())
    std::printf("ok %s max error %.2g (bound %.2g, in %s), %.0f ms\n", one.name.c_str(), error, bound, nearest.c_str(),
                ms);
  else
    std::printf("FAILED %s %s, %.0f ms\n", one.name.c_str(), failure.c_str(), ms);
  std::fflush(stdout);
  return failure.empty();
}

int main_of(int argc, char** argv) {
  std::vector<std::string> names;
  bool list = false, small = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list")
      list = true;
    else if (argument == "--small")
      small = true;
    else if (argument.starts_with("-")) {
      std::fprintf(stderr, "usage: fedlora-gpu-smoke [--list] [--small] [NAME or FAMILY/]...\n");
      return argument == "--help" ? 0 : 2;
    } else
      names.push_back(argument);
  }
  const std::vector<Shape> all_shapes = shapes(small);
  const std::vector<Case> cases = cases_of(all_shapes);
  std::vector<const Case*> chosen;
  for (const std::string& name : names) {
    const std::size_t before = chosen.size();
    for (const Case& one : cases)
      if (one.name == name || (name.ends_with("/") && one.name.starts_with(name))) chosen.push_back(&one);
    if (chosen.size() > before) continue;
    std::fprintf(stderr, "fedlora-gpu-smoke: no case %s; --list names them\n", name.c_str());
    return 2;
  }
  if (names.empty())
    for (const Case& one : cases) chosen.push_back(&one);
  if (list) {
    for (const Case* const one : chosen) std::puts(one->name.c_str());
    return 0;
  }
  try {
    cuda::detail::require_device(0);
    cuda::detail::use_device(0);
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  int failed = 0;
  for (const Case* const one : chosen) failed += passes(*one) ? 0 : 1;
  return failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace fedlora::smoke

int main(int argc, char** argv) {
  try {
    return fedlora::smoke::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fedlora-gpu-smoke: %s\n", error.what());
    return 1;
  }
}
