// SPDX-License-Identifier: Apache-2.0
// Tokenizers from files: which file counts, what tokenizer_config.json changes, and files that are wrong or mean harm.
#include "fedlora/hf/tokenizer_files.hpp"

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "support.hpp"

namespace {

using namespace fedlora;
using Ids = std::vector<std::int32_t>;

Tokenizer load(const std::map<std::string, std::string>& files) {
  std::map<std::string, Bytes> bytes;
  for (const auto& [name, contents] : files) bytes.emplace(name, bytes_of(contents, name));
  return load_tokenizer(FileSet::memory("dir", bytes));
}

/// The message of the FormatError that loading the file throws.
std::string refusal(const std::string& tokenizer_json) {
  try {
    load({{"tokenizer.json", tokenizer_json}});
  } catch (const FormatError& error) {
    return error.what();
  }
  return "it loads";
}

bool begins(const std::string& text, const std::string& with) {
  INFO(text);
  CHECK(text.substr(0, with.size()) == with);
  return text.starts_with(with);
}

const char* const bert_vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nhéllo\nHello\n##s\n中\nworld\n";

Json word_piece() {
  return {{"version", "1.0"},
          {"model",
           {{"type", "WordPiece"}, {"vocab", {{"[UNK]", 0}, {"a", 1}, {"##b", 2}}}, {"max_input_chars_per_word", 10}}}};
}

Json bpe() { return {{"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}}}; }

}  // namespace

TEST_CASE("vocab.txt: uncased unless tokenizer_config.json says otherwise") {
  const auto ids = [](const std::string& config) {
    std::map<std::string, std::string> files{{"vocab.txt", bert_vocabulary}};
    if (!config.empty()) files["tokenizer_config.json"] = config;
    return load(files).encode("Héllo中 Hellos").ids;
  };
  CHECK(ids("") == Ids{2, 5, 9, 5, 8, 3});
  CHECK(ids("{}") == Ids{2, 5, 9, 5, 8, 3});
  CHECK(ids(R"({"do_lower_case": true, "strip_accents": null})") == Ids{2, 5, 9, 5, 8, 3});
  CHECK(ids(R"({"do_lower_case": false})") == Ids{2, 1, 9, 7, 8, 3});
  CHECK(ids(R"({"strip_accents": false})") == Ids{2, 6, 9, 5, 8, 3});
  CHECK(ids(R"({"tokenize_chinese_chars": false})") == Ids{2, 1, 5, 8, 3});
}

TEST_CASE("vocab.txt: pairs, special tokens of other names, what a wrong file says") {
  const Tokenizer tokenizer = load({{"vocab.txt", bert_vocabulary}});
  const Encoding pair = tokenizer.encode("hello", "world [MASK]", {});
  CHECK(pair.ids == Ids{2, 5, 3, 10, 4, 3});
  CHECK(pair.token_types == Ids{0, 0, 0, 1, 1, 1});
  CHECK(tokenizer.decode(pair.ids) == "hello world");
  CHECK(tokenizer.decode(pair.ids, false) == "[CLS] hello [SEP] world [MASK] [SEP]");
  CHECK(tokenizer.vocab_size() == 11);

  const std::string renamed = "<pad>\n<unk>\n<cls>\n<sep>\nx\n";
  const std::string config =
      R"({"unk_token": "<unk>", "cls_token": {"content": "<cls>", "lstrip": false}, "sep_token": "<sep>", "pad_token": "<pad>"})";
  CHECK(load({{"vocab.txt", renamed}, {"tokenizer_config.json", config}}).encode("x y").ids == Ids{2, 4, 1, 3});
  CHECK_THROWS_WITH_AS(load({{"vocab.txt", renamed}}),
                       "[dir/vocab.txt] expected the special token '[CLS]', got a vocabulary without it", FormatError);
  CHECK_THROWS_AS(load({{"vocab.txt", ""}}), FormatError);
  CHECK_THROWS_AS(load({{"vocab.txt", "[CLS]\n\xff\n"}}), FormatError);
  CHECK_THROWS_AS(load({{"vocab.txt", bert_vocabulary}, {"tokenizer_config.json", R"({"do_lower_case": "yes"})"}}),
                  FormatError);
  CHECK_THROWS_AS(load({{"vocab.txt", bert_vocabulary}, {"tokenizer_config.json", "[]"}}), FormatError);
}

TEST_CASE("vocab.json and merges.txt: GPT-2, and RoBERTa by class, model type or vocabulary") {
  const std::string merges = "#version: 0.2\nh i\nĠ hi\n";
  const std::string gpt2 =
      R"({"<|endoftext|>": 0, "h": 1, "i": 2, "Ġ": 3, "hi": 4, "Ġhi": 5, "<s>": 6, "</s>": 7, "<mask>": 8})";
  const std::string roberta =
      R"({"<s>": 0, "<pad>": 1, "</s>": 2, "h": 3, "i": 4, "Ġ": 5, "hi": 6, "Ġhi": 7, "<mask>": 8, "<unk>": 9})";
  CHECK(load({{"vocab.json", gpt2}, {"merges.txt", merges}}).encode("hi hi<|endoftext|>").ids == Ids{4, 5, 0});
  CHECK(load({{"vocab.json", gpt2}, {"merges.txt", merges}, {"tokenizer_config.json", R"({"add_prefix_space": true})"}})
            .encode("hi")
            .ids == Ids{5});
  CHECK(load({{"vocab.json", gpt2}, {"merges.txt", merges}, {"tokenizer_config.json", R"({"add_bos_token": true})"}})
            .encode("hi")
            .ids == Ids{0, 4});
  CHECK(load({{"vocab.json", gpt2}, {"merges.txt", merges}, {"config.json", R"({"model_type": "roberta"})"}})
            .encode("hi")
            .ids == Ids{6, 4, 7});
  CHECK(load({{"vocab.json", roberta}, {"merges.txt", merges}, {"config.json", R"({"model_type": "gpt2"})"}})
            .encode("hi")
            .ids == Ids{6});
  CHECK(load({{"vocab.json", gpt2},
              {"merges.txt", merges},
              {"tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizer"})"}})
            .encode("hi")
            .ids == Ids{6, 4, 7});

  const Tokenizer tokenizer = load({{"vocab.json", roberta}, {"merges.txt", merges}});
  CHECK(tokenizer.encode("hi<mask> hi").ids == Ids{0, 6, 8, 7, 2});
  CHECK(tokenizer.encode("hi <mask> hi").ids == Ids{0, 6, 5, 8, 7, 2});  // without flags, the mask takes no space
  const Encoding pair = tokenizer.encode("hi", "hi", {});
  CHECK(pair.ids == Ids{0, 6, 2, 2, 6, 2});
  CHECK(pair.token_types == Ids{0, 0, 0, 0, 0, 0});
  CHECK(tokenizer.decode(Ids{0, 6, 7, 2}) == "hi hi");

  CHECK_THROWS_AS(load({{"vocab.json", gpt2}}), IoError);
  CHECK_THROWS_WITH_AS(load({{"vocab.json", gpt2}, {"merges.txt", "h i\nh i i\n"}}),
                       "[dir/merges.txt, line 2] expected two pieces with one space between them, got 'h i i'",
                       FormatError);
  CHECK_THROWS_WITH_AS(load({{"vocab.json", gpt2}, {"merges.txt", "h h\n"}}),
                       "[dir/merges.txt, merges[0]] expected pieces of the vocabulary, got \"hh\"", FormatError);
}

TEST_CASE("tokenizer.json comes before vocab.txt, and that before vocab.json; a file may be named itself") {
  const tests::TemporaryDirectory directory;
  CHECK_THROWS_AS(load_tokenizer(directory.path()), IoError);
  CHECK_THROWS_AS(load_tokenizer(directory.path() / "absent"), IoError);
  tests::write_text(directory.path() / "vocab.json", R"({"a": 3})");
  tests::write_text(directory.path() / "merges.txt", "");
  CHECK(load_tokenizer(directory.path()).encode("a").ids == Ids{3});
  tests::write_text(directory.path() / "vocab.txt", "[CLS]\n[SEP]\n[UNK]\na\n");
  CHECK(load_tokenizer(directory.path()).encode("a").ids == Ids{0, 3, 1});
  tests::write_text(directory.path() / "tokenizer.json", word_piece().dump());
  CHECK(load_tokenizer(directory.path()).encode("ab").ids == Ids{1, 2});
  CHECK(load_tokenizer(directory.path() / "tokenizer.json").encode("ab").ids == Ids{1, 2});
  CHECK(load_tokenizer(directory.path() / "vocab.txt").encode("a").ids == Ids{0, 3, 1});
  CHECK(load_tokenizer(directory.path() / "vocab.json").encode("a").ids == Ids{3});
  CHECK(load_tokenizer(directory.path() / "merges.txt").encode("a").ids == Ids{3});
}

TEST_CASE("tokenizer.json says which end of a text is cut, named itself too") {
  const tests::TemporaryDirectory directory;
  const auto path = directory.path() / "tokenizer.json";
  Json json = word_piece();
  json["pre_tokenizer"] = {{"type", "WhitespaceSplit"}};
  json["model"]["vocab"] = {{"[UNK]", 0}, {"a", 1}, {"A", 2}, {"b", 3}};
  // The ids are those of Tokenizer.from_file(…).encode(…) of tokenizers with max_length 3.
  for (const auto& [direction, single, pair] :
       {std::tuple("Left", Ids{3, 1, 1}, Ids{1, 2, 2}), std::tuple("Right", Ids{1, 2, 3}, Ids{1, 1, 2})}) {
    json["truncation"] = {{"direction", direction}, {"max_length", 3}, {"strategy", "LongestFirst"}, {"stride", 0}};
    tests::write_text(path, json.dump());
    for (const auto& given : {path, directory.path()}) {
      const Tokenizer tokenizer = load_tokenizer(given);
      CHECK(tokenizer.encode("a A b a a", {.max_tokens = 3}).ids == single);
      CHECK(tokenizer.encode("a A b a", "a A A A", {.max_tokens = 3}).ids == pair);
    }
  }
}

TEST_CASE("Merges as strings and as pairs") {
  Json json = bpe();
  CHECK(load({{"tokenizer.json", json.dump()}}).encode("aab").ids == Ids{0, 2});
  json["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  CHECK(load({{"tokenizer.json", json.dump()}}).encode("aab").ids == Ids{0, 2});
  json["model"]["merges"] = {"#version: 0.2", "a b"};
  CHECK(load({{"tokenizer.json", json.dump()}}).encode("aab").ids == Ids{0, 2});
}

TEST_CASE("A wrong tokenizer.json is refused, naming file and field") {
  struct Wrong {
    Json base;
    const char* at;
    Json value;
    const char* message;
  };
  const Wrong wrong[] = {
      {bpe(), "/model/type", "Unigram",
       "[dir/tokenizer.json, field model.type] expected WordPiece or BPE, got 'Unigram'"},
      {bpe(), "/model/type", 5, "[dir/tokenizer.json, field model.type] expected a string"},
      {bpe(), "/model", nullptr, "[dir/tokenizer.json, field model] expected a value"},
      {bpe(), "/model", "BPE", "[dir/tokenizer.json, field model] expected an object"},
      {bpe(), "/model/vocab", Json::array({"a"}), "[dir/tokenizer.json, field model.vocab] expected an object"},
      {bpe(), "/model/vocab/a", -1,
       "[dir/tokenizer.json, field model.vocab, piece 'a'] expected an id from 0 to 2147483647, got -1"},
      {bpe(), "/model/vocab/a", 1e30, "[dir/tokenizer.json, field model.vocab, piece 'a'] expected an id"},
      {bpe(), "/model/vocab/a", 4294967296, "[dir/tokenizer.json, field model.vocab, piece 'a'] expected an id"},
      {bpe(), "/model/vocab/a", "0", "[dir/tokenizer.json, field model.vocab, piece 'a'] expected an id"},
      {bpe(), "/model/vocab/a", 1, "[dir/tokenizer.json, field model.vocab] expected every id once, got 1"},
      {bpe(), "/model/merges", "a b", "[dir/tokenizer.json, field model.merges] expected an array"},
      {bpe(), "/model/merges/0", "a  b", "[dir/tokenizer.json, field model.merges[0]] expected two pieces"},
      {bpe(), "/model/merges/0", "ab", "[dir/tokenizer.json, field model.merges[0]] expected two pieces"},
      {bpe(), "/model/merges/0", Json::array({"a", "b", "c"}),
       "[dir/tokenizer.json, field model.merges[0]] expected \"a b\""},
      {bpe(), "/model/merges/0", "a z",
       "[dir/tokenizer.json, field model.merges[0]] expected pieces of the vocabulary, got \"z\""},
      {bpe(), "/model/merges/0", "b a",
       "[dir/tokenizer.json, field model.merges[0]] expected pieces of the vocabulary, got \"ba\""},
      {bpe(), "/model/byte_fallback", "no", "[dir/tokenizer.json, field model.byte_fallback] expected true or false"},
      {word_piece(), "/model/max_input_chars_per_word", -3,
       "[dir/tokenizer.json, field model.max_input_chars_per_word] expected an integer"},
      {bpe(),
       "/normalizer",
       {{"type", "Precompiled"}},
       "[dir/tokenizer.json, field normalizer.type] expected one of Sequence, Bert"},
      {bpe(), "/normalizer", Json::array(), "[dir/tokenizer.json, field normalizer] expected an object"},
      {bpe(),
       "/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, 7}}},
       "[dir/tokenizer.json, field normalizer.normalizers[1]] expected an object"},
      {bpe(),
       "/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "(a)\\1"}}}, {"content", ""}},
       "[dir/tokenizer.json, field normalizer.pattern.Regex] expected a regular expression with no back-references"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "UnicodeScripts"}},
       "[dir/tokenizer.json, field pre_tokenizer.type] expected one of"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "ab"}},
       "[dir/tokenizer.json, field pre_tokenizer.replacement] expected one character"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Metaspace"}, {"prepend_scheme", "last"}},
       "[dir/tokenizer.json, field pre_tokenizer.prepend_scheme] expected one of"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Metaspace"}, {"prepend_scheme", "always"}, {"add_prefix_space", false}},
       "[dir/tokenizer.json, field pre_tokenizer.prepend_scheme] expected never"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Metaspace"}, {"add_prefix_space", false}},
       "[dir/tokenizer.json, field pre_tokenizer.prepend_scheme] expected never, as add_prefix_space is false"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Delimiter"}, {"delimiter", "a"}},
       "[dir/tokenizer.json, field pre_tokenizer.type] expected one of"},
      {bpe(), "/zzz", nullptr, "[dir/tokenizer.json, field zzz] expected a field that tokenizers knows"},
      {bpe(), "/version", "2.0", "[dir/tokenizer.json, field version] expected '1.0'"},
      {bpe(),
       "/truncation",
       {{"direction", "left"}},
       "[dir/tokenizer.json, field truncation.direction] expected Left or Right"},
      {bpe(),
       "/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Gone"}},
       "[dir/tokenizer.json, field pre_tokenizer.behavior] expected one of"},
      {bpe(), "/decoder", {{"type", "CTC"}}, "[dir/tokenizer.json, field decoder.type] expected one of"},
      {bpe(),
       "/decoder",
       {{"type", "Strip"}, {"content", ""}, {"start", 1}},
       "[dir/tokenizer.json, field decoder.content] expected one character"},
      {bpe(),
       "/decoder",
       {{"type", "Strip"}, {"content", " "}, {"start", -1}},
       "[dir/tokenizer.json, field decoder.start] expected an integer"},
      {bpe(),
       "/post_processor",
       {{"type", "BertProcessing"}, {"sep", {"x", 1}}},
       "[dir/tokenizer.json, field post_processor.cls] expected a value"},
      {bpe(),
       "/post_processor",
       {{"type", "RobertaProcessing"}, {"sep", {"x", 1}}, {"cls", {"x", "y"}}},
       "[dir/tokenizer.json, field post_processor.cls[1]] expected an integer"},
      {bpe(),
       "/post_processor",
       {{"type", "RobertaProcessing"}, {"sep", {"x", -1}}, {"cls", {"x", 1}}},
       "[dir/tokenizer.json, field post_processor.sep[1]] expected an id from 0"},
      {bpe(),
       "/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "x"}, {"type_id", 0}}}}}},
        {"pair", Json::array()},
        {"special_tokens", Json::object()}},
       "[dir/tokenizer.json, field post_processor.single[0].SpecialToken.id] expected one of the special_tokens"},
      {bpe(),
       "/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"Sequence", {{"id", "B"}, {"type_id", 0}}}}}},
        {"pair", Json::array()},
        {"special_tokens", Json::object()}},
       "[dir/tokenizer.json, field post_processor.single[0].Sequence.id] expected A, got 'B'"},
      {bpe(),
       "/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 1}}}}}},
        {"pair", Json::array()},
        {"special_tokens", Json::object()}},
       "[dir/tokenizer.json, field post_processor.single[1].Sequence.id] expected every text once, got A again"},
      {bpe(),
       "/post_processor",
       {{"type", "RobertaProcessing"}, {"sep", {"a", 0}}, {"cls", {"x", 77}}},
       "[dir/tokenizer.json, field post_processor] expected ids of tokens, got 77, which no token has"},
      {bpe(),
       "/added_tokens",
       {{{"id", 0}, {"content", "a"}}, {{"id", 0}, {"content", "b"}}},
       "[dir/tokenizer.json, field added_tokens[1].id] expected every id once"},
      {bpe(),
       "/added_tokens",
       {{{"id", -1}, {"content", "a"}}},
       "[dir/tokenizer.json, field added_tokens[0].id] expected an id from 0"},
      {bpe(), "/added_tokens", {{{"id", 3}}}, "[dir/tokenizer.json, field added_tokens[0].content] expected a value"},
      {bpe(),
       "/added_tokens",
       {{{"id", 3}, {"content", "c"}, {"lstrip", 1}}},
       "[dir/tokenizer.json, field added_tokens[0].lstrip] expected true or false"},
      {bpe(), "/added_tokens", "a", "[dir/tokenizer.json, field added_tokens] expected an array"},
  };
  for (const Wrong& entry : wrong) {
    Json json = entry.base;
    json[Json::json_pointer(entry.at)] = entry.value;
    begins(refusal(json.dump()), entry.message);
  }
  begins(refusal("{"), "[dir/tokenizer.json, byte 1] expected JSON");
  begins(refusal("7"), "[dir/tokenizer.json] expected an object");
  begins(refusal("{}"), "[dir/tokenizer.json, field model] expected a value");
  begins(refusal(R"({"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}})"),
         "[dir/tokenizer.json] expected every key once");
  std::string deep;
  for (int i = 0; i < 300; ++i) deep += R"({"type":"Sequence","normalizers":[)";
  begins(refusal(R"({"normalizer":)" + deep), "[dir/tokenizer.json] expected JSON nested at most 256 deep");
}

