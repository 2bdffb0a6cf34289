#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/patterns.json: what the regular expressions of tokenizer files mean to Hugging Face `tokenizers`.

`texts`: 300 lines of every sort of character; `splits`: expressions of known tokenizers and of each construct that is read, with a behaviour
of the pre-tokenizer Split, and a hash of the pieces of every 25 texts; `classes`: of each class the number of its characters and a hash of
its ranges; `cases`: how many groups of letters are one when case is ignored, and a hash; `replacements`: the normalizer Replace; `chains`:
whole pre-tokenizers of known models in a small tokenizer, with a hash of the ids of every 25 texts.

  python3 make_pattern_golden.py        needs: tokenizers
"""
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
ALL = "".join(map(chr, CODE_POINTS))

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NOT_HAN = lambda members: members[:-1] + r"&&[^\p{Han}]]"
KIMI = (r"[\p{Han}]+|" + O200K.replace(UPPER, NOT_HAN(UPPER)).replace(LOWER, NOT_HAN(LOWER)).replace("[\\r\\n/]*", "[\\r\\n]*"))
EXPRESSIONS = [
    # Of tokenizers as their authors publish them (several split by more than one of these).
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    LLAMA3, LLAMA3.replace("{1,3}", ""), LLAMA3.replace("[\\r\\n]+|\\s+(", "[\\r\\n]|\\s+("),  # Llama 3, Qwen 2, cl100k
    LLAMA3.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}").replace("{1,3}", ""),
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",  # tiktoken
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    TEKKEN, O200K, KIMI,
    r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}",  # DeepSeek coder
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷ]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$",  # DeepSeek LLM
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",  # DeepSeek V3
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    r"[0-9][0-9][0-9]", r"[\p{P}\$\+<=>\^~\|`]+",  # Falcon
    " ?[^(\\s|[.,!?…。，、।۔،])]+",  # BLOOM: a class within a class
    r"(?=(\d{3})+(?!\d))", r"\d{1,3}(?=(\d{3})*\b)",  # digits in threes from the right
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # CLIP
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>|\*|\$|\%[0-9]{2}|[0-9])",  # SMILES
    "", ".", r"\s+", r"\S+", r"\w+|[^\w\s]+", " {2,}", "[ACDEFGHIKLMNPQRSTVWY]",
    # Constructs.
    r"(?<=\p{Ll})(?=\p{Lu})|(?<=\p{L})(?=\p{N})|_", r"(?<!\p{L})\p{N}+(?!\p{L})|(?<=\s)\S", r"(?<=a|[bc]+d|\p{Lu}{2,3})\p{Ll}",
    r"^.*$", r"\A.|.\z|^\s*|\s*$|.\Z", r"\R+|\N+", r"(?m).{7}", r"\b\w+\b|\B.\B", r"(?>\p{L}+)\d|(?>a|ab)c|\s*+\S",
    r"\p{L}+?\p{N}|\s*?\n|<.*?>", r"(?:ab?)*|(?:\p{L}\p{N}?){2,3}|(?:a|b){1,2}", r"(?:a*)*b|x{3,1}|(?:\s*)+\n|\d{2}?",
    r"[[:alpha:]]+|[[:digit:]]+|[[:punct:]]+|[[:space:]]+", r"[[:^alnum:]&&[:^space:]]+|[[:upper:]][[:lower:]]*|[[:cntrl:]]+",
    r"(?i)the|k+|[a-fj-z]+|é|σ|\p{Lu}", r"(?i)[^a-z\s]+|i", "(?i:\\b[cdjlmnst]['’]|\\bqu['’])|\\p{L}+|\\p{N}+",
    "(?x) \\p{L}+ # letters\n | \\p{N}{1,3} | [ ]+ | \\#", r"a(?i)b|c(?-i)d|e", r"\p{^L}+|\P{^N}|\p{upper case letter}",
    r"\p{Hangul}+|\p{Hiragana}+|\p{Katakana}+|\p{Han}|\p{Thai}+|\p{Arabic}+|\p{Cyrillic}+|\p{Latin}+|\p{Common}+|\p{Inherited}+",
    r"\p{Emoji_Presentation}+|\p{Extended_Pictographic}\x{FE0F}?|[^\p{ASCII}]+",
]
CLASSES = [rf"\p{{{name}}}" for name in (
    "L LC Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cn Any Assigned ASCII Alnum "
    "Alpha Blank Cntrl Digit Graph Lower Print Punct Space Upper XDigit Word Alphabetic Uppercase Lowercase White_Space Ideographic "
    "Unified_Ideograph Dash Quotation_Mark Join_Control Hex_Digit Variation_Selector Regional_Indicator Emoji Emoji_Presentation "
    "Emoji_Modifier Emoji_Modifier_Base Emoji_Component Extended_Pictographic Arabic Armenian Bengali Bopomofo Braille "
    "Canadian_Aboriginal Cherokee Common Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana "
    "Inherited Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Oriya Sinhala Tamil Telugu Thai Tibetan Yi").split()]
CLASSES += [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\h", r"\H", ".", r"\N", r"\O", r"[\w]", r"[\W]", r"[^\w]", r"\P{L}", r"\p{^L}", r"\P{^L}",
            r"[\p{L}\p{M}&&[^\p{Han}]]", r"[^\s\p{L}\p{N}]", r"[a-z&&[^aeiou]]", r"[^(\s|[.,!?])]", r"(?i:[a-z])", r"(?i:[^a-z])", r"(?i:[^\p{Lu}])",
            r"(?i:k)", r"(?i:[σµ])"]
CLASSES += [f"[[:{name}:]]" for name in "alnum alpha blank cntrl digit graph lower print punct space upper xdigit ascii word ^alpha ^punct ^word".split()]
REPLACEMENTS = [(True, " {2,}", "a b  c    d", "-"), (True, r"\s+", " a \t b ", "_"), (True, "", "ab日", "-"), (True, "x*", "axxb", "-"),
                (True, r"(?=(\d{3})+(?!\d))", "1234567 12", ","), (True, "$", "a\nb", "."), (True, "^", "a\nb\n", ">"), (True, r"\b", "a bc", "|"),
                (True, r"(?i:e)\b", "THE the", ""), (True, r"(?<=\d),(?=\d)", "1,234, 5", ""), (True, "``|''", "``q''", '"'),
                (True, r"\p{Cc}|\p{Cf}", "a\x00b\u200dc", ""), (False, "", "ab", "-"), (False, "aa", "aaaaa", "b"), (False, ".+", "a.+b", "x"),
                (False, "日本", "日本日本語", "に"), (True, "a|", "bab", "-"), (True, "", "", "-"), (True, "(?:a*b*)*c|(?:d?)+", "abbac dd", "-"), (True, "a{3,1}[ab]", "aaa aaab", "-"),
                (True, "a{2}?b", "b aab", "-"), (True, "(?:x?y?z)w", "zw yzw xzw xw", "-"), (True, "[a-c&&[^b]&&[abcx]]", "abcx", "-"),
                (True, "a(?i)b|c(?#d)", "aB C aC", "-"), (True, r"(?<=a|bc+)x|(?<!\s)y", "ax bccx x y-y", "-"), (True, r"\R", "a\r\nb\n\r", "-")]

SPLIT = lambda expression, behavior="Isolated", invert=False: {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = lambda use_regex=False: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
CHAINS = {
    "DeepSeek coder": [SPLIT(EXPRESSIONS[i]) for i in (10, 11, 12, 13)] + [DIGITS, BYTES()],
    "DeepSeek LLM": [SPLIT(EXPRESSIONS[i]) for i in (10, 15, 16, 17, 13)] + [DIGITS, BYTES()],
    "DeepSeek V3": [SPLIT(EXPRESSIONS[i]) for i in (18, 19, 20)] + [BYTES()],
    "Falcon": [{"type": "Punctuation", "behavior": "Contiguous"}, BYTES(True), {"type": "Digits", "individual_digits": False}, SPLIT(EXPRESSIONS[21])],
    "Tekken": [SPLIT(TEKKEN), BYTES()],
    "o200k": [SPLIT(O200K, "Removed", True), BYTES()],
    "BLOOM": [SPLIT(EXPRESSIONS[23]), BYTES()],
    "Refact": [SPLIT(r"\p{N}"), BYTES(True)],
}

SPACES = [9, 10, 11, 12, 13, 32, 32, 32, 32, 10, 13, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0x200B, 0xFEFF]
WORDS = """the dog It's we'LL they'Re I'M 'ſ don't Straße naïve ΣΊΣΥΦΟΣ Москва İstanbul 日本語 中文字符 한국어 ひらがな カタカナ สวัสดี مرحبا שלום हिन्दी 👩‍👩‍👧
🇩🇪 😀 ❤️ ½ Ⅷ x² ﬁne ١٢٣ 12345 1,000.5 3.14e-10 foo(bar) == <|endoftext|> </s> snake_case camelCase HTTPServer ạ́ qu'il l’été C# C++ i++ \\n {}
[] CCO[C@@H] ACGT $100 https://x.y/z?a=b … 。 、 「」 — '' `` _ K ß ẞ ǆ ǅ ᾳ""".split() + ["\r\n", "\n\n", "\t"]


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def character(random_):
    kind = random_.random()
    low, high = next(r for limit, r in ((0.4, (32, 127)), (0.6, (0, 0)), (0.7, (0xA0, 0x600)), (0.8, (0x600, 0x3100)), (0.87, (0x3000, 0xD7FF)),
                                        (0.9, (0xE000, 0x10000)), (0.97, (0x10000, 0x20000)), (1, (0x20000, 0x110000))) if kind <= limit)
    return chr(random_.randrange(low, high) if high else random_.choice(SPACES))


