// SPDX-License-Identifier: Apache-2.0
// Every table of ../shared/data, with the numbers of rows and labels its README states.
#include <doctest/doctest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "fedlora/data/partition.hpp"
#include "fedlora/data/table.hpp"
#include "support.hpp"

namespace {

using fedlora::Index;
using fedlora::Table;
using Counts = std::map<std::string, Index>;

Counts count(const std::vector<std::string>& labels) {
  Counts counts;
  for (const auto& label : labels) ++counts[label];
  return counts;
}

}  // namespace

TEST_CASE("real tables: AG News") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const fedlora::TableColumns columns{.text = {"2", "3"}, .label = "1"};
  const Table train = fedlora::read_table(*data / "ag_news/train.csv", columns);
  CHECK(train.size() == 5600);
  CHECK(count(train.label) == Counts{{"1", 1400}, {"2", 1400}, {"3", 1400}, {"4", 1400}});
  CHECK(train.text[0] ==
        "Fears for T N pension after talks Unions representing workers at Turner   Newall say they are 'disappointed' "
        "after "
        "talks with stricken parent firm Federal Mogul.");
  const Table test = fedlora::read_table(*data / "ag_news/test.csv", columns);
  CHECK(test.size() == 2000);
  CHECK(count(test.label) == Counts{{"1", 500}, {"2", 500}, {"3", 500}, {"4", 500}});
  CHECK(test.text[0].starts_with("Loosing the War on Terrorism \\\\\"Sven Jaschan, self-confessed author"));
  CHECK(test.label_ids(train.label_names())[0] == 3);
  const Table extra = fedlora::read_table(*data / "ag_news/train_extra.csv", columns);
  CHECK(extra.size() == 8768);
  CHECK(count(extra.label) == Counts{{"1", 1474}, {"2", 1957}, {"3", 2433}, {"4", 2904}});
  CHECK(extra.text[0].starts_with(" CAIRO , EGYPT"));
  // One text column without a label: the first row begins with "3", and is data all the same.
  CHECK(fedlora::read_table(*data / "ag_news/train.csv", {.text = {"3"}}).size() == 5600);
}

TEST_CASE("real tables: SST-2") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const fedlora::TableColumns columns{.text = {"1"}, .label = "2"};
  const Table train = fedlora::read_table(*data / "sst2/train.tsv", columns);
  CHECK(train.size() == 6920);
  CHECK(count(train.label) == Counts{{"0", 3310}, {"1", 3610}});
  CHECK(fedlora::read_table(*data / "sst2/dev.tsv", columns).size() == 872);
  CHECK(fedlora::read_table(*data / "sst2/dev.tsv", columns).text[0] == "one long string of cliches");
  CHECK(fedlora::read_table(*data / "sst2/test.tsv", columns).size() == 1821);
}

TEST_CASE("real tables: Banking77, with line breaks inside fields") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const fedlora::TableColumns columns{.text = {"text"}, .label = "category"};
  const Table train = fedlora::read_table(*data / "banking77/train.csv", columns);
  CHECK(train.size() == 10003);
  const Counts counts = count(train.label);
  CHECK(counts.size() == 77);
  Index least = 1000, most = 0, broken = 0;
  for (const auto& [name, number] : counts) {
    least = std::min(least, number);
    most = std::max(most, number);
  }
  CHECK(least == 35);
  CHECK(most == 187);
  for (const auto& text : train.text) broken += text.find('\n') != std::string::npos ? 1 : 0;
  CHECK(broken > 0);
  CHECK(train.line.back() > train.size() + 1);
  const Table test = fedlora::read_table(*data / "banking77/test.csv", columns);
  CHECK(test.size() == 3080);
  for (const auto& [name, number] : count(test.label)) CHECK(number == 40);
  const auto names = train.label_names();
  CHECK(test.label_names() == names);
  CHECK(test.label_ids(names).size() == 3080);
}

TEST_CASE("real tables: CLINC150, and its natural clients") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const fedlora::TableColumns columns{.text = {"text"}, .label = "intent", .id = "domain"};
  const Table train = fedlora::read_table(*data / "clinc150/domain_train.tsv", columns);
  CHECK(train.size() == 15000);
  CHECK(train.label_names().size() == 150);
  const auto natural = fedlora::partition_natural(train.id);
  CHECK(natural.names == std::vector<std::string>{"auto_and_commute", "banking", "credit_cards", "home",
                                                  "kitchen_and_dining", "meta", "small_talk", "travel", "utility",
                                                  "work"});
  const auto table = fedlora::label_distribution(train.label_ids(train.label_names()), natural.partition, 150);
  for (Index k = 0; k < table.clients; ++k) CHECK(table.examples(k) == 1500);
  for (const Index number : table.counts) CHECK((number == 0 || number == 100));
  const Table test = fedlora::read_table(*data / "clinc150/domain_test.tsv", columns);
  CHECK(test.size() == 4500);
  for (const auto& [name, number] : count(test.id)) CHECK(number == 450);

  const auto domains = fedlora::read_table(*data / "clinc150/domain_train.tsv", {.text = {"text"}, .label = "domain"});
  const auto labels = domains.label_ids(domains.label_names());
  const auto skewed = fedlora::partition_dirichlet(labels, {.clients = 20, .alpha = 0.3, .seed = 1});
  fedlora::check_partition(skewed, 15000);
  for (const auto& own : skewed) CHECK(own.size() >= 10);
}

TEST_CASE("real tables: instructions in JSON Lines") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const fedlora::TableColumns columns{.text = {"question"}, .text_pair = "answer"};
  const Table train = fedlora::read_table(*data / "instruct/gsm8k_train_2000.jsonl", columns);
  CHECK(train.size() == 2000);
  CHECK(train.text_pair[0].find("\n#### 10") != std::string::npos);
  const Table test = fedlora::read_table(*data / "instruct/gsm8k_test.jsonl", columns);
  CHECK(test.size() == 1319);
  CHECK(test.text[0].starts_with("Janet\u2019s ducks lay 16 eggs per day."));
  const Table seeds = fedlora::read_table(*data / "instruct/seed_tasks.jsonl",
                                          {.text = {"name", "instruction"}, .label = "is_classification", .id = "id"});
  CHECK(seeds.size() == 175);
  CHECK(count(seeds.label) == Counts{{"false", 149}, {"true", 26}});
  CHECK(std::set<std::string>(seeds.id.begin(), seeds.id.end()).size() == 175);
}
