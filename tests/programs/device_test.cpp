// SPDX-License-Identifier: Apache-2.0
// --device and --dtype, as they stand on a machine without a GPU, and in a program built without CUDA. Where there is a
// GPU, the same commands run on it.
#include <doctest/doctest.h>

#include "fedlora/io/json.hpp"
#include "program.hpp"

namespace fedlora::tests {
namespace {

using Arguments = std::vector<std::string>;

/// Each program with little to do, and what is given beside.
struct Programs {
  TemporaryDirectory scratch;

  Finished federation(const Arguments& more) const {
    const auto table = scratch.path() / "table.csv";
    write_text(table, "text,label\nThe cat sat.,a\nThe dog ran.,b\nA bird sang.,a\nThe fish swam.,b\n");
    Arguments arguments = {
        "--train", table.string(), "--test", table.string(), "--partition", "iid",   "--clients",
        "2",       "--rounds",     "1",      "--mode",       "federated",   "--out", (scratch.path() / "out").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(scratch.path(), "federation", arguments);
  }
  Finished predict(const Arguments& more) const {
    Arguments arguments = {"--model", stories, "--file", "-"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(scratch.path(), "predict", arguments, "Once upon a time\n");
  }
};

TEST_CASE("a precision that the device does not have is wrong usage that names both") {
  const Programs programs;
  struct Case {
    Arguments arguments;
    std::vector<std::string> parts;
  };
  for (const auto& [arguments, parts] : std::vector<Case>{
           {{"--dtype", "bf16"}, {"[--dtype] expected f32 or f64 with --device cpu, got bf16"}},
           {{"--dtype", "tf32", "--device", "cpu"}, {"[--dtype] expected f32 or f64 with --device cpu, got tf32"}},
           {{"--device", "cuda", "--dtype", "f64"},
            {"[--dtype] expected f32, tf32, bf16 or f16 with --device cuda, got f64"}},
           {{"--dtype", "f64", "--device", "cuda:1"}, {"with --device cuda:1, got f64"}},
           {{"--dtype", "int8"}, {"--dtype", "int8"}},
           {{"--device", "tpu"}, {"--device", "expected cpu, cuda or cuda:N, got tpu"}},
           {{"--device", "cuda:"}, {"--device", "cuda:N"}},
           {{"--device", "cuda:-1"}, {"--device", "cuda:N"}},
           {{"--device", "cuda:1x"}, {"--device", "cuda:N"}}})
    for (const Finished& run : {programs.federation(arguments), programs.predict(arguments)}) {
      INFO(run.err);
      CHECK(run.status == 2);
      for (const std::string& part : parts) CHECK(run.err.find(part) != std::string::npos);
    }
}

TEST_CASE("a GPU that cannot be used is an error that says what is missing") {
  const Programs programs;
  for (const std::string dtype : {"f32", "tf32", "bf16", "f16"})
    for (const Finished& run : {programs.federation({"--device", "cuda:0", "--dtype", dtype}),
                                programs.predict({"--device", "cuda:0", "--dtype", dtype})}) {
      INFO(run.out, run.err);
      if (run.status == 0) continue;  // there is one
      CHECK(run.status == 1);
      const bool built_without =
          run.err.find("[--device cuda:0] expected a program built with CUDA") != std::string::npos;
      const bool no_gpu =
          run.err.find("[cuda device 0] expected an NVIDIA GPU and its driver, got none") != std::string::npos;
      CHECK((built_without || no_gpu));
      CHECK(run.out.empty());
      CHECK(!std::filesystem::exists(programs.scratch.path() / "out"));
    }
  const Finished none = programs.predict({"--device", "cuda:4095"});
  CHECK(none.status == 1);
  CHECK(none.err.find("4095]") != std::string::npos);
}

TEST_CASE("a run says and records what computed it, and does not go on with anything else") {
  const Programs programs;
  const Finished run = programs.federation({"--dtype", "f64", "--device", "cpu"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  CHECK(run.out.find(", f64, ") != std::string::npos);
  CHECK(run.out.find(", matrix products by Eigen, ") != std::string::npos);
  const Json summary = Json::parse(read_text(programs.scratch.path() / "out/summary.json"));
  CHECK(summary["config"]["device"] == "cpu");
  CHECK(summary["config"]["dtype"] == "f64");
  CHECK(run.out.find(summary["config"]["cpu"].get<std::string>() + " instructions, ") != std::string::npos);
  CHECK(!summary["federated"].contains("skipped_steps"));
  const Finished other = programs.federation({"--resume", "--dtype", "f32"});
  CHECK(other.status == 1);
  CHECK(other.err.find("field dtype") != std::string::npos);
}

}  // namespace
}  // namespace fedlora::tests
