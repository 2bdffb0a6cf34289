// SPDX-License-Identifier: Apache-2.0
// The programs over files that a stranger has written: the corpora of tests/fuzz as they are, and models, adapters,
// tables and states of runs that are right but for what chance did to one or two of their files. Whatever comes, a
// program ends by itself, in the memory of a small machine, with the status that its documentation names and a line
// that says why.
//
// Every case has a number, and depends on nothing else. FEDLORA_HOSTILE_CASES says how many there are, and
// FEDLORA_HOSTILE_CASE runs one alone and keeps its directory.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/checksum.hpp"
#include "fuzz/framing.hpp"
#include "program.hpp"

namespace fedlora::tests {
namespace {

namespace fs = std::filesystem;
using fuzz::FileContents;

/// Enough for any file of a few kilobytes.
constexpr Limits small_machine{.file = rlim_t{64} << 20, .address_space = rlim_t{2} << 30, .processor_seconds = 20};

/// Numbers below a bound, the same everywhere: distributions of the standard library are not.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : engine_(seed) {}
  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : static_cast<std::size_t>(engine_() % bound); }
  template <class List>
  const auto& one_of(const List& list) {
    return *std::next(std::begin(list), static_cast<std::ptrdiff_t>(below(std::size(list))));
  }

 private:
  std::mt19937_64 engine_;
};

FileContents corpus(const std::string& target) {
  FileContents inputs;
  for (const auto& file : fs::directory_iterator(fs::path(FEDLORA_TEST_DIR) / "fuzz" / "corpus" / target))
    inputs.emplace(file.path().filename().string(), read_text(file.path()));
  return inputs;
}

FileContents files_in(const fs::path& directory) {
  FileContents files;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) files.emplace(entry.path().lexically_relative(directory), read_text(entry.path()));
  return files;
}

void write_files(const FileContents& files, const fs::path& directory) {
  for (const auto& [name, contents] : files) {
    fs::create_directories((directory / name).parent_path());
    write_text(directory / name, contents);
  }
}

/// The files of one input, under a folder's name.
FileContents under(const std::string& folder, const std::string& input) {
  FileContents files;
  for (auto& [name, contents] : fuzz::files_of(input))
    if (!name.empty() && name != "texts" && name.find('/') == name.npos && name.size() < 100 &&
        name.find('\0') == name.npos)
      files.emplace(folder + "/" + name, std::move(contents));
  return files;
}

/// A command line over the files of a case: relative paths, one thread, as little work as there can be.
struct Command {
  std::string program;
  std::vector<std::string> arguments;
  std::vector<std::string> reads = {};  ///< beginnings of the files that it does
  std::string input = "";
};

const Command tokenize{"tokenize", {"--tokenizer", "model"}, {"model/"}, "a b the\nAB  [MASK] 中\n\n"};
const Command decode{
    "tokenize", {"--tokenizer", "model", "--decode"}, {"model/"}, "[1, 2, 3]\n[5, 6, 100000, -1]\n[]\n"};
const Command predict{"predict",
                      {"--model", "model", "--file", "table.csv", "--label-column", "label", "--threads", "1"},
                      {"model/", "table.csv"}};
const Command predict_lines{"predict", {"--model", "model", "--file", "-", "--threads", "1"}, {"model/"}, "a b\nthe\n"};
const Command predict_adapted{"predict",
                              {"--model", "model", "--adapter", "adapter", "--file", "table.csv", "--threads", "1"},
                              {"model/", "adapter/", "adapter/", "table.csv"}};
const Command merge{"merge", {"--model", "model", "--adapter", "adapter", "--out", "merged"}, {"model/", "adapter/"}};

Command federation(std::vector<std::string> more, std::vector<std::string> reads) {
  reads.insert(reads.end(), {"model/", "table.csv"});
  Command command{"federation",
                  {"--model", "model",     "--train",  "table.csv", "--test",    "table.csv",   "--clients",
                   "2",       "--batch",   "2",        "--threads", "1",         "--partition", "iid",
                   "--mode",  "federated", "--cohort", "1",         "--targets", "all-linear"},
                  std::move(reads)};
  if (std::ranges::find(more, "--adapter") != more.end()) command.arguments.resize(command.arguments.size() - 2);
  command.arguments.insert(command.arguments.end(), more.begin(), more.end());
  return command;
}

