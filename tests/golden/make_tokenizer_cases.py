#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/cases.json: small tokenizers in many variants, and what Hugging Face `tokenizers` makes of awkward texts.

`bases` are three tokenizer.json; a variant replaces some of their fields (`set`: by path, "model/unk_token") and lists `encode`: [number of
the text in `texts`, number of the pair or -1, max_tokens (0: no limit), special tokens?, ids, token types] and `decode`: [ids, skip special
tokens?, text].
"""
import copy
import json
import pathlib
import random

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

TEXT = """It's the first of many lines, isn't it? We'll see what they've done; he'd said 12,345.67 or 1,000 times that I'm not sure.
Der schöne Käse über der Straße, un café naïve à l'été, mañana y el niño. İstanbul'da ΣΊΣΥΦΟΣ και Москва. 日本語の文字列と中文字符。
한국어 문장 하나. hello hello world world the the then there other tokenization tokenizer token tokens 😀 😀 👩‍👩‍👧 ½ Ⅷ x² ﬁne
foo(bar, baz) == [1, 2, 3]; print("hello world")  # two  spaces   three
""".splitlines()
AWKWARD = [
    "", " ", "  ", "\n", " \n ", "\t\thello", "hello  world ", "  it's  WE'LL they'Re I'M 'ſ  ", "don't  'll 'x", "1234567 12 3", "x²½Ⅷ①٣",
    "naïve café e\u0301 o\u0308\u0323 İstanbul ΣΑΣ Straße", "日本語と中文。한국어 ひらがな", "ﬁ ﷺ Å \u212b \uac00 \u1100\u1161\u11a8", "👩‍👩‍👧 🇩🇪 😀❤️",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u0085g\u2028h", "a\x00b\x01c\x7fd\ufffde", "line\r\nend\r\n\r\n  next\n\n\tdone", "!?...,;:'\"(){}[]<>@#$%^&*_-+=~`|\\/",
    "<s>hello</s> <unk> [CLS]world[SEP] [MASK]", "the foo foobar foo, Foo  FOO", "▁▁ hello▁world Ġ Ċ", "<0x41><0xFF> <0xzz>", "\U0001e8d5\u1e94a\U000105c0\U0010ffff\ue000",
    "tokenizationtokenizationtokenizationtokenizationtokenizationtokenizationtokenizationtokenizationtokenizationtokenization end",
]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def bases():
    word = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    word.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    byte = Tokenizer(models.BPE())
    byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False,
                                                       initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    piece = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    piece.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_pieces = [f"<0x{b:02X}>" for b in range(256)]
    piece.train_from_iterator([t for t in TEXT if t.isascii()], trainers.BpeTrainer(
        vocab_size=256 + 160, special_tokens=["<unk>", "<s>", "</s>"] + byte_pieces, show_progress=False))
    out = {name: json.loads(t.to_str()) for name, t in (("wordpiece", word), ("bytelevel", byte), ("fallback", piece))}
    for name, base in out.items():
        base["added_tokens"] = [t for t in base["added_tokens"] if not t["content"].startswith("<0x")]
        base["model"]["merges"] = ["\t".join(m) for m in base["model"].get("merges", [])]  # packed, see unpacked()
        if name == "wordpiece":
            del base["model"]["merges"]
    template = lambda ids: {"type": "TemplateProcessing", "single": ids[0], "pair": ids[1], "special_tokens": ids[2]}
    token = lambda name, kind: {"SpecialToken": {"id": name, "type_id": kind}}
    text = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    out["wordpiece"]["post_processor"] = template((
        [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)], [token("[CLS]", 0), text("A", 0), token("[SEP]", 0), text("B", 1), token("[SEP]", 1)],
        {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}))
    out["wordpiece"]["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    out["bytelevel"]["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    out["bytelevel"]["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    out["fallback"]["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    out["fallback"]["pre_tokenizer"] = None
    out["fallback"]["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return out


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def with_bytes(*steps):
    return {"type": "Sequence", "pretokenizers": [*steps, BYTES_ONLY]}


def added(next_id, *tokens):
    out = []
    for content, flags in tokens:
        out.append({"id": next_id, "content": content, **{f: f in flags.split() for f in ("special", "single_word", "lstrip", "rstrip", "normalized")}})
        next_id += 1
    return out


def variants(base):
    for name in base:
        yield name, name, {}
    for lower in (True, False):
        for accents in (True, False, None):
            yield f"bert lower {lower} accents {accents}", "wordpiece", {"normalizer": {
                "type": "BertNormalizer", "clean_text": lower, "handle_chinese_chars": accents is not False, "strip_accents": accents, "lowercase": lower}}
    yield "bert processing", "wordpiece", {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}}
    yield "roberta processing", "bytelevel", {"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}}
    yield "sequence of processors", "bytelevel", {"post_processor": {"type": "Sequence", "processors": [
        base["bytelevel"]["post_processor"],
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 4}}, {"Sequence": {"id": "A", "type_id": 2}}],
         "pair": [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "x", "type_id": 5}}, {"Sequence": {"id": "A", "type_id": 3}}],
         "special_tokens": {"x": {"id": "x", "ids": [7, 8], "tokens": ["a", "b"]}}}]}}
    yield "no processor, no decoder", "wordpiece", {"post_processor": None, "decoder": None}
    yield "short words", "wordpiece", {"model/max_input_chars_per_word": 5, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}}
    yield "lower, nfd, strip accents", "wordpiece", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFD"}, {"type": "StripAccents"}]}, "pre_tokenizer": {"type": "Whitespace"}}
    for kind in ("Whitespace", "WhitespaceSplit"):
        yield kind, "wordpiece", {"pre_tokenizer": {"type": kind}}
    yield "delimiter", "wordpiece", {"pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": "e"}}
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        yield form, "bytelevel", {"normalizer": {"type": form}}
    yield "prefix space", "bytelevel", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    yield "ignore merges", "bytelevel", {"model/ignore_merges": True, "pre_tokenizer": with_bytes(split(LLAMA3))}
    yield "byte-level normalizer", "bytelevel", {"normalizer": {"type": "ByteLevel"}, "pre_tokenizer": None}
    for name, pattern in (("gpt2", GPT2), ("llama3", LLAMA3), ("qwen2", QWEN2), ("digits", r"\p{N}{1,3}"), ("spaces", r"\s+")):
        yield f"split {name}", "bytelevel", {"pre_tokenizer": with_bytes(split(pattern))}
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield f"split at spaces {behavior}", "bytelevel", {"pre_tokenizer": with_bytes(split(" ", behavior, kind="String"))}
        yield f"split but letters {behavior}", "bytelevel", {"pre_tokenizer": with_bytes(split(r"\p{L}+", behavior, True))}
        yield f"punctuation {behavior}", "bytelevel", {"pre_tokenizer": with_bytes({"type": "Punctuation", "behavior": behavior})}
    for individual in (True, False):
        yield f"digits {individual}", "bytelevel", {"pre_tokenizer": with_bytes({"type": "Digits", "individual_digits": individual})}
    yield "replace", "bytelevel", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": r"\n+"}, "content": "_"}, {"type": "Replace", "pattern": {"Regex": r"\."}, "content": "!"}]}}
    for scheme in ("always", "first", "never"):
        for cut in (True, False):
            yield f"metaspace {scheme} {cut}", "fallback", {
                "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut},
                "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}}
    for fuse in (True, False):
        yield f"unknown, fused {fuse}", "fallback", {"model/byte_fallback": False, "model/fuse_unk": fuse}
    yield "no unknown token", "fallback", {"model/byte_fallback": False, "model/unk_token": None}
    yield "decoders", "fallback", {"decoder": {"type": "Sequence", "decoders": [
        {"type": "ByteFallback"}, {"type": "Strip", "content": "▁", "start": 1, "stop": 0}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "_"}]}}
    yield "bpe decoder", "wordpiece", {"decoder": {"type": "BPEDecoder", "suffix": "##"}}
    yield "added to wordpiece", "wordpiece", {"added_tokens": base["wordpiece"]["added_tokens"] + added(
        len(base["wordpiece"]["model"]["vocab"]), ("foo", "single_word"), ("FOO", ""), ("Straße", "normalized"), ("文", "lstrip rstrip"), ("[X]", "special"), ("  ", "normalized"))}
    yield "added to byte level", "bytelevel", {"added_tokens": base["bytelevel"]["added_tokens"] + added(
        len(base["bytelevel"]["model"]["vocab"]), ("foo", "single_word lstrip"), ("Foo", "rstrip normalized"), (" ", "single_word"), ("tokeniz", "special"), ("tokenization", ""), ("é", "lstrip"))}
    yield "added to fallback", "fallback", {"added_tokens": base["fallback"]["added_tokens"] + added(
        len(base["fallback"]["model"]["vocab"]), ("foo", "normalized"), ("hello", "rstrip"), ("world", "lstrip rstrip single_word"), ("\n", "normalized"), ("▁", "special"))}


def unpacked(packed, changes):
    whole = copy.deepcopy(packed)
    if "merges" in whole["model"]:
        whole["model"]["merges"] = [m.split("\t") for m in whole["model"]["merges"]]
    for path, value in changes.items():
        place = whole
        *parents, last = path.split("/")
        for key in parents:
            place = place[key]
        place[last] = value
    return whole


def main():
    base = bases()
    out = []
    for name, base_name, changes in variants(base):
        tokenizer = Tokenizer.from_str(json.dumps(unpacked(base[base_name], changes)))
        random_ = random.Random(name)
        encode, decode = [], []
        for i, text in enumerate(AWKWARD):
            second = random_.randrange(len(AWKWARD)) if i % 4 == 1 else -1
            pair = AWKWARD[second] if second >= 0 else None
            special = i % 3 != 0
            least = tokenizer.num_special_tokens_to_add(pair is not None) if special else 1
            limit = least + random_.randrange(12) if i % 4 in (1, 2) else 0
            if limit:
                tokenizer.enable_truncation(limit)
            got = tokenizer.encode(text, pair, add_special_tokens=special)
            tokenizer.no_truncation()
            encode.append([i, second, limit, special, got.ids, got.type_ids])
            if i % 5 == 0 and tokenizer.encode(text).ids:
                ids = tokenizer.encode(text).ids + [random_.randrange(420) for _ in range(4)]
                decode.append([ids, i % 2 == 0, tokenizer.decode(ids, skip_special_tokens=i % 2 == 0)])
        out.append({"name": name, "base": base_name, "set": changes, "encode": encode, "decode": decode})
    path = pathlib.Path(__file__).parent / "tokenizer" / "cases.json"
    lines = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in out)
    packed = json.dumps(base, ensure_ascii=False, separators=(",", ":"))
    texts = json.dumps(AWKWARD, ensure_ascii=False, separators=(",", ":"))
    path.write_text(f'{{"texts":{texts},\n"bases":{packed},\n"variants":[\n{lines}\n]}}\n', encoding="utf-8")
    print(len(out), "variants,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
