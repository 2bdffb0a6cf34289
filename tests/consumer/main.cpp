// SPDX-License-Identifier: Apache-2.0
// A stranger's first program: a table, split among clients.
#include <cstdio>
#include <fedlora/fedlora.hpp>

int main() {
  const fedlora::Table table =
      fedlora::read_table(fedlora::bytes_of("text,label\ngood,pos\nbad,neg\nfine,pos\npoor,neg\n", "reviews.csv"),
                          {.text = {"text"}, .label = "label"});
  const fedlora::Partition clients = fedlora::partition_iid(table.size(), {.clients = 2, .seed = 1});
  std::size_t examples = 0;
  for (const auto& client : clients) examples += client.size();
  if (examples != 4 || clients.size() != 2) return 1;
  std::printf("fedlora %s: %zu examples, %zu clients\n", fedlora::version, examples, clients.size());
}