/// What is wrong with how a program ended; empty when nothing is.
std::string fault(const std::string& program, const Finished& run) {
  if (run.status > 2) return "status " + std::to_string(run.status) + " (128 and more: a signal)";
  if (run.status == 0) return "";
  std::string_view rest = run.err;
  while (!rest.empty()) {
    const std::string_view line = fuzz::take_line(rest);
    if (!line.starts_with("fedlora-" + program + ": ") || line.starts_with("fedlora-" + program + ": warning: "))
      continue;
    if (line.find("out of memory") != line.npos || line.find("bad_alloc") != line.npos) return "memory ran out";
    for (const std::string_view part : {"[", "] expected ", ", got "})
      if (line.find(part) == line.npos) return "a message without \"" + std::string(part) + "\"";
    return "";
  }
  return "no line that begins with the program's name";
}

struct World {
  FileContents files;
  std::vector<Command> commands;
};

/// Directories that are right, and what can be done with them.
std::vector<World> worlds() {
  const FileContents models = corpus("checkpoint"), adapters = corpus("adapter"), tokenizers = corpus("tokenizer_json");
  const std::string table = "text,label\na b the,x\nthe a,y\nb,x\na,y\nb b,x\nthe,y\n";
  std::vector<World> all;
  for (const bool bert : {true, false}) {
    World world;
    world.files = under("model", models.at(bert ? "bert_two_layers" : "llama_two_layers"));
    if (!bert) world.files.merge(under("model", tokenizers.at("bert_processing")));
    world.files["table.csv"] = table;
    world.files.merge(under("adapter", adapters.at(bert ? "bert" : "llama_labels")));
    TemporaryDirectory scratch;
    write_files(world.files, scratch.path());
    const Command run = federation({"--rounds", "1", "--out", "out"}, {});
    const Finished finished = run_program(scratch.path(), run.program, run.arguments);
    INFO(finished.err);
    REQUIRE(finished.status == 0);
    for (auto& [name, contents] : files_in(scratch.path()))
      if (name.starts_with("out/state/") || name.starts_with("out/adapter/")) world.files[name] = std::move(contents);
    REQUIRE(world.files.contains("out/state/federated.safetensors"));
    world.commands = {tokenize,
                      decode,
                      bert ? predict : predict_lines,  // the other's head predicts tokens
                      predict_lines,
                      predict_adapted,
                      merge,
                      federation({"--rounds", "1", "--out", "new"}, {}),
                      federation({"--rounds", "2", "--out", "out", "--resume"}, {"out/", "out/"}),
                      federation({"--rounds", "1", "--out", "new", "--adapter", "out/adapter"}, {"out/adapter/"})};
    all.push_back(std::move(world));
  }
  World language_model;
  language_model.files = under("model", models.at("llama_two_layers"));
  language_model.files.merge(under("model", tokenizers.at("bert_processing")));
  language_model.files.merge(under("adapter", adapters.at("llama_causal")));
  language_model.files["table.csv"] = table;
  language_model.commands = {predict_lines, predict_adapted, merge};
  all.push_back(std::move(language_model));
  return all;
}

