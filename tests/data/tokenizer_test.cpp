// SPDX-License-Identifier: Apache-2.0
// The algorithms of tokenizers: UTF-8, character classes, WordPiece, byte-pair encoding, added tokens,
// lengths of pairs.
#include "fedlora/data/tokenizer.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <vector>

#include "errors.hpp"

namespace {

using namespace fedlora;
using Ids = std::vector<std::int32_t>;
using Strings = std::vector<std::string>;

Strings words_of(const detail::PreTokenizer& pre_tokenizer, std::string text) {
  detail::PieceText pieces{text, {{0, text.size(), -1, true}}};
  detail::pre_tokenize(pre_tokenizer, pieces);
  Strings out;
  for (const auto& piece : pieces.pieces) out.emplace_back(pieces.view(piece));
  return out;
}

std::string normalized(const detail::Normalizer& normalizer, std::string text) {
  bool starts = true;
  detail::normalize(normalizer, text, starts, detail::rewritten_limit(text.size()));
  return text;
}

detail::Vocabulary numbered(const Strings& pieces) {
  std::vector<std::pair<std::string, std::int32_t>> out;
  for (std::size_t i = 0; i < pieces.size(); ++i) out.emplace_back(pieces[i], static_cast<std::int32_t>(i));
  return {out, "vocabulary"};
}

TokenizerParts parts_with(std::variant<detail::WordPiece, detail::Bpe> model) {
  return {.normalizers = {}, .pre_tokenizers = {}, .model = std::move(model)};
}

}  // namespace

TEST_CASE("The first byte that is not UTF-8 is found") {
  using detail::first_invalid_utf8;
  CHECK(first_invalid_utf8("") == std::string_view::npos);
  CHECK(first_invalid_utf8("plain, é, 中, 😀, \U0010FFFF and more") == std::string_view::npos);
  const std::pair<std::string, std::size_t> wrong[] = {{"abc\xff", 3},
                                                       {"0123456789\x80", 10},   // a continuation byte alone
                                                       {"\xc0\x80", 0},          // overlong
                                                       {"a\xe0\x9f\xbf", 1},     // overlong
                                                       {"ab\xed\xa0\x80", 2},    // a surrogate
                                                       {"\xf4\x90\x80\x80", 0},  // beyond U+10FFFF
                                                       {"é\xe4\xb8", 2},         // cut short
                                                       {"\xf0\x9f\x98", 0}};
  for (const auto& [text, offset] : wrong) CHECK(first_invalid_utf8(text) == offset);
}