def text(random_):
    out = ""
    for _ in range(random_.randrange(14)):
        kind = random_.random()
        if kind < 0.45:
            out += random_.choice(WORDS)
        elif kind < 0.6:
            out += random_.choice([" ", " ", " ", "  ", "\n", " \n ", "\t"])
        elif kind < 0.7:
            out += str(random_.randrange(10 ** random_.randrange(1, 10)))
        else:
            out += "".join(character(random_) for _ in range(random_.randrange(1, 6)))
    return out


def ranges(points):
    out = []
    for p in sorted(points):
        if out and out[-1][1] == p - 1:
            out[-1][1] = p
        else:
            out.append([p, p])
    return out


def members(expression):
    found = set()
    for piece, _ in pre_tokenizers.Split(Regex(f"(?:{expression})+"), "removed", invert=True).pre_tokenize_str(ALL):
        found.update(map(ord, piece))
    return found


def case_groups():
    """Letters of which one, ignoring case, matches the others; without those that are also one with several letters."""
    cased = sorted({ord(x) for c in CODE_POINTS for s in [chr(c)] for t in (s.lower(), s.upper(), s.title(), s.casefold()) if t != s for x in s + t}
                   | {c for a, b in ((0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x10D50, 0x10D65), (0x10D70, 0x10D85)) for c in range(a, b + 1)}
                   | {0x19B, 0x264})
    apart = "\x01".join(map(chr, cased))
    groups = set()
    for c in cased:
        pieces = {p for p, _ in pre_tokenizers.Split(Regex(rf"(?i:\x{{{c:x}}})"), "removed", invert=True).pre_tokenize_str(apart)}
        if len(pieces) > 1 and not any(len(p.casefold()) > 1 for p in pieces):
            groups.add(tuple(sorted(map(ord, pieces))))
    return sorted(groups)