/// A change such as bit rot, a careless editor, another tool or malice would make.
void change(std::string& text, Chance& chance) {
  static constexpr std::string_view words[] = {
      "-1",   "0",           "1e308", "99999999999", "2147483647", "9223372036854775807",
      "null", "[]",          "{}",    "\"\"",        "true",       "false",
      "\"",   "\\",          ",",     "\n",          "\xff",       "NaN",
      "[[[[", "\"\\ud800\"", "{\"",   "    "};
  const std::size_t size = text.size();
  // The front of a file decides more than the rest of it.
  const std::size_t at = chance.below(chance.below(2) == 0 ? size : std::min<std::size_t>(size, 2000));
  const std::size_t length = std::min(chance.below(chance.below(4) == 0 ? 300 : 12), size - at);
  switch (chance.below(8)) {
    case 0:
      text.resize(at);
      break;
    case 1:
      text.erase(at, length);
      break;
    case 2:
      text.insert(at, text.substr(chance.below(size), length));
      break;
    case 3:
      if (size > 0) text[at] = static_cast<char>(text[at] ^ (1 << chance.below(8)));
      break;
    case 4:
      text.replace(at, length, chance.one_of(words));
      break;
    case 5:
      text.insert(at, chance.one_of(words));
      break;
    default: {  // a number, by another
      const std::size_t digit = text.find_first_of("0123456789", at);
      if (digit == text.npos) break;
      const std::size_t end = std::min(text.find_first_not_of("0123456789.e+-", digit), size);
      text.replace(digit, end - digit, chance.one_of(std::span(words).first(6)));
    }
  }
}

/// The same for what a safetensors file says of itself: its length is told right.
void change_header(std::string& file, Chance& chance) {
  std::uint64_t length = 0;
  if (file.size() < sizeof length) return change(file, chance);
  std::memcpy(&length, file.data(), sizeof length);
  if (length > file.size() - sizeof length) return change(file, chance);
  std::string header = file.substr(sizeof length, length);
  change(header, chance);
  file.replace(sizeof length, length, header);
  length = header.size();
  std::memcpy(file.data(), &length, sizeof length);
}

/// The world with one or two of the files that a command reads changed, exchanged, emptied or taken away. Says what was
/// done.
std::string disturb(FileContents& files, const Command& command, const std::vector<FileContents>& spare,
                    Chance& chance) {
  std::string done;
  for (std::size_t changes = 1 + chance.below(2); changes-- > 0;) {
    std::vector<FileContents::iterator> victims;
    const std::string& where = chance.one_of(command.reads);
    for (auto file = files.begin(); file != files.end(); ++file)
      if (file->first.starts_with(where)) victims.push_back(file);
    if (victims.empty()) continue;
    const auto victim = chance.one_of(victims);
    const std::string name = victim->first, file = fs::path(name).filename();
    const std::size_t kind = chance.below(12);
    if (kind == 0) {
      files.erase(victim);
      done += " removed " + name;
    } else if (kind == 1) {
      victim->second.clear();
      done += " emptied " + name;
    } else if (kind == 2) {
      const FileContents& other = chance.one_of(spare);
      const auto found =
          std::ranges::find_if(other, [&](const auto& entry) { return fs::path(entry.first).filename() == file; });
      if (found != other.end()) victim->second = found->second;
      done += " exchanged " + name;
    } else {
      const bool header = name.ends_with(".safetensors") && chance.below(4) > 0;
      for (std::size_t edits = 1 + chance.below(3); edits-- > 0;)
        header ? change_header(victim->second, chance) : change(victim->second, chance);
      if (name.starts_with("out/state/") && chance.below(4) > 0) victim->second = fuzz::with_checksum(victim->second);
      done += " changed " + name;
    }
  }
  return done;
}

std::string command_line(const Command& command) {
  std::string line = "fedlora-" + command.program;
  for (const std::string& argument : command.arguments) line += " " + argument;
  return line;
}

/// Runs a command over files; complains when it does not end as it should. Returns its status.
int run_case(const FileContents& files, const Command& command, const std::string& what, bool keep = false) {
  auto scratch = std::make_unique<TemporaryDirectory>();
  write_files(files, scratch->path());
  const Finished run = run_program(scratch->path(), command.program, command.arguments, command.input, small_machine);
  const std::string wrong = fault(command.program, run);
  INFO(what);
  INFO(command_line(command));
  INFO(run.err);
  CHECK(wrong == "");
  if (keep) {
    std::cout << what << "\ncd " << scratch->path().string() << " && " << command_line(command) << "\nstatus "
              << run.status << "\n"
              << run.err;
    static_cast<void>(scratch.release());
  }
  return run.status;
}

