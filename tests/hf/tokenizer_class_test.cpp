// SPDX-License-Identifier: Apache-2.0
// Which tokenizer class a checkpoint has, what is refused of it by name, and what is said about the rest.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/hf/tokenizer_files.hpp"
#include "support.hpp"

namespace {

using fedlora::Bytes;
using fedlora::ConfigError;
using fedlora::FileSet;
using fedlora::FormatError;
using fedlora::IoError;
using fedlora::Json;
using fedlora::Tokenizer;
using Ids = std::vector<std::int32_t>;
using Texts = std::map<std::string, std::string>;

Tokenizer tokenizer_from(const Texts& texts) {
  std::map<std::string, Bytes> files;
  for (const auto& [name, text] : texts) files.emplace(name, fedlora::bytes_of(text, name));
  return fedlora::load_tokenizer(FileSet::memory("dir", std::move(files)));
}

template <class E>
void check_refused(const Texts& texts, std::initializer_list<std::string_view> parts) {
  fedlora::tests::check_error<E>([&] { tokenizer_from(texts); }, parts);
}

const std::string word_pieces = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nThe\ndog\n##s\n";
const std::string word_piece_json =
    R"({"normalizer": {"type": "BertNormalizer", "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "the": 5,
                  "The": 6, "dog": 7, "##s": 8}}})";
const std::string byte_level_json =
    R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "hi": 2}, "merges": ["h i"]}})";

/// tokenizer_config.json that names a class, with more fields.
std::string of_class(const std::string& name, const std::string& more = "") {
  return R"({"tokenizer_class": ")" + name + "\"" + (more.empty() ? "" : ", " + more) + "}";
}

}  // namespace

TEST_CASE("A class that is not built here is refused by its name, whatever lies beside it") {
  std::size_t classes = 0;
  for (const auto& row : fedlora::detail::tokenizer_class_names) {
    if (!row.tokenizer_class.empty()) continue;
    std::string names(row.names);
    for (std::size_t begin = 0, end; begin < names.size(); begin = end + 1, ++classes) {
      end = std::min(names.find(' ', begin), names.size());
      const std::string name = names.substr(begin, end - begin);
      CAPTURE(name);
      const std::string config = of_class(name);
      check_refused<ConfigError>(
          {{"vocab.txt", word_pieces}, {"tokenizer_config.json", config}},
          {"[dir/tokenizer_config.json, field tokenizer_class] expected", "BertTokenizer", name});
      check_refused<ConfigError>({{"tokenizer.json", word_piece_json}, {"tokenizer_config.json", config}},
                                 {"field tokenizer_class", "PreTrainedTokenizerFast reads tokenizer.json alone", name});
    }
  }
  CHECK(classes > 90);
  for (const char* name :
       {"BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "CTRLTokenizer", "XLMTokenizer",
        "OpenAIGPTTokenizer", "HerbertTokenizer", "CLIPTokenizer", "FlaubertTokenizer", "BlenderbotSmallTokenizer",
        "WhisperTokenizer", "Wav2Vec2CTCTokenizer", "MBartTokenizer"}) {
    const Texts files = {
        {"vocab.json", R"({"h": 0})"}, {"merges.txt", ""}, {"config.json", R"({"model_type": "bert"})"}};
    for (const std::string suffix : {"", "Fast"}) {
      Texts named = files;
      named["tokenizer_config.json"] = of_class(name + suffix);
      check_refused<ConfigError>(named, {"dir/tokenizer_config.json, field tokenizer_class", name + suffix});
      named = files;
      named["config.json"] = R"({"model_type": "llama", "tokenizer_class": ")" + std::string(name) + suffix + "\"}";
      check_refused<ConfigError>(named, {"dir/config.json, field tokenizer_class", name + suffix});
    }
  }
}

