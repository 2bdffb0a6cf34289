#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes include/fedlora/data/tokenizer/unicode_properties.hpp: what \\p{...} and the like mean in the regular expressions of tokenizer files.

`tokenizers` matches them with Oniguruma, which has its own tables of Unicode. This script asks it about every code point: the general
categories, of which those are written down that utf8proc has otherwise, and the properties and scripts below, each as a set of categories
and the ranges by which it differs from them.

  python3 make_unicode_properties.py OUTPUT.hpp        needs: tokenizers, libutf8proc.so.2
"""
import sys

import tokenizers
from make_unicode_exceptions import CATEGORY, CODE_POINTS, library, ranges
from tokenizers import Regex, pre_tokenizers

# In the order of utf8proc_category_t.
CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co".split()
PROPERTIES = """Letter=L Cased_Letter=LC Uppercase_Letter=Lu Lowercase_Letter=Ll Titlecase_Letter=Lt Modifier_Letter=Lm Other_Letter=Lo
Mark=M Nonspacing_Mark=Mn Spacing_Mark=Mc Enclosing_Mark=Me Combining_Mark Number=N Decimal_Number=Nd Letter_Number=Nl Other_Number=No
Punctuation=P Connector_Punctuation=Pc Dash_Punctuation=Pd Open_Punctuation=Ps Close_Punctuation=Pe Initial_Punctuation=Pi
Final_Punctuation=Pf Other_Punctuation=Po Symbol=S Math_Symbol=Sm Currency_Symbol=Sc Modifier_Symbol=Sk Other_Symbol=So
Separator=Z Space_Separator=Zs Line_Separator=Zl Paragraph_Separator=Zp Other=C Control=Cc Format=Cf Private_Use=Co Unassigned=Cn
Any Assigned ASCII Digit Punct Cntrl Blank XDigit White_Space=Space WSpace
Alphabetic=Alpha Uppercase=Upper Lowercase=Lower Ideographic=Ideo Unified_Ideograph=UIdeo Dash Quotation_Mark=QMark Join_Control=Join_C
Hex_Digit=Hex Variation_Selector=VS Regional_Indicator=RI Emoji Emoji_Presentation=EPres Emoji_Modifier=EMod Emoji_Modifier_Base=EBase
Emoji_Component=EComp Extended_Pictographic=ExtPict
Arabic=Arab Armenian=Armn Bengali=Beng Bopomofo=Bopo Braille=Brai Canadian_Aboriginal=Cans Cherokee=Cher Common=Zyyy
Cyrillic=Cyrl Devanagari=Deva Ethiopic=Ethi Georgian=Geor Greek=Grek Gujarati=Gujr Gurmukhi=Guru Han=Hani Hangul=Hang Hebrew=Hebr
Hiragana=Hira Inherited=Zinh Kannada=Knda Katakana=Kana Khmer=Khmr Lao=Laoo Latin=Latn Malayalam=Mlym Mongolian=Mong
Myanmar=Mymr Oriya=Orya Sinhala=Sinh Tamil=Taml Telugu=Telu Thai Tibetan=Tibt Yi=Yiii""".split()
ALL = "".join(map(chr, CODE_POINTS))


def members(expression):
    found = set()
    for piece, _ in pre_tokenizers.Split(Regex(f"(?:{expression})+"), "removed", invert=True).pre_tokenize_str(ALL):
        found.update(map(ord, piece))
    return found


def written(name):
    return name.lower().replace("_", "")


def wrapped(items):
    out, line = [], "   "
    for item in items:
        if len(line) + len(item) + 1 > 120:
            out.append(line)
            line = "   "
        line += " " + item
    return out + [line]


def main(path):
    category = {c: name for name in CATEGORIES if name != "Cs" for c in members(rf"\p{{{name}}}")}
    assert len(category) == len(CODE_POINTS)
    by_category = {name: {c for c in CODE_POINTS if category[c] == name} for name in CATEGORIES}
    union = lambda names: set().union(*(by_category[n] for n in names))
    # What the C++ side derives from categories and Alphabetic.
    alphabetic, space = members(r"\p{Alphabetic}"), members(r"\s")
    word = alphabetic | {c for c in CODE_POINTS if category[c][0] == "M" or category[c] in ("Nd", "Pc")}
    graph = set(CODE_POINTS) - space - union(["Cc", "Cn"])
    for expression, expected in {
            r"[\w]": word, r"\w": word | {0xB2, 0xB3, 0xB9, 0xBC, 0xBD, 0xBE}, r"\d": by_category["Nd"], r"[[:alnum:]]": alphabetic | by_category["Nd"],
            r"[[:punct:]]": {c for c in CODE_POINTS if category[c][0] in "PS"}, r"\p{Punct}": {c for c in CODE_POINTS if category[c][0] == "P"},
            r"[[:graph:]]": graph, r"[[:print:]]": graph | by_category["Zs"], r"[[:blank:]]": by_category["Zs"] | {9}, r"[[:cntrl:]]": by_category["Cc"],
            r"[[:space:]]": space, r"\p{LC}": union(["Lu", "Ll", "Lt"])}.items():
        assert members(expression) == expected, expression
    out = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// Character properties in the regular expressions of Hugging Face tokenizers {tokenizers.__version__} (Oniguruma).",
        "// Written by tests/golden/make_unicode_properties.py.",
        "#pragma once",
        "",
        "#include <cstdint>",
        "#include <span>",
        "#include <string_view>",
        "",
        '#include "fedlora/core/standard.hpp"',
        '#include "fedlora/data/tokenizer/unicode_exceptions.hpp"',
        "",
        "namespace fedlora::detail {",
        "",
        "/// Code points of one general category (a utf8proc_category_t).",
        "struct CategoryRange {",
        "  std::uint32_t first, last;",
        "  std::uint8_t category;",
        "};",
        "",
        "/// A property: the characters of some general categories (bit 1 << utf8proc_category_t each), but those of `flipped` the other way",
        "/// round. Names without spaces, hyphens, underscores and capitals.",
        "struct CharacterProperty {",
        "  std::string_view name, short_name;",
        "  std::uint32_t categories;",
        "  std::span<const CodePointRange> flipped;",
        "};",
        "",
        "// clang-format off",
        f"/// General categories that utf8proc (Unicode {library.utf8proc_unicode_version().decode()}) has otherwise.",
        "inline constexpr CategoryRange category_corrections[] = {",
    ]
    corrections = []
    for c in CODE_POINTS:
        if CATEGORY[c] != category[c]:
            if corrections and corrections[-1][1] == c - 1 and corrections[-1][2] == category[c]:
                corrections[-1][1] = c
            else:
                corrections.append([c, c, category[c]])
    out += wrapped(f"{{0x{a:x}, 0x{b:x}, {CATEGORIES.index(k)}}}," for a, b, k in corrections) + ["};", ""]
    listed = []
    for entry in PROPERTIES:
        name, _, short = entry.partition("=")
        found = members(rf"\p{{{name}}}")
        assert not short or members(rf"\p{{{short}}}") == found
        mostly = [k for k in CATEGORIES if 2 * len(found & by_category[k]) > len(by_category[k])]
        kinds, flipped = min(((k, ranges(found ^ union(k))) for k in ([], mostly)), key=lambda pair: len(pair[1]))
        table = f"flipped_{name.lower()}"
        if flipped:
            out += [f"inline constexpr CodePointRange {table}[] = {{", *wrapped(f"{{0x{a:x}, 0x{b:x}}}," for a, b in flipped), "};", ""]
        listed.append(f'    {{"{written(name)}", "{written(short)}", 0x{sum(1 << CATEGORIES.index(k) for k in kinds):x}, {table if flipped else "{}"}}},')
    out += ["/// Not here, as they follow from these: Alnum, Word, Graph, Print, and [[:punct:]], which is \\p{P} with \\p{S}.",
            "inline constexpr CharacterProperty character_properties[] = {", *listed, "};", "// clang-format on", "", "}  // namespace fedlora::detail", ""]
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(out))


if __name__ == "__main__":
    main(sys.argv[1])