def main():
    random_ = random.Random(9)
    texts = [text(random_) for _ in range(300)]
    splits = []
    behaviours = ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"]
    for number, expression in enumerate(EXPRESSIONS):
        behaviour, invert = behaviours[number % 5], number % 3 == 1
        split = pre_tokenizers.Split(Regex(expression), behaviour, invert)
        hashed, hashes = b"", []
        for i, line in enumerate(texts):
            hashed += b"".join(piece.encode() + b"\0" for piece, _ in split.pre_tokenize_str(line)) + b"\n"
            if i % 25 == 24:
                hashes.append(fnv(hashed))
        splits.append({"expression": expression, "behavior": behaviour, "invert": invert, "hashes": hashes})
    classes = {}
    for expression in CLASSES:
        found = members(expression)
        classes[expression] = [len(found), fnv("".join(f"{a}-{b}," for a, b in ranges(found)).encode())]
    groups = case_groups()
    cases = [len(groups), fnv("".join("".join(f"{c}," for c in group) + "\n" for group in groups).encode())]
    replacements = [{"regex": regex, "pattern": pattern, "text": line, "content": content,
                     "result": normalizers.Replace(Regex(pattern) if regex else pattern, content).normalize_str(line)}
                    for regex, pattern, line, content in REPLACEMENTS]
    base = json.loads((pathlib.Path(__file__).parent / "public_cases/word_expressions_of_llama_models/words_cl100k/tokenizer.json").read_text())
    chains = []
    for name, steps in CHAINS.items():
        base["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        tokenizer, hashed, hashes = Tokenizer.from_str(json.dumps(base)), "", []
        for i, line in enumerate(texts):
            hashed += ",".join(map(str, tokenizer.encode(line).ids)) + "\n"
            if i % 25 == 24:
                hashes.append(fnv(hashed.encode()))
        chains.append({"name": name, "pretokenizers": steps, "hashes": hashes})
    out = {"texts": texts, "splits": splits, "classes": classes, "cases": cases, "replacements": replacements, "chains": chains}
    path = pathlib.Path(__file__).parent / "tokenizer" / "patterns.json"
    path.write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n", encoding="ascii")
    print(len(splits), "expressions,", len(classes), "classes,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