TEST_CASE("Ids far apart cost no memory, and gaps may lead to two tokens with one number, which is said") {
  Json json = bpe();
  json["model"]["vocab"]["b"] = 2147483647;
  const Tokenizer tokenizer = load({{"tokenizer.json", json.dump()}});
  CHECK(tokenizer.encode("b").ids == Ids{2147483647});
  CHECK(tokenizer.decode(Ids{2147483647}) == "b");
  json["model"]["vocab"]["b"] = 3;
  json["added_tokens"] = {{{"id", 3}, {"content", "new"}}};
  const Tokenizer shared = load({{"tokenizer.json", json.dump()}});
  CHECK(shared.encode("b").ids == Ids{3});
  CHECK(shared.encode("new").ids == Ids{3});
  REQUIRE(shared.warnings().size() == 1);
  begins(
      shared.warnings()[0],
      "dir/tokenizer.json, field added_tokens[0] gives the token 'new' the id 3; dir/tokenizer.json, field model.vocab "
      "gives that id to the piece 'b', so both have it");
  json["model"]["vocab"]["b"] = 2147483647;
  json["added_tokens"] = {{{"id", 0}, {"content", "b"}}, {{"id", 3}, {"content", "new"}}};
  CHECK(load({{"tokenizer.json", json.dump()}}).encode("new").ids == Ids{3});
}