TEST_CASE("Without a class the model's type decides, by its name too") {
  for (const auto& [type, name] : std::map<std::string, std::string>{{"xlm", "XLMTokenizer"},
                                                                     {"albert", "AlbertTokenizer"},
                                                                     {"roc_bert", "RoCBertTokenizer"},
                                                                     {"prophetnet", "ProphetNetTokenizer"},
                                                                     {"splinter", "SplinterTokenizer"},
                                                                     {"xlm-roberta", "XLMRobertaTokenizer"}}) {
    const std::string config = R"({"model_type": ")" + type + "\"}";
    check_refused<ConfigError>({{"vocab.txt", word_pieces}, {"config.json", config}},
                               {"[dir/config.json, field model_type] expected a tokenizer class", name});
    // transformers takes a class that it does not know, and this model's type in place of it, for the type's own.
    check_refused<ConfigError>({{"tokenizer.json", word_piece_json}, {"config.json", config}},
                               {"field model_type", name});
  }
  check_refused<ConfigError>({{"vocab.txt", word_pieces}, {"config.json", R"({"model_type": "encoder-decoder"})"}},
                             {"dir/config.json, field model_type", "encoder-decoder"});
}

TEST_CASE("Code in the checkpoint is not run: its tokenizer is refused where transformers knows no other") {
  const std::string code = R"("auto_map": {"AutoTokenizer": ["own.Own", null]})";
  check_refused<ConfigError>({{"tokenizer.json", word_piece_json}, {"tokenizer_config.json", "{" + code + "}"}},
                             {"dir/tokenizer_config.json, field auto_map", "not run"});
  check_refused<ConfigError>({{"vocab.txt", word_pieces},
                              {"tokenizer_config.json", R"({"auto_map": ["own.Own", null]})"},
                              {"config.json", R"({"model_type": "own"})"}},
                             {"dir/tokenizer_config.json, field auto_map"});
  CHECK(tokenizer_from({{"vocab.txt", word_pieces}, {"tokenizer_config.json", of_class("BertTokenizer", code)}})
            .encode("the")
            .ids == Ids{2, 5, 3});
}

TEST_CASE("A class whose file is not there is named with the file") {
  check_refused<IoError>(
      {{"vocab.json", R"({"h": 0})"}, {"merges.txt", ""}, {"tokenizer_config.json", of_class("BertTokenizer")}},
      {"dir", "tokenizer.json or vocab.txt, for BertTokenizer (dir/tokenizer_config.json"});
  check_refused<IoError>({{"vocab.txt", word_pieces}, {"config.json", R"({"model_type": "roberta"})"}},
                         {"tokenizer.json or vocab.json, for RobertaTokenizer (dir/config.json, field model_type)"});
  for (const char* name : {"PreTrainedTokenizerFast", "LlamaTokenizer", "UnheardOfTokenizer"})
    check_refused<IoError>({{"vocab.txt", word_pieces}, {"tokenizer_config.json", of_class(name)}},
                           {"expected tokenizer.json, for", "there is 'tokenizer_config.json', 'vocab.txt'"});
  check_refused<ConfigError>(
      {{"tokenizer.json", byte_level_json}, {"tokenizer_config.json", of_class("BertTokenizer")}},
      {"dir/tokenizer.json, field model.type", "'WordPiece', which BertTokenizer", "'BPE'"});
  check_refused<ConfigError>({{"tokenizer.json", word_piece_json}, {"config.json", R"({"model_type": "roberta"})"}},
                             {"'BPE', which RobertaTokenizer (dir/config.json, field model_type)", "'WordPiece'"});
}

TEST_CASE("A file of a directory may be named itself; tokenizer.json then counts alone") {
  const fedlora::tests::TemporaryDirectory directory;
  const auto write = [&](const char* name, const std::string& text) {
    fedlora::tests::write_text(directory.path() / name, text);
  };
  write("tokenizer.json", word_piece_json);
  write("tokenizer_config.json", of_class("BertTokenizer", R"("do_lower_case": false)"));
  write("words.txt", word_pieces);
  CHECK(fedlora::load_tokenizer(directory.path()).encode("The").ids == Ids{2, 6, 3});
  CHECK(fedlora::load_tokenizer(directory.path() / "tokenizer.json").encode("The").ids == Ids{5});
  CHECK(fedlora::load_tokenizer(directory.path() / "words.txt").encode("The").ids == Ids{2, 6, 3});
  write("tokenizer_config.json", of_class("RobertaTokenizer"));
  fedlora::tests::check_error<ConfigError>([&] { fedlora::load_tokenizer(directory.path() / "words.txt"); },
                                           {"words.txt", "vocab.json or tokenizer.json, which RobertaTokenizer"});
}

