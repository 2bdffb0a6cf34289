#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes include/fedlora/data/tokenizer/unicode_exceptions.hpp.

The `tokenizers` package takes its character classes from several sources, each frozen at its own version of Unicode (8 for BERT's
punctuation and accents, 12 for normalisation forms, 16 or later for regular expressions and lower-casing). We take ours from
utf8proc. This script asks both about every code point and writes down where they differ.

  python3 make_unicode_exceptions.py OUTPUT.hpp        needs: tokenizers, libutf8proc.so.2
"""
import ctypes
import sys

import tokenizers
from tokenizers import normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]

library = ctypes.CDLL("libutf8proc.so.2")
library.utf8proc_category_string.restype = ctypes.c_char_p
library.utf8proc_unicode_version.restype = ctypes.c_char_p
CATEGORY = {c: library.utf8proc_category_string(c).decode() for c in CODE_POINTS}


def decompose(code_point, compatibility):
    buffer, boundary = (ctypes.c_int32 * 64)(), ctypes.c_int(0)
    options = (1 << 4) | ((1 << 2) if compatibility else 0)  # UTF8PROC_DECOMPOSE, UTF8PROC_COMPAT
    n = library.utf8proc_decompose_char(code_point, buffer, 64, options, ctypes.byref(boundary))
    return "".join(map(chr, buffer[:n]))


def combining(code_point):
    """Is the canonical combining class other than 0? utf8proc reorders such a mark before or after one of these two."""
    def normal(text):
        out = ctypes.POINTER(ctypes.c_uint8)()
        raw = text.encode()
        n = library.utf8proc_map(raw, ctypes.c_ssize_t(len(raw)), ctypes.byref(out), (1 << 4))
        return ctypes.string_at(out, n).decode()
    return any(normal(t) != t for t in ("a" + chr(code_point) + "\u0334", "a\u0345" + chr(code_point)))


def ranges(points):
    out = []
    for p in sorted(points):
        if out and out[-1][1] == p - 1:
            out[-1][1] = p
        else:
            out.append([p, p])
    return out


def pieces(pre_tokenizer, before, after):
    return {c: len(pre_tokenizer.pre_tokenize_str(before + chr(c) + after)) for c in CODE_POINTS}


def by_category(*prefixes):
    return {c for c in CODE_POINTS if CATEGORY[c].startswith(prefixes)}


def reference_sets():
    bert = lambda **flags: normalizers.BertNormalizer(**{"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False, **flags})
    clean = bert(clean_text=True)
    control = {c for c in CODE_POINTS if clean.normalize_str(chr(c)) == ""} - {0, 0xFFFD}
    accents = bert(strip_accents=True)
    nonspacing = {c for c in CODE_POINTS if accents.normalize_str("a" + chr(c) + "b") == "ab"}
    marks = {c for c in CODE_POINTS if normalizers.StripAccents().normalize_str(chr(c)) == ""}
    punctuation = {c for c, n in pieces(pre_tokenizers.Punctuation(), "a", "b").items() if n == 3}
    numeric = {c for c, n in pieces(pre_tokenizers.Digits(), "a", "b").items() if n == 3}
    word = {c for c, n in pieces(pre_tokenizers.Whitespace(), "a", "b").items() if n == 1}
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    lower = normalizers.Lowercase()
    ascii_punctuation = {c for c in range(0x21, 0x7F) if not chr(c).isalnum()}
    sets = {
        "control": (control, by_category("Cc", "Cf", "Co") - {9, 10, 13}),
        "nonspacing": (nonspacing, by_category("Mn")),
        "mark": (marks, by_category("M")),
        "punctuation": (punctuation, by_category("P") | ascii_punctuation),
        "numeric": (numeric, by_category("N")),
        "word": (word, by_category("L", "M", "Nd", "Nl", "Pc")),
    }
    fixed = {c for c in CODE_POINTS if (decompose(c, False) != chr(c) and nfd.normalize_str(chr(c)) == chr(c))}
    fixed_compatibility = {c for c in CODE_POINTS if decompose(c, True) != chr(c) and nfkd.normalize_str(chr(c)) == chr(c)}
    for c in CODE_POINTS:
        assert c in fixed or nfd.normalize_str(chr(c)) == decompose(c, False), hex(c)
        assert c in fixed_compatibility or nfkd.normalize_str(chr(c)) == decompose(c, True), hex(c)
    starters = {c for c in by_category("M") if combining(c) and all(nfd.normalize_str(t) == t for t in ("a" + chr(c) + "\u0334", "a\u0345" + chr(c)))}
    lowered = {}
    for c in CODE_POINTS:
        to = lower.normalize_str(chr(c))
        if to != chr(library.utf8proc_tolower(c)):
            if len(to) == 1:
                lowered[c] = ord(to)
            else:
                assert c == 0x130 and to == "i\u0307"  # handled in code
    return sets, fixed | fixed_compatibility, starters, lowered


def table(name, comment, points):
    out = [f"/// {comment}", f"inline constexpr CodePointRange {name}[] = {{"]
    line = "   "
    for a, b in ranges(points):
        item = f" {{0x{a:x}, 0x{b:x}}},"
        if len(line) + len(item) > 120:
            out.append(line)
            line = "   "
        line += item
    return out + [line, "};", ""]


def main(path):
    sets, fixed, starters, lowered = reference_sets()
    version = library.utf8proc_unicode_version().decode()
    out = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// Where Hugging Face tokenizers {tokenizers.__version__} and utf8proc (Unicode {version}) put a character into different classes.",
        "// Written by tests/golden/make_unicode_exceptions.py.",
        "#pragma once",
        "",
        "#include <cstdint>",
        "",
        "namespace fedlora::detail {",
        "",
        "/// Code points first to last, both included.",
        "struct CodePointRange {",
        "  std::uint32_t first, last;",
        "};",
        "",
        "/// A run of code points whose lower case lies `offset` further on.",
        "struct LowerCaseRange {",
        "  std::uint32_t first, last;",
        "  std::int32_t offset;",
        "};",
        "",
        "// clang-format off",
    ]
    for name, (reference, ours) in sets.items():
        for suffix, points, verb in (("added", reference - ours, "is"), ("removed", ours - reference, "is not")):
            if points:
                out += table(f"{name}_{suffix}", f"The reference says it {verb}: {name}.", points)
    out += table("never_decomposed", "Newer than the reference's normalisation tables: left as they are.", fixed)
    out += table("treated_as_starters", "Combining marks newer than the reference's normalisation tables: combining class 0.", starters)
    out += ["/// Lower case that utf8proc does not know.", "inline constexpr LowerCaseRange lower_case_added[] = {"]
    runs = []
    for c in sorted(lowered):
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == lowered[c] - c:
            runs[-1][1] = c
        else:
            runs.append([c, c, lowered[c] - c])
    line = "   "
    for a, b, offset in runs:
        item = f" {{0x{a:x}, 0x{b:x}, {offset}}},"
        if len(line) + len(item) > 120:
            out.append(line)
            line = "   "
        line += item
    out += [line, "};", "// clang-format on", "", "}  // namespace fedlora::detail", ""]
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(out))


if __name__ == "__main__":
    main(sys.argv[1])