TEST_CASE("A tokenizer.json that is damaged anywhere loads or is refused, and never more") {
  const Json golden = Json::parse(tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/tokenizer/cases.json"));
  Json small = golden["bases"]["wordpiece"];
  small["post_processor"]["special_tokens"].erase("[MASK]");
  Json vocabulary = Json::object();
  for (const auto& [piece, id] : small["model"]["vocab"].items()) {
    if (id < 40) vocabulary[piece] = id;
  }
  small["model"]["vocab"] = vocabulary;
  const std::string whole = small.dump();
  std::uint64_t state = 1;
  const auto next = [&](std::size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>(state >> 33) % below;
  };
  int loaded = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = whole;
    static constexpr std::string_view replacements[] = {"-1",   "1e9",         "null",  "[]", "{}", "\"\"",
                                                        "true", "99999999999", "\"A\"", "0",  ",",  "\xff"};
    for (std::size_t edits = 1 + next(3); edits-- > 0;) {
      const std::size_t at = next(text.size());
      const std::size_t length = next(2) == 0 ? 1 : std::min(next(12), text.size() - at);
      text.replace(at, length, next(3) == 0 ? std::string_view("") : replacements[next(std::size(replacements))]);
    }
    try {
      const Tokenizer tokenizer = load({{"tokenizer.json", text}});
      ++loaded;
      const Ids ids = tokenizer.encode("the first [MASK] of 12 lines, isn't it?", "naïve 日本語", {64, true}).ids;
      tokenizer.decode(ids);
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(loaded > 100);
  CHECK(refused > 1000);
}