TEST_CASE("Broken UTF-8 is repaired part by part") {
  CHECK(detail::repaired_utf8("a\xffz") == "a\uFFFDz");
  CHECK(detail::repaired_utf8("\xf0\x9f\x98") == "\uFFFD");
  CHECK(detail::repaired_utf8("\xe4\xb8z\xe4") == "\uFFFDz\uFFFD");
  CHECK(detail::repaired_utf8("\xe0\x80\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(detail::repaired_utf8("\xed\xa0\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(detail::repaired_utf8("é") == "é");
}

TEST_CASE("BERT's normalisation") {
  const detail::BertNormalizer uncased{}, cased{true, true, false, false};
  CHECK(normalized(uncased, "H\u00e9llo\tW\u00d6RLD\x01\u200b!") == "hello world!");
  CHECK(normalized(cased, "Héllo\tWorld") == "Héllo World");
  CHECK(normalized(uncased, "a中b") == "a 中 b");
  CHECK(normalized(uncased, "İ") == "i");
  CHECK(normalized(detail::LowercaseNormalizer{}, "İΣ") == "i\u0307σ");
  CHECK(normalized(detail::StripNormalizer{}, " \u3000 a b\n") == "a b");
  CHECK(normalized(detail::StripNormalizer{true, false}, "   ") == "");
  CHECK(normalized(detail::UnicodeForm{true, true}, "ﬁ e\u0301\u0327 ½") == "fi \u0229\u0301 1\u20442");
  CHECK(normalized(detail::UnicodeForm{false, false}, "가é") == "\u1100\u1161e\u0301");
}

TEST_CASE("Pre-tokenizers cut at the right places") {
  CHECK(words_of(detail::BertPreTokenizer{}, " hey, you—there! ") == Strings{"hey", ",", "you", "—", "there", "!"});
  CHECK(words_of(detail::WhitespacePreTokenizer{}, "a_1!? b") == Strings{"a_1", "!?", "b"});
  CHECK(words_of(detail::DigitsSplit{true}, "ab12c") == Strings{"ab", "1", "2", "c"});
  CHECK(words_of(detail::DigitsSplit{false}, "ab12c") == Strings{"ab", "12", "c"});
  CHECK(words_of(detail::MetaspacePreTokenizer{}, "a  b") == Strings{"▁a", "▁", "▁b"});
  CHECK(words_of(detail::MetaspacePreTokenizer{"_", detail::PrependScheme::never, true}, "a b_c") ==
        Strings{"a", "_b", "_c"});
  CHECK(words_of(detail::ByteLevelPreTokenizer{true, true}, "é\n") == Strings{"ĠÃ©", "Ċ"});
  const auto split = [](detail::SplitBehavior behavior) {
    return words_of(detail::PatternSplit{detail::Pattern::literal("-"), behavior, false}, "The-final--countdown");
  };
  using enum detail::SplitBehavior;
  CHECK(split(removed) == Strings{"The", "final", "countdown"});
  CHECK(split(isolated) == Strings{"The", "-", "final", "-", "-", "countdown"});
  CHECK(split(merged_with_previous) == Strings{"The-", "final-", "-", "countdown"});
  CHECK(split(merged_with_next) == Strings{"The", "-final", "-", "-countdown"});
  CHECK(split(contiguous) == Strings{"The", "-", "final", "--", "countdown"});
}

TEST_CASE("WordPiece takes the longest beginning") {
  const Tokenizer tokenizer(
      parts_with(detail::WordPiece(numbered({"[UNK]", "un", "##aff", "##able", "##a", "una"}), {})));
  CHECK(tokenizer.encode("unaffable").ids == Ids{0});  // una, then nothing that begins with ff
  CHECK(tokenizer.encode("unable").ids == Ids{0});
  CHECK(tokenizer.encode("unaaff").ids == Ids{5, 2});
  CHECK(tokenizer.encode("una").ids == Ids{5});
  CHECK(tokenizer.encode("").ids.empty());
  CHECK(tokenizer.encode("un" + std::string(98, 'a')).ids.size() ==
        98);  // una and 97 times ##a: exactly 100 characters
  CHECK(tokenizer.encode("un" + std::string(99, 'a')).ids == Ids{0});
}

TEST_CASE("Byte-pair encoding merges by rank, then from the left") {
  const detail::Bpe model(numbered({"a", "b", "c", "ab", "bc", "abc", "aa"}),
                          {{"b", "c"}, {"a", "b"}, {"a", "bc"}, {"a", "a"}}, {});
  const Tokenizer tokenizer(parts_with(model));
  CHECK(tokenizer.encode("abc").ids == Ids{5});
  CHECK(tokenizer.encode("ab").ids == Ids{3});
  CHECK(tokenizer.encode("aaa").ids == Ids{6, 0});
  CHECK(tokenizer.encode("axb").ids == Ids{3});  // nothing stands for x, so its neighbours meet
  CHECK_THROWS_AS(detail::Bpe(numbered({"a"}), {{"a", "z"}}, {}), FormatError);
}

TEST_CASE("Unknown characters: bytes, one token, one each") {
  Strings pieces = {"<unk>", "a"};
  detail::Bpe::Options options{.unknown = "<unk>"};
  const auto encode = [&](const char* text) {
    return Tokenizer(parts_with(detail::Bpe(numbered(pieces), {}, options))).encode(text).ids;
  };
  CHECK(encode("axya") == Ids{1, 0, 0, 1});
  options.fuse_unknown = true;
  CHECK(encode("axya") == Ids{1, 0, 1});
  options.byte_fallback = true;
  CHECK(encode("aéa") == Ids{1, 0, 1});  // no byte pieces yet
  pieces.insert(pieces.end(), {"<0xC3>", "<0xA9>"});
  CHECK(encode("aéa") == Ids{1, 2, 3, 1});
  options.unknown = "missing";
  CHECK(encode("aé") == Ids{1, 2, 3});
  CHECK_THROWS_AS(encode("ab"), FormatError);
}

TEST_CASE("A word of a million characters takes seconds at most") {
  Strings pieces = {"a", "b"};
  detail::Bpe::Merges merges;
  for (std::size_t length = 1; length <= 512; length *= 2) {
    merges.emplace_back(std::string(length, 'a'), std::string(length, 'a'));
    pieces.push_back(std::string(2 * length, 'a'));
  }
  const Tokenizer tokenizer(parts_with(detail::Bpe(numbered(pieces), merges, {})));
  const auto start = std::chrono::steady_clock::now();
  CHECK(tokenizer.encode(std::string(1'000'000, 'a')).ids.size() == 1'000'000 / 1024 + 2);  // 576 left over: 512 and 64
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

TEST_CASE("Added tokens: the longest, and their flags") {
  const auto with = [](std::vector<AddedToken> tokens, const char* text) {
    TokenizerParts parts = parts_with(detail::WordPiece(numbered({"[UNK]", "x", "##x"}), {}));
    parts.pre_tokenizers = {detail::WhitespaceSplit{}};
    parts.normalizers = {detail::LowercaseNormalizer{}};
    parts.add(tokens, "test");
    return Tokenizer(std::move(parts)).encode(text).ids;
  };
  CHECK(with({{.content = "<a>"}, {.content = "<a><b>"}}, "x<a><b>x<a>") == Ids{1, 4, 1, 3});
  CHECK(with({{.content = "go"}}, "xgo") == Ids{1, 3});
  CHECK(with({{.content = "go", .single_word = true}}, "xgo gox go") == Ids{0, 0, 3});
  CHECK(with({{.content = "GO", .normalized = true}}, "go Go") == Ids{3, 3});
  CHECK(with({{.content = "GO"}}, "go GO") == Ids{0, 3});
  // Spaces that a token takes are not seen by the model: here "x" on its own stands for each piece of text.
  CHECK(with({{.content = "go", .lstrip = true, .rstrip = true}}, "x  go  x") == Ids{1, 3, 1});
  CHECK(with({{.content = " ", .lstrip = true, .rstrip = true}}, "x   x") == Ids{1, 3, 1});
  CHECK(with({{.content = "go", .rstrip = true}, {.content = " "}}, "go  x") ==
        Ids{3, 4, 4, 1});                                               // as the reference has it
  CHECK(with({{.content = "x", .special = true}}, "xx") == Ids{1, 1});  // it keeps its number in the vocabulary
}

TEST_CASE("Added tokens are numbered as Hugging Face's tokenizers numbers them, call by call") {
  const detail::Vocabulary vocabulary({{"[UNK]", 0}, {"a", 10}, {"b", 7}, {"c", 3}}, "vocabulary");
  const auto ids = [&](const std::vector<std::vector<AddedToken>>& calls, const Strings& tokens) {
    detail::AddedTokens added;
    for (const auto& call : calls) added.add(call, vocabulary, {}, "test");
    Ids out;
    for (const std::string& token : tokens) out.push_back(added.find(token));
    return out;
  };
  CHECK(ids({{{.content = "z"}, {.content = "a"}, {.content = "y"}}}, {"z", "a", "y"}) == Ids{4, 10, 5});
  CHECK(ids({{{.content = "a"}}, {{.content = "z"}, {.content = "y"}}}, {"z", "y"}) == Ids{11, 12});
  CHECK(ids({{{.content = "z"}}, {{.content = "z", .lstrip = true}, {.content = ""}, {.content = "y"}}}, {"z", "y"}) ==
        Ids{4, 5});
  const detail::Vocabulary largest({{"[UNK]", 0}, {"a", 2147483647}}, "vocabulary");
  detail::AddedTokens added;
  added.add({{.content = "a"}}, largest, {}, "test");
  CHECK_THROWS_WITH_AS(added.add({{.content = "z"}}, largest, {}, "test"),
                       "[test] expected ids up to 2147483647, got 'z' beyond them", FormatError);
}

TEST_CASE("A token that is added again has the later flags, stays special, and keeps the file that named it first") {
  TokenizerParts parts = parts_with(detail::WordPiece(numbered({"[UNK]", "x", "##x"}), {}));
  parts.normalizers = {detail::LowercaseNormalizer{}};
  parts.pre_tokenizers = {detail::WhitespaceSplit{}};
  parts.add({{.content = "GO", .special = true, .normalized = true, .source = "first"}}, "test");
  TokenizerParts again = parts;
  again.add({{.content = "GO", .lstrip = true, .source = "second"}}, "test");
  const Tokenizer once(std::move(parts)), twice(std::move(again));
  CHECK(once.encode("x go GO").ids == Ids{1, 3, 3});
  CHECK(twice.encode("x go GO").ids == Ids{1, 0, 3});
  CHECK(once.source_of(3) == "first");
  CHECK(twice.source_of(3) == "first");
  CHECK(twice.source_of(1) == "");
  // The form that it was found in stays what decoding begins with; a special token is known by its own.
  CHECK(once.decode(Ids{1, 3}) == "x go");
  CHECK(twice.decode(Ids{1, 3}, false) == "x go");
}

TEST_CASE("Special tokens in a text may be read as text; what is too long may lose its beginning; types may all be 0") {
  TokenizerParts parts = parts_with(detail::WordPiece(numbered({"[UNK]", "x", "##x", "y", "##y"}), {}));
  parts.pre_tokenizers = {detail::WhitespaceSplit{}};
  parts.post_processors = {detail::BertProcessor{7, 8}};
  parts.add({{.content = "xy", .special = true}, {.content = "yx"}}, "test");
  TokenizerParts other = parts;
  other.added_tokens.split_special_tokens(true);
  other.cuts_beginning = true;
  other.has_token_types = false;
  const Tokenizer tokenizer(std::move(parts)), changed(std::move(other));
  CHECK(tokenizer.encode("xyx yx").ids == Ids{7, 5, 1, 6, 8});
  CHECK(changed.encode("xyx yx").ids == Ids{7, 1, 4, 2, 6, 8});  // what it is in is not looked through again
  CHECK(tokenizer.encode("x y x y", {4, true}).ids == Ids{7, 1, 3, 8});
  CHECK(changed.encode("y x x y", {4, true}).ids == Ids{7, 1, 3, 8});
  CHECK(tokenizer.encode("y x y", "y y x", {7, true}).ids == Ids{7, 3, 1, 8, 3, 3, 8});
  CHECK(changed.encode("y x y", "y y x", {7, true}).ids == Ids{7, 1, 3, 8, 3, 1, 8});
  CHECK(tokenizer.encode("x", "y", {}).token_types == Ids{0, 0, 0, 1, 1});
  CHECK(changed.encode("x", "y", {}).token_types == Ids{0, 0, 0, 0, 0});
}

TEST_CASE("A text may not grow without bounds, however often it is rewritten") {
  const auto twice = [] { return detail::ReplaceNormalizer{detail::Pattern::literal("x", "file"), "xx"}; };
  const auto with = [](TokenizerParts parts, const std::string& text) {
    const Tokenizer tokenizer(std::move(parts));
    return tests::message_of<FormatError>([&] { tokenizer.decode(tokenizer.encode(text).ids); });
  };
  const auto parts = [] { return parts_with(detail::Bpe(numbered({"x", "é"}), {}, {})); };
  TokenizerParts replaced = parts(), long_content = parts(), levels = parts(), decoded = parts(), prepended = parts();
  for (int i = 0; i < 40; ++i) {
    replaced.normalizers.push_back(twice());
    levels.pre_tokenizers.push_back(detail::ByteLevelPreTokenizer{false, false});
  }
  decoded.decoders =
      std::vector<detail::Decoder>(40, detail::ReplaceDecoder{detail::Pattern::literal("x", "file"), "xx"});
  long_content.normalizers = {
      detail::ReplaceNormalizer{detail::Pattern::literal("x", "file"), std::string(70000, 'y')}};
  prepended.normalizers = {detail::PrependNormalizer{std::string(60000, 'y')}};
  prepended.add({{.content = "<s>"}}, "file");
  CHECK(with(replaced, "x") == "[file] expected a text of at most 65600 bytes after replacing, got more");
  CHECK(with(long_content, "x") == "[file] expected a text of at most 65600 bytes after replacing, got more");
  CHECK(with(levels, "é") == "[text] expected at most 65664 bytes when the tokenizer has rewritten it, got 131072");
  CHECK(with(decoded, "x") == "[file] expected a text of at most 65600 bytes after replacing, got more");
  CHECK(
      with(prepended, "x<s>x").starts_with("[text] expected at most 65856 bytes when the tokenizer has rewritten it"));
  CHECK(with(prepended, "x") == "(nothing was thrown)");
}

TEST_CASE("Lengths of a truncated pair") {
  using detail::truncated_lengths;
  CHECK(truncated_lengths(3, 4, 7) == std::pair<Index, Index>(3, 4));
  CHECK(truncated_lengths(100, 5, 17) == std::pair<Index, Index>(12, 5));
  CHECK(truncated_lengths(5, 100, 17) == std::pair<Index, Index>(5, 12));
  CHECK(truncated_lengths(100, 50, 17) == std::pair<Index, Index>(9, 8));
  CHECK(truncated_lengths(50, 100, 17) == std::pair<Index, Index>(8, 9));
  CHECK(truncated_lengths(100, 100, 17) == std::pair<Index, Index>(8, 9));
  CHECK(truncated_lengths(9, 9, 0) == std::pair<Index, Index>(0, 0));
}

TEST_CASE("Lengths count special tokens; too small ones and broken text are refused") {
  TokenizerParts parts = parts_with(detail::WordPiece(numbered({"[UNK]", "x", "##x"}), {}));
  parts.post_processors = {detail::BertProcessor{7, 8}};
  const Tokenizer tokenizer(std::move(parts));
  CHECK(tokenizer.encode("xxxx").ids == Ids{7, 1, 2, 2, 2, 8});
  CHECK(tokenizer.encode("xxxx", {4, true}).ids == Ids{7, 1, 2, 8});
  CHECK(tokenizer.encode("xxxx", {4, false}).ids == Ids{1, 2, 2, 2});
  CHECK(tokenizer.encode("xxxx", {2, true}).ids == Ids{7, 8});
  const Encoding pair = tokenizer.encode("xxxx", "xx", {6, true});
  CHECK(pair.ids == Ids{7, 1, 2, 8, 1, 8});
  CHECK(pair.token_types == Ids{0, 0, 0, 0, 1, 1});
  CHECK_THROWS_AS(tokenizer.encode("x", {1, true}), ConfigError);
  CHECK_THROWS_AS(tokenizer.encode("x", "x", {2, true}), ConfigError);
  CHECK_THROWS_AS(tokenizer.encode("x", {-1, false}), ConfigError);
  CHECK_THROWS_WITH_AS(tokenizer.encode("xx\xfe"), "[text, byte 2] expected valid UTF-8, got the byte 0xfe",
                       FormatError);
  CHECK_THROWS_WITH_AS(tokenizer.encode("x", "\xc3", {}), "[text pair, byte 0] expected valid UTF-8, got the byte 0xc3",
                       FormatError);
}

TEST_CASE("Ids and pieces, both ways") {
  TokenizerParts parts = parts_with(detail::WordPiece(numbered({"[UNK]", "x", "##x"}), {}));
  parts.add({{.content = "[UNK]", .special = true}, {.content = "new", .source = "a file"}}, "test");
  const Tokenizer tokenizer(std::move(parts));
  CHECK(tokenizer.vocab_size() == 4);
  CHECK(tokenizer.token_to_id("new") == 3);
  CHECK(tokenizer.token_to_id("##x") == 2);
  CHECK_FALSE(tokenizer.token_to_id("y"));
  CHECK(tokenizer.id_to_token(3) == "new");
  CHECK_FALSE(tokenizer.id_to_token(4));
  CHECK_FALSE(tokenizer.id_to_token(-1));
  CHECK(tokenizer.decode(Ids{0, 1, 99, -5, 3}) == "x new");
  CHECK(tokenizer.decode(Ids{0, 1}, false) == "[UNK] x");
}