TEST_CASE("Settings that have no meaning, or another in transformers, are refused by file and field") {
  const auto with = [](const std::string& more) {
    return Texts{{"vocab.txt", word_pieces}, {"tokenizer_config.json", of_class("BertTokenizer", more)}};
  };
  for (const auto& [more, message] : std::vector<std::pair<std::string, std::string>>{
           {R"("do_lower_case": null)", "field do_lower_case] expected true or false, got null"},
           {R"("do_lower_case": "false")", "field do_lower_case] expected true or false"},
           {R"("strip_accents": "no")", "field strip_accents] expected true or false"},
           {R"("tokenize_chinese_chars": 1)", "field tokenize_chinese_chars] expected true or false"},
           {R"("split_special_tokens": "yes")", "field split_special_tokens] expected true or false"},
           {R"("cls_token": null)", "field cls_token] expected a token, which BertTokenizer"},
           {R"("unk_token": null)", "field unk_token] expected a token, got null"},
           {R"("pad_token": 5)", "field pad_token] expected a token"},
           {R"("additional_special_tokens": "<x>")", "field additional_special_tokens] expected an array"},
           {R"("additional_special_tokens": [7])", "field additional_special_tokens[0]] expected a token"},
           {R"("extra_special_tokens": {"a_token": 7})", "field extra_special_tokens.a_token] expected a token"},
           {R"("a_token": "<a>", "b_token": "<b>")", "the ids of '<a>' and '<b>' in added_tokens_decoder"},
           {R"("added_tokens_decoder": {"9": "<x>"})", "field added_tokens_decoder.9] expected an object"},
           {R"("added_tokens_decoder": {"-9": {"content": "<x>"}})", "expected an id from 0 to 2147483647"},
           {R"("added_tokens_decoder": {"x": {"content": "<x>"}})", "expected an id from 0 to 2147483647"},
           {R"("added_tokens_decoder": {"9": {"content": "<x>", "lstrip": null}})",
            "decoder.9.lstrip] expected true or"},
           {R"("added_tokens_decoder": {"9": {"content": "<x>"}, "09": {"content": "<y>"}})", "another id than '<"},
           {R"("added_tokens_decoder": null)", "field added_tokens_decoder] expected an object, got null"},
           {R"("truncation_side": "both")", "field truncation_side] expected left or right"},
           {R"("model_input_names": "input_ids")", "field model_input_names] expected an array"},
           {R"("vocab": {"a": 0})", "field vocab] expected no such field"},
           {R"("init_inputs": ["vocab.txt"])", "field init_inputs] expected an empty array"},
           {R"("fast_tokenizer_files": ["tokenizer.4.0.0.json"])",
            "field fast_tokenizer_files[0]] expected 'tokenizer.json'"},
           {R"("fix_mistral_regex": true)", "field fix_mistral_regex] expected false"}}) {
    check_refused<FormatError>(with(more), {"[dir/tokenizer_config.json, ", message});
  }
  Texts files = with("");
  files["special_tokens_map.json"] = R"({"add_bos_token": true})";
  check_refused<FormatError>(files, {"dir/special_tokens_map.json, field add_bos_token"});
  files = with("");
  files["added_tokens.json"] = R"({"<x>": 9, "<y>": 9})";
  check_refused<FormatError>(
      files, {"dir/added_tokens.json, token '<y>'", "another id than '<x>' has in dir/added_tokens.json"});
  files["added_tokens.json"] = R"({"<x>": "9"})";
  check_refused<FormatError>(files, {"dir/added_tokens.json, token '<x>'", "an integer"});
  files["added_tokens.json"] = R"({"<x>": -1})";
  check_refused<FormatError>(files, {"dir/added_tokens.json, token '<x>'", "an id from 0"});
  Json json = Json::parse(byte_level_json);
  json["model"]["dropout"] = 0.1;
  check_refused<FormatError>({{"tokenizer.json", json.dump()}},
                             {"dir/tokenizer.json, field model.dropout", "null or 0"});
  json["model"]["dropout"] = 0.0;
  CHECK(tokenizer_from({{"tokenizer.json", json.dump()}}).encode("hi").ids == Ids{2});
}

