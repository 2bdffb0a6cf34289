#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/NAME.u64: one 64-bit hash per line of text, of everything that Hugging Face `tokenizers` makes of it.

  python3 make_tokenizer_golden.py DATA_DIRECTORY

10,000 lines are taken at equal distances from the files below (lines as they stand, quotes and escapes included), so that no text needs
to be kept here. For line i the hash (FNV-1a, 64 bits, over little-endian 32-bit words) takes in, each list with its length before it:
  ids and token types of the line; ids without special tokens; ids at no more than 5 + i % 29 tokens; ids and token types of the pair
  (line i, line i + 1) at no more than 8 + i % 57 tokens; the UTF-8 bytes, one word each, of the decoded line without special tokens.

NAME_auto.u64 is the same of every fifth line by AutoTokenizer of transformers, from a directory: what the class that the directory names
makes of it.
"""
import pathlib
import struct
import sys

import tokenizers
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from transformers import AutoTokenizer

LINES = 10_000
FILES = [
    "clinc150/domain_train.tsv", "clinc150/domain_test.tsv", "ag_news/train.csv", "ag_news/test.csv", "sst2/train.tsv", "sst2/test.tsv",
    "banking77/train.csv", "banking77/test.csv", "tinyshakespeare/input.txt", "instruct/gsm8k_train_2000.jsonl",
    "instruct/gsm8k_test.jsonl", "instruct/seed_tasks.jsonl",
]
MASK = (1 << 64) - 1


def tokenizer_of(data, name):
    if name == "bert-base-uncased":
        made = BertWordPieceTokenizer(str(data / "tokenizers/bert-base-uncased/vocab.txt"))
        return Tokenizer.from_str(made.to_str())
    if name == "gpt2":
        made = ByteLevelBPETokenizer(str(data / "tokenizers/gpt2/vocab.json"), str(data / "tokenizers/gpt2/merges.txt"))
        made.add_special_tokens(["<|endoftext|>"])
        return Tokenizer.from_str(made.to_str())
    made = Tokenizer.from_file(str(data / name))
    made.no_padding()
    made.no_truncation()
    return made


TOKENIZERS = {
    "bert": "bert-base-uncased",
    "gpt2": "gpt2",
    "roberta": "tokenizers/roberta-base/tokenizer.json",
    "phi3": "tokenizers/phi-3-mini/tokenizer.json",
    "stories260k": "models/stories260K/hf/tokenizer.json",
    "tiny_bert": "models/tiny_bert_random/tokenizer.json",
}

DIRECTORIES = {
    "roberta_auto": "tokenizers/roberta-base",
    "phi3_auto": "tokenizers/phi-3-mini",
    "stories260k_auto": "models/stories260K/hf",
    "tiny_bert_auto": "models/tiny_bert_random",
}
STEP = 5


def drawn_lines(data):
    lines = []
    for name in FILES:
        parts = (data / name).read_bytes().split(b"\n")
        lines += parts[:-1] if parts[-1] == b"" else parts
    return [lines[i * len(lines) // LINES].decode() for i in range(LINES)]


def line_hash(*lists):
    value = 0xCBF29CE484222325
    for items in lists:
        for byte in struct.pack(f"<{len(items) + 1}I", len(items), *items):
            value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def main(data):
    data = pathlib.Path(data)
    out = pathlib.Path(__file__).parent / "tokenizer"
    out.mkdir(exist_ok=True)
    lines = drawn_lines(data)
    for name, source in TOKENIZERS.items():
        tokenizer = tokenizer_of(data, source)
        hashes = []
        for i, line in enumerate(lines):
            pair = lines[(i + 1) % LINES]
            whole = tokenizer.encode(line)
            plain = tokenizer.encode(line, add_special_tokens=False)
            tokenizer.enable_truncation(5 + i % 29)
            short = tokenizer.encode(line)
            tokenizer.enable_truncation(8 + i % 57)
            both = tokenizer.encode(line, pair)
            tokenizer.no_truncation()
            text = tokenizer.decode(whole.ids, skip_special_tokens=True).encode()
            hashes.append(line_hash(whole.ids, whole.type_ids, plain.ids, short.ids, both.ids, both.type_ids, list(text)))
        (out / f"{name}.u64").write_bytes(struct.pack(f"<{LINES}Q", *hashes))
    for name, source in DIRECTORIES.items():
        tokenizer = AutoTokenizer.from_pretrained(data / source)
        ids = lambda *texts, **options: tokenizer(*texts, **options)["input_ids"]
        types = lambda made: made.get("token_type_ids", [0] * len(made["input_ids"]))
        hashes = []
        for i in range(0, LINES, STEP):
            line, pair = lines[i], lines[(i + 1) % LINES]
            both = tokenizer([line], [pair], truncation=True, max_length=8 + i % 57)  # a list, as an empty second text counts there
            whole, both = tokenizer(line), {name: lists[0] for name, lists in both.items()}
            text = tokenizer.decode(whole["input_ids"], skip_special_tokens=True).encode()
            hashes.append(line_hash(whole["input_ids"], types(whole), ids(line, add_special_tokens=False),
                                    ids(line, truncation=True, max_length=5 + i % 29), both["input_ids"], types(both), list(text)))
        (out / f"{name}.u64").write_bytes(struct.pack(f"<{len(hashes)}Q", *hashes))
    print(f"tokenizers {tokenizers.__version__}: {len(TOKENIZERS)} files of {LINES} hashes")


if __name__ == "__main__":
    main(sys.argv[1])
