// SPDX-License-Identifier: Apache-2.0
// Regular expressions of tokenizer files: equal to Hugging Face tokenizers (golden/make_pattern_golden.py), or refused
// by name; and bounded work, whatever an expression says.
#include "fedlora/data/tokenizer/pattern.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/data/tokenizer/pre_tokenizer.hpp"
#include "fedlora/io/json.hpp"
#include "support.hpp"

namespace {

using namespace fedlora;
using detail::Pattern;
using Strings = std::vector<std::string>;

Strings pattern_parts(const Pattern& pattern, std::string_view text) {
  detail::PatternScratch scratch;
  Strings out;
  for (const auto& part : pattern.find(text, scratch)) out.emplace_back(text.substr(part.begin, part.end - part.begin));
  return out;
}
Strings pattern_parts(std::string_view expression, std::string_view text) {
  return pattern_parts(Pattern::regex(expression), text);
}

/// FNV-1a, as the golden script computes it.
struct PatternHash {
  std::uint64_t value = 0xcbf29ce484222325u;
  void add(std::string_view bytes) {
    for (const char c : bytes) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  std::string text() const {
    std::string out;
    for (int shift = 60; shift >= 0; shift -= 4) out.push_back("0123456789abcdef"[value >> shift & 15]);
    return out;
  }
};

Json pattern_golden() {
  return Json::parse(tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/tokenizer/patterns.json"));
}

std::string refused_pattern(std::string_view expression) {
  return tests::message_of<FormatError>([&] { Pattern::regex(expression, "file, field x"); });
}

}  // namespace

TEST_CASE("Texts are cut by the expressions of known models as Hugging Face cuts them") {
  const Json golden = pattern_golden();
  const Json& texts = golden["texts"];
  static constexpr const char* behaviours[] = {"removed", "isolated", "merged_with_previous", "merged_with_next",
                                               "contiguous"};
  std::size_t cut = 0;
  for (const Json& entry : golden["splits"]) {
    const std::string expression = entry["expression"];
    CAPTURE(expression);
    const auto behaviour =
        std::find(std::begin(behaviours), std::end(behaviours), entry["behavior"].get<std::string>()) - behaviours;
    const detail::PreTokenizer split = detail::PatternSplit{
        Pattern::regex(expression), static_cast<detail::SplitBehavior>(behaviour), entry["invert"].get<bool>()};
    PatternHash hash;
    std::size_t done = 0;
    for (const std::string text : texts) {
      detail::PieceText pieces{text, {{0, text.size(), -1, true}}};
      if (text.empty()) pieces.pieces.clear();
      detail::pre_tokenize(split, pieces);
      for (const auto& piece : pieces.pieces) {
        hash.add(pieces.view(piece));
        hash.add(std::string_view("\0", 1));
      }
      hash.add("\n");
      if (++done % 25 != 0) continue;
      CAPTURE(done);  // the texts before this one
      CHECK(hash.text() == entry["hashes"][done / 25 - 1]);
      ++cut;
    }
  }
  CHECK(cut > 500);
}

TEST_CASE("Classes hold the characters that they hold for Hugging Face") {
  const detail::CharacterSet surrogates(0xD800, 0xDFFF);
  std::size_t classes = 0;
  const Json golden = pattern_golden();
  for (const auto& entry : golden["classes"].items()) {
    const std::string expression = entry.key();
    const Json& expected = entry.value();
    CAPTURE(expression);
    const auto read = detail::ExpressionReader::read(expression, "test");
    REQUIRE(read.sets.size() == 1);
    PatternHash hash;
    std::uint64_t members = 0;
    const detail::CharacterSet set = read.sets[0] & ~surrogates;
    for (const auto& range : set.ranges()) {
      hash.add(std::to_string(range.first) + "-" + std::to_string(range.last) + ",");
      members += range.last - range.first + 1;
    }
    CHECK(members == expected[0].get<std::uint64_t>());
    CHECK(hash.text() == expected[1].get<std::string>());
    ++classes;
  }
  CHECK(classes > 100);
}

TEST_CASE("The same letters are one when case is ignored") {
  const auto& folding = detail::case_folding();
  const auto has_several = [&](char32_t c) {
    return std::binary_search(folding.expanding.begin(), folding.expanding.end(), c);
  };
  std::vector<std::vector<std::uint32_t>> groups;
  for (std::size_t i = 0; i < folding.equals.size();) {
    std::vector<std::uint32_t> group;
    bool several = false;
    for (const char32_t folded = folding.equals[i].first; i < folding.equals.size(); ++i) {
      if (folding.equals[i].first != folded) break;
      group.push_back(folding.equals[i].second);
      several = several || has_several(group.back());
    }
    if (!several) groups.push_back(group);  // the others are refused
  }
  std::sort(groups.begin(), groups.end());
  PatternHash hash;
  for (const auto& group : groups) {
    for (const std::uint32_t c : group) hash.add(std::to_string(c) + ",");
    hash.add("\n");
  }
  const Json golden = pattern_golden()["cases"];
  CHECK(groups.size() == golden[0].get<std::size_t>());
  CHECK(hash.text() == golden[1].get<std::string>());
  CHECK(pattern_parts("(?i:'s|'t|k)", "'S'ſ'TK") == Strings{"'S", "'ſ", "'T", "K"});
  CHECK(pattern_parts("(?i)[a-z]+", "Kſı") == Strings{"Kſ", "ı"});
  CHECK(pattern_parts("(?i)[^a]", "AaB") == Strings{"Aa", "B"});
  CHECK(pattern_parts(R"((?i)\p{Lu}a(?-i)b)", "xAaBAab") == Strings{"xAaB", "Aab"});
}

TEST_CASE("Matches are replaced as Hugging Face replaces them, empty ones too") {
  const Json golden = pattern_golden();
  for (const Json& entry : golden["replacements"]) {
    CAPTURE(entry.dump());
    const std::string text = entry["pattern"];
    const Pattern pattern = entry["regex"].get<bool>() ? Pattern::regex(text) : Pattern::literal(text);
    CHECK(pattern.replace(entry["text"].get<std::string>(), entry["content"].get<std::string>()) ==
          entry["result"].get<std::string>());
  }
}

TEST_CASE("What an expression means") {
  const auto marked = [](std::string_view expression, std::string_view text) {
    detail::PatternScratch scratch;
    std::string out;
    for (const auto& part : Pattern::regex(expression).find(text, scratch)) {
      const std::string piece(text.substr(part.begin, part.end - part.begin));
      out += part.matched ? "<" + piece + ">" : piece;
    }
    return out;
  };
  CHECK(marked("", "日b") == "<>日<>b<>");
  CHECK(marked("", "") == "");
  CHECK(marked("a|ab", "abab") == "<a>b<a>b");  // the first way, not the longest
  CHECK(marked("(?:ab|a)b", "abb ab") == "<abb> <ab>");
  CHECK(marked("(?>ab|a)b", "abb ab") == "<abb> ab");
  CHECK(marked("(?:x?y?z)w", "zw yzw xzw xw") == "<zw> <yzw> <xzw> xw");
  CHECK(marked("(?:(?:ab)?c?d)e|(?:x?y?x)z", "de abde xz") == "<de> <abde> <xz>");
  CHECK(marked("a*+a|b", "aab") == "aa<b>");
  CHECK(marked("a+?b??", "aab") == "<a><a>b");
  CHECK(marked("a{2}|b{2,3}|c{,1}d|e{2,}", "aaa bbbb cdd eee") == "<aa>a <bbb>b <cd><d> <eee>");
  CHECK(marked("a{3,1}[ab]", "aaa aaab") == "aaa <aaab>");  // at least 1, at most 3, and none given back
  CHECK(marked("a{2}?b", "b aab") == "<b> <aab>");          // (?:a{2})?
  CHECK(marked("a{2}+b", "aab aaaab") == "<aab> <aaaab>");  // (?:a{2})+
  CHECK(marked("a{1,2}?b{1,2}", "aabb") == "<aabb>");
  CHECK(marked("a{|b{,}|c{x}", "a{ b{,} c{x}") == "<a{> <b{,}> <c{x}>");
  CHECK(marked("(?:a*b*)*c|(?:d?)+", "abbac dd") == "<abbac> <dd>");
  CHECK(marked("(?:a?)+b|(?:a+)?c", "aab aac") == "<aab> <aac>");
  CHECK(marked(R"(\d(?=\d{3}$)|\d(?!\d))", "1234") == "<1>23<4>");
  CHECK(marked(R"((?<=a|bc+)x|(?<!\s)y)", "ax bccx x y-y") == "a<x> bcc<x> x y-<y>");
  CHECK(marked("^a|b$", "a b\na\nb") == "<a> <b>\n<a>\n<b>");
  CHECK(marked("^", "a\n\n") == "<>a\n<>\n");
  CHECK(marked(R"(\Aa|b\z|c\Z)", "aabbcc\n") == "<a>abbc<c>\n");
  CHECK(marked(R"(.+|\R)", "a\r\nb\n") == "<a\r><\n><b><\n>");
  CHECK(marked(R"(\R)", "a\r\nb\n\r") == "a<\r\n>b<\n><\r>");
  CHECK(marked("(?m:.+)", "a\nb") == "<a\nb>");
  CHECK(marked("(?x) a b # a comment\n | [ ] c", "ab c") == "<ab>< c>");
  CHECK(marked("a(?i)b|c(?#d)", "aB C aC") == "<aB> C <aC>");  // options hold to the end of the group
  CHECK(marked("(?<x>a)(b)", "ab") == "<ab>");
  CHECK(marked("[a-c&&[^b]&&[abcx]]", "abcx") == "<a>b<c>x");
  CHECK(marked("[]d]|[x-]|[[:digit:]_]", "d]x-1_a") == "<d><]><x><-><1><_>a");
  CHECK(marked(R"([^(\s|[.,])]+)", "a b(c).") == "<a> <b>(<c>).");
  CHECK(marked(R"(\h\x41\x{e9}\u65e5\t\.)", "fAé日\t.") == "<fAé日\t.>");
  CHECK(marked(R"(\b\w+\b|\B.)", "ab ½²") == "<ab> <½²>");
  CHECK(marked(R"(\w|\p{Word})", "²") == "<²>");
  CHECK(marked(R"([\w]|[\p{Word}])", "²") == "²");
}

TEST_CASE("Expressions that are wrong or not read are refused with their place") {
  const std::pair<const char*, const char*> refused[] = {
      {"(a", "a ) for every ("},
      {"a)", "as many ( as )"},
      {"[a", "a ] for every ["},
      {"[]", "a class that is not empty"},
      {"*a", "something before every quantifier"},
      {"a|{2}", "something before every quantifier"},
      {"a{100001}", "at most 100000 repetitions"},
      {R"(\b+)", "no quantifier after an anchor or a look-around"},
      {"(?=a)*", "no quantifier after an anchor or a look-around"},
      {"(?:a+?)*", "no quantifier of a quantifier where one is lazy"},
      {"a*+**++*+", "at most 4 quantifiers in a row"},
      {"(?:|a)*", "no repetition of what matches nothing before something"},
      {R"((a)\1)", "no back-references"},
      {R"((?<n>a)\k<n>)", "no back-references"},
      {R"(\Ga)", "no back-references"},
      {R"(a\Kb)", "no back-references"},
      {R"(\X)", "no back-references"},
      {R"(\pL)", R"(braces after \p)"},
      {R"(\p{Klingon})", "not 'Klingon'"},
      {R"(\p{Script=Han})", "not 'Script=Han'"},
      {R"(\p{})", "not ''"},
      {R"(\p{L)", "a property that is closed by }"},
      {R"([[:letter:]])", "the name of a POSIX class"},
      {"[z-a]", "ranges that do not run backwards"},
      {R"([a-\d])", "a character at the end of a range"},
      {R"([\d-a])", R"(\- for a hyphen after a set)"},
      {R"(\xe9)", R"(\x{…} for every character above)"},
      {R"(\x{110000})", "hexadecimal digits"},
      {R"(\ud800)", "hexadecimal digits"},
      {R"(\q)", "no escape that means nothing"},
      {R"(\)", R"(something after \)"},
      {"(?i)ss", "no letters under (?i) that are also one"},
      {"(?i)ß", "no letters under (?i) that are also one"},
      {"(?i)s(?:t)", "no letters under (?i) that are also one"},
      {"(?i)[ß]", "no class under (?i)"},
      {"(?<=(?=a))b", "within a look-behind"},
      {"(?<=a++)b", "within a look-behind"},
      {R"((?<!\R)b)", "within a look-behind"},
      {"(?~a)", "the options i, m, x alone"},
      {"(?W:a)", "the options i, m, x alone"},
      {"(?(1)a)", "the options i, m, x alone"},
      {"(?P<n>a)", "the options i, m, x alone"},
      {"(*FAIL)", "no callouts"},
      {"a\xff", "UTF-8"},
  };
  for (const auto& wrong : refused) {
    const std::string expression = wrong.first, expected = wrong.second;
    CAPTURE(expression);
    const std::string message = refused_pattern(expression);
    CHECK_MESSAGE(message.starts_with("[file, field x] expected a regular expression with "), message);
    CHECK_MESSAGE(message.find(expected) != std::string::npos, message);
  }
  CHECK(refused_pattern("ab(?i)[ß]x") ==
        "[file, field x] expected a regular expression with no class under (?i) with letters that are also one with "
        "several others, like ss and ß, got 'ab(?i)[ß]x', at byte 10");
}

TEST_CASE("The work for an expression from a file is bounded") {
  const auto begin = std::chrono::steady_clock::now();
  const auto nested = [](int depth, const std::string& open, const std::string& close) {
    std::string out;
    for (int i = 0; i < depth; ++i) out += open;
    out += "a";
    for (int i = 0; i < depth; ++i) out += close;
    return out;
  };
  CHECK(refused_pattern(std::string(70000, 'a')).find("at most 65536 bytes") != std::string::npos);
  CHECK(refused_pattern(std::string(30000, 'a')).find("at most 20000 parts") != std::string::npos);
  CHECK(refused_pattern(nested(200, "(", ")")).find("groups at most 100 deep") != std::string::npos);
  CHECK(refused_pattern(nested(200, "[", "]")).find("classes at most 100 deep") != std::string::npos);
  CHECK(refused_pattern(nested(200, "(?i)", "")).find("groups at most 100 deep") != std::string::npos);
  CHECK(refused_pattern("((((ab){1000}){1000}){1000}){1000}").find("at most 20000 steps") != std::string::npos);
  CHECK(refused_pattern("((((){100000}){100000}){100000}){100000}") == "(nothing was thrown)");
  CHECK(refused_pattern("((((ab){0}){1000}){1000}){100000}") == "(nothing was thrown)");
  std::string many;
  for (char32_t c = 0x4E00; c < 0x4E00 + 2000; ++c) detail::append_utf8(many, c);
  CHECK(refused_pattern(many).find("at most 1024 kinds of characters") != std::string::npos);
  CHECK(tests::message_of<FormatError>([&] {
          Pattern::literal(many, "file");
        }).starts_with("[file] expected a string of at most 1024 different characters, got "));
  std::string classes;
  for (int i = 0; i < 8000; ++i) classes += "\\p{L}";
  const auto before_classes = std::chrono::steady_clock::now();
  CHECK(refused_pattern(classes) == "(nothing was thrown)");
  CHECK(std::chrono::steady_clock::now() - before_classes < std::chrono::seconds(10));  // found once, not 8000 times
  std::string optional;
  for (char32_t c = 0x4E00; c < 0x4E00 + 1000; ++c) {
    detail::append_utf8(optional, c);
    optional += "?";
  }
  CHECK(refused_pattern(nested(99, "(?:", ")") + optional) == "(nothing was thrown)");

  const std::string letters(40, 'a');
  for (const std::string expression : {"(a+)+$", "(a*)*b", "(?=(a|aa)+$)"}) {
    const Pattern pattern = Pattern::regex(expression, "file, field x");
    CHECK(tests::message_of<FormatError>([&] { pattern.replace(letters + "!", ""); }) ==
          "[file, field x] expected a regular expression that needs no more than 8430592 steps for a text of 41 bytes, "
          "got '" +
              expression + "'");
  }
  CHECK(Pattern::regex("(?:a+)+$").replace(letters + "!", "") == letters + "!");  // one quantifier of two
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
}

TEST_CASE("More ways than one choice holds are tried in their order") {
  std::string words;
  for (int i = 0; i < 200; ++i) words += "w" + std::to_string(1000 + i) + "|";
  CHECK(Pattern::regex(words + "w1").replace("w1000 w1062 w1063 w1064 w1150 w1199 w1200", "-") == "- - - - - - -200");
}

TEST_CASE("Long texts need no more than their length") {
  const std::string letters(200000, 'x');
  CHECK(pattern_parts(R"((?:\p{L}|\d)+)", letters + " " + letters) == Strings{letters, " ", letters});
  CHECK(pattern_parts(R"(\s*\n|\s+(?!\S)|\s+)", std::string(200000, ' ') + "x").size() == 3);
  CHECK(pattern_parts(R"(\s+$)", std::string(200000, ' ') + "x ").size() == 2);
  CHECK(pattern_parts(R"(\p{N}{2,}b|2b)", "11112b") == Strings{"11112b"});
  CHECK(pattern_parts(R"(\d{3,}b|x)", "12b1234b x") == Strings{"12b", "1234b", " ", "x"});
}
