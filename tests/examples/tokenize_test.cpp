// SPDX-License-Identifier: Apache-2.0
// fedlora-tokenize as people call it: lines in and out, exit codes, messages.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "support.hpp"

namespace {

struct Outcome {
  int exit_code;
  std::string out, error;
};

/// Runs the program on a small tokenizer with `input` on its standard input.
Outcome tokenize(const std::string& arguments, const std::string& input, const std::string& added_tokens = "{}") {
  const fedlora::tests::TemporaryDirectory directory;
  const auto at = [&](const char* name) { return (directory.path() / name).string(); };
  fedlora::tests::write_text(at("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\n!\n");
  fedlora::tests::write_text(at("added_tokens.json"), added_tokens);
  fedlora::tests::write_text(at("in"), input);
  const std::string command = "cd '" + directory.path().string() + "' && '" FEDLORA_PROGRAM_DIR "/fedlora-tokenize' " +
                              arguments + " < in > out 2> error";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, fedlora::tests::read_text(at("out")),
          fedlora::tests::read_text(at("error"))};
}

}  // namespace

TEST_CASE("a line of text becomes a line of ids, and back") {
  const Outcome ids = tokenize("--tokenizer .", "Hello world!\n\nhello");
  CHECK(ids.exit_code == 0);
  CHECK(ids.out == "[2,4,5,6,3]\n[2,3]\n[2,4,3]\n");
  CHECK(ids.error.empty());
  CHECK(tokenize("--tokenizer vocab.txt --no-special", "Hello world!\r\n").out == "[4,5,6]\n");
  const Outcome text = tokenize("--tokenizer . --decode", "[2,4,5,6,3]\n[]\n");
  CHECK(text.exit_code == 0);
  CHECK(text.out == "hello world!\n\n");
}

TEST_CASE("what is odd about the files is a warning, and the ids come all the same") {
  const Outcome ids = tokenize("--tokenizer .", "hello x\n", R"({"x": 9})");
  CHECK(ids.exit_code == 0);
  CHECK(ids.out == "[2,4,7,3]\n");
  CHECK(ids.error ==
        "fedlora-tokenize: warning: ./added_tokens.json, token 'x' gives the token 'x' the id 9; it gets 7 instead, as "
        "tokens that ./vocab.txt lacks are numbered on from the number of its pieces (as in transformers)\n");
}

TEST_CASE("errors name the line and end with 1") {
  const Outcome bytes = tokenize("--tokenizer .", "hello\nwor\xffld\n");
  CHECK(bytes.exit_code == 1);
  CHECK(bytes.out == "[2,4,3]\n");
  CHECK(bytes.error == "fedlora-tokenize: line 2: [text, byte 3] expected valid UTF-8, got the byte 0xff\n");
  for (const char* line : {"[1,", "7", "[1.5]", "[\"a\"]", "{}", "[99999999999]"}) {
    const Outcome ids = tokenize("--tokenizer . --decode", "[4]\n" + std::string(line) + "\n");
    CHECK(ids.exit_code == 1);
    CHECK(ids.error.starts_with("fedlora-tokenize: line 2: [standard input"));
  }
  const Outcome absent = tokenize("--tokenizer absent", "hello\n");
  CHECK(absent.exit_code == 1);
  CHECK(absent.error.starts_with("fedlora-tokenize: [model 'absent'] expected"));
}

TEST_CASE("wrong usage ends with 2, help with 0") {
  CHECK(tokenize("", "").exit_code == 2);
  const Outcome unknown = tokenize("--tokenizer . --no_specials", "");
  CHECK(unknown.exit_code == 2);
  CHECK(unknown.error.starts_with("fedlora-tokenize: there is no option --no_specials; is --no-special meant?"));
  CHECK(tokenize("--tokenizer ''", "").exit_code == 2);
  const Outcome help = tokenize("--help", "");
  CHECK(help.exit_code == 0);
  CHECK(help.out.find("--no-special") != std::string::npos);
}