std::optional<std::uint64_t> number_from(const char* variable) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? std::nullopt : std::optional<std::uint64_t>(std::strtoull(text, nullptr, 10));
}

TEST_CASE("directories that are right are taken, in the memory of a small machine") {
  for (const World& world : worlds())
    for (const Command& command : world.commands) {
      const TemporaryDirectory scratch;
      write_files(world.files, scratch.path());
      const Finished run =
          run_program(scratch.path(), command.program, command.arguments, command.input, small_machine);
      INFO(command_line(command));
      INFO(run.err);
      CHECK(run.status == 0);
    }
}

TEST_CASE("whatever chance does to a file, a program ends as it should") {
  const std::vector<World> all = worlds();
  std::vector<FileContents> spare;
  for (const char* const target : {"checkpoint", "adapter", "tokenizer_json", "vocabulary"})
    for (const auto& [name, input] : corpus(target)) spare.push_back(under("x", input));
  for (const auto& [name, input] : corpus("json")) spare.push_back({{"x/config.json", input}});
  for (const auto& [name, input] : corpus("table"))
    for (const auto& [file, contents] : fuzz::files_of(input))
      if (file.starts_with("table.")) spare.push_back({{"x/table.csv", contents}});

  const auto alone = number_from("FEDLORA_HOSTILE_CASE");
  const std::uint64_t cases = number_from("FEDLORA_HOSTILE_CASES").value_or(600);
  std::size_t taken = 0, refused = 0;
  for (std::uint64_t number = alone.value_or(0); number < (alone ? *alone + 1 : cases); ++number) {
    Chance chance(number + 1);
    const World& world = chance.one_of(all);
    const Command& command = chance.one_of(world.commands);
    FileContents files = world.files;
    const std::string done = disturb(files, command, spare, chance);
    const int status =
        run_case(files, command, "FEDLORA_HOSTILE_CASE=" + std::to_string(number) + ":" + done, alone.has_value());
    ++(status == 0 ? taken : refused);
  }
  if (alone) return;
  std::cout << taken << " cases were taken, " << refused << " refused\n";
  CHECK(taken > cases / 8);  // or chance does too much, or too little, to see anything
  CHECK(refused > cases / 8);
}

TEST_CASE("the corpora as directories: what they are made of is not always right") {
  const std::string table = "text,label\na b the,x\nthe a,y\n";
  for (const char* const target : {"tokenizer_json", "vocabulary"})
    for (const auto& [name, input] : corpus(target)) {
      const FileContents files = under("model", input);
      for (const Command& command : {tokenize, decode}) run_case(files, command, std::string(target) + "/" + name);
    }
  for (const auto& [name, input] : corpus("checkpoint")) {
    FileContents files = under("model", input);
    files["table.csv"] = table;
    files["model/vocab.txt"] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n";
    for (const Command& command : {predict, predict_lines}) run_case(files, command, "checkpoint/" + name);
    run_case(files, federation({"--rounds", "1", "--out", "out"}, {}), "checkpoint/" + name);
  }
  const FileContents models = corpus("checkpoint");
  for (const auto& [name, input] : corpus("adapter")) {
    FileContents files = under("adapter", input);
    files.merge(under("model", models.at(name.starts_with("llama") ? "llama_two_layers" : "bert_two_layers")));
    files["model/vocab.txt"] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n";
    files["table.csv"] = table;
    for (const Command& command : {predict_adapted, merge}) run_case(files, command, "adapter/" + name);
  }
  for (const auto& [name, input] : corpus("table")) {
    FileContents files = under("tables", input);
    for (const auto& [file, contents] : FileContents(files)) {
      files.merge(under("model", models.at("bert_two_layers")));
      const std::string where = file;
      run_case(files, {"predict", {"--model", "model", "--file", where, "--label-column", "label", "--threads", "1"}},
               "table/" + name);
      run_case(files, {"predict", {"--model", "model", "--file", where, "--text-column", "1", "--threads", "1"}},
               "table/" + name);
    }
  }
}

}  // namespace
}  // namespace fedlora::tests