TEST_CASE("What transformers does in silence is said") {
  const auto warnings = [](const Texts& texts) { return tokenizer_from(texts).warnings(); };
  const auto check_one = [](const std::vector<std::string>& given, const std::vector<std::string>& parts) {
    REQUIRE(given.size() == 1);
    INFO(given[0]);
    for (const std::string& part : parts) CHECK(given[0].find(part) != std::string::npos);
  };
  const std::string bert = of_class("BertTokenizer");
  CHECK(warnings({{"tokenizer.json", word_piece_json}, {"tokenizer_config.json", bert}}).empty());
  CHECK(warnings({{"vocab.txt", word_pieces}, {"tokenizer_config.json", bert}}).empty());
  CHECK(warnings({{"vocab.txt", word_pieces}}).empty());
  CHECK(warnings({{"vocab.txt", word_pieces}, {"tokenizer_config.json", bert}, {"added_tokens.json", R"({"<x>": 9})"}})
            .empty());
  check_one(
      warnings({{"vocab.txt", word_pieces}, {"tokenizer_config.json", bert}, {"added_tokens.json", R"({"<x>": 10})"}}),
      {"dir/added_tokens.json, token '<x>' gives the token '<x>' the id 10; it gets 9 instead, as tokens that "
       "dir/vocab.txt "
       "lacks are numbered on from the number of its pieces"});
  check_one(warnings({{"vocab.txt", word_pieces + "the\n"},
                      {"tokenizer_config.json", bert},
                      {"added_tokens.json", R"({"<x>": 9})"}}),
            {"gives the token '<x>' the id 9; dir/vocab.txt gives that id to the piece 'the', so both have it"});
  check_one(
      warnings({{"vocab.txt", word_pieces}, {"tokenizer_config.json", bert}, {"added_tokens.json", R"({"dog": 20})"}}),
      {"gives the token 'dog' the id 20; it gets 7 instead, its id in dir/vocab.txt"});
  check_one(
      warnings({{"vocab.txt", "[UNK]\n[SEP]\nthe\n"}, {"tokenizer_config.json", bert}}),
      {"dir/vocab.txt: no file numbers '[CLS]', the cls_token of BertTokenizer", "it is 4, after the vocabulary"});
  check_one(warnings({{"vocab.txt", word_pieces},
                      {"tokenizer_config.json", bert},
                      {"added_tokens.json", R"({"<X>": 9, "<x>": 10})"}}),
            {"the token '<x>' (10) is never found", "normalised form '<x>'"});
  Json words = Json::parse(word_piece_json);
  words["added_tokens"] = {{{"id", 9}, {"content", "<y>"}}};
  check_one(
      warnings(
          {{"tokenizer.json", words.dump()}, {"tokenizer_config.json", bert}, {"added_tokens.json", R"({"<x>": 9})"}}),
      {"dir/added_tokens.json, token '<x>' gives the token '<x>' the id 9, dir/tokenizer.json, field added_tokens[0] "
       "gives it to '<y>'; tokenizer.json counts, and '<x>' is no token"});
  Json json = Json::parse(byte_level_json);
  json["normalizer"] = {{"type", "NFKC"}};
  check_one(warnings({{"tokenizer.json", json.dump()}, {"tokenizer_config.json", of_class("GPT2Tokenizer")}}),
            {"dir/tokenizer.json: its normalizer and pre_tokenizer (NFKC|ByteLevel) are passed over for those of "
             "GPT2Tokenizer (dir/tokenizer_config.json, field tokenizer_class), |ByteLevel"});
}

TEST_CASE("A token says where it has its number from") {
  const Tokenizer tokenizer =
      tokenizer_from({{"vocab.txt", word_pieces},
                      {"tokenizer_config.json", of_class("BertTokenizer", R"("bos_token": "<s>")")},
                      {"added_tokens.json", R"({"<x>": 9, "dog": 7})"}});
  CHECK(tokenizer.source_of(7) == "dir/vocab.txt");
  CHECK(tokenizer.source_of(9) == "dir/added_tokens.json, token '<x>'");
  CHECK(tokenizer.source_of(10) == "dir/tokenizer_config.json, field bos_token");
  CHECK(tokenizer.largest_id() == 10);
  const Tokenizer roberta =
      tokenizer_from({{"tokenizer.json", byte_level_json}, {"config.json", R"({"model_type": "roberta"})"}});
  CHECK(roberta.source_of(0) == "dir/tokenizer.json, field model.vocab");
  CHECK(roberta.source_of(roberta.token_to_id("<mask>").value()) ==
        "RobertaTokenizer (dir/config.json, field model_type)");
}
