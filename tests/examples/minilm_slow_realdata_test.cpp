// SPDX-License-Identifier: Apache-2.0
// The example program on a real base and real texts, shortened: MiniLM learns AG News from skewed clients, and SST-2.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "real_model.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

/// What summary.json says of one mode of fedlora-federation.
Json run(const std::string& mode, const std::string& options, const std::filesystem::path& out) {
  const std::string command = std::string(FEDLORA_PROGRAM_DIR) + "/fedlora-federation --mode " + mode + " --out \"" +
                              out.string() + "\" " + options + " >\"" + (out.string() + ".log") + "\" 2>&1";
  const int status = std::system(command.c_str());
  REQUIRE_MESSAGE(status == 0, command << "\n" << read_text(out.string() + ".log"));
  return parse_json(map_file(out / "summary.json"))[mode];
}

const std::string common =
    " --clients 20 --cohort 0.25 --rank 8 --alpha 16 --dropout 0.1 --targets query,value --lr 1e-3 --batch 8 "
    "--max-tokens 64 --eval-every 100 --seed 1 ";

}  // namespace

TEST_CASE("MiniLM learns AG News in a short federation") {
  const auto data = shared_data();
  const auto model = minilm();
  if (!data || !model) return;
  const TemporaryDirectory directory;
  const Json result = run("federated",
                          "--model \"" + model->string() + "\" --train \"" + (*data / "ag_news/train.csv").string() +
                              "\" --test \"" + (*data / "ag_news/test.csv").string() +
                              "\" --text-column 2,3 --label-column 1 --partition dirichlet --dirichlet 0.3 --rounds 4 "
                              "--local-steps 15" +
                              common,
                          directory.path() / "ag_news");
  const double accuracy = result["accuracy"].get<double>();
  MESSAGE("AG News, 4 rounds of 5 clients with 15 steps each: accuracy " << accuracy);
  CHECK(accuracy > 0.45);  // four classes: chance is 0.25
}

TEST_CASE("MiniLM learns SST-2 from pooled data") {
  const auto data = shared_data();
  const auto model = minilm();
  if (!data || !model) return;
  const TemporaryDirectory directory;
  const Json result = run(
      "centralised",
      "--model \"" + model->string() + "\" --train \"" + (*data / "sst2/train.tsv").string() + "\" --test \"" +
          (*data / "sst2/dev.tsv").string() +
          "\" --text-column 1 --label-column 2 --partition dirichlet --dirichlet 1.0 --rounds 1 --reference-epochs 1 "
          "--local-steps 250" +
          common,
      directory.path() / "sst2");
  const double accuracy = result["accuracy"].get<double>();
  MESSAGE("SST-2, 250 steps: accuracy " << accuracy);
  CHECK(accuracy > 0.75);  // two classes, near even
}

}  // namespace fedlora::tests
