#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/folders.json: model directories in many variants, and what AutoTokenizer of transformers makes of texts.

A folder is one of the `bases` of cases.json, as tokenizer.json or as vocabulary files, with more `pieces`, changes by path (`set`), and the
files that lie beside it (`files`). `class` is what AutoTokenizer took; `ids` those of each of `texts`. Where more than the ids of a text may
differ, `pair` and `types` are those of PAIR, `cut` and `pair_cut` the ids of its first text and of both at no more than CUT tokens, `decoded`
the pair without special tokens and with them. `refused`: transformers does not load the folder, or does not encode the texts.
"""
import copy
import itertools
import json
import logging
import pathlib
import random
import tempfile
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import transformers
from transformers import AutoTokenizer

OUT = pathlib.Path(__file__).parent / "tokenizer"
TEXTS = ["The café NEW 日本語", "[USER]the [MASK] <mask> hello<e1>x", "tokenization<e1>s <s>hello</s> 🙂 x🙂y", "  hello  [SEP] world [CLS]  ",
         "it's n't new , NEWER !", "<|endoftext|> hello <pad>a b"]
PAIR, CUT = (1, 4), (6, 11)
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CONTENTS = ["<e1>", "[USER]", "🙂", "NEW", "É", "<x>", "hello", "[MASK]", "<mask>", "<s>", "[CLS]", "tokenization", "the", "<pad>"]


def base_of(bases, name):
    base = copy.deepcopy(bases[name])
    if "merges" in base["model"]:
        base["model"]["merges"] = [m.split("\t") for m in base["model"]["merges"]]
    return base


def files_of(bases, folder):
    base = base_of(bases, folder["base"])
    vocab = base["model"]["vocab"]
    for piece in folder.get("pieces", []):
        vocab.setdefault(piece, len(vocab))
    for path, value in folder.get("set", {}).items():
        place, parts = base, path.split("/")
        for part in parts[:-1]:
            place = place[part]
        place[parts[-1]] = value
    files = {name: json.dumps(value) for name, value in folder["files"].items()}
    if folder["form"] == "json":
        files["tokenizer.json"] = json.dumps(base)
    elif folder["base"] == "wordpiece":
        files["vocab.txt"] = "".join(piece + "\n" for piece in sorted(vocab, key=vocab.get))
    else:
        files["vocab.json"] = json.dumps(vocab)
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in base["model"]["merges"])
    return files


def folder(base, config, form="json", model_type=None, pieces=(), changes=None, **files):
    beside = {name.replace("__", ".") if "__" in name else name + ".json": value for name, value in files.items()}
    if config is not None:
        beside["tokenizer_config.json"] = config
    if model_type is not None:
        beside["config.json"] = {"model_type": model_type} if isinstance(model_type, str) else model_type
    made = {"base": base, "form": form, "files": beside}
    if pieces:
        made["pieces"] = list(pieces)
    if changes:
        made["set"] = changes
    return made


def token(content, flags="", typed=True):
    made = {"content": content, **{f: f in flags.split() for f in FLAGS if f in flags.split() or f == "normalized"}}
    return {**made, "__type": "AddedToken"} if typed else made


def decoder(*tokens):
    return {str(i): token(content, flags, False) for i, content, flags in tokens}


BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
DIGITS = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
ROBERTA = ("<pad>", "<mask>", "<|endoftext|>")


def settings():
    """What tokenizer_config.json says beside a tokenizer.json that says otherwise, class by class."""
    absent = object()
    for name, lower, accents, chinese in itertools.product(
            ("BertTokenizer", "DistilBertTokenizerFast"), (True, False, absent), (True, False, None, absent), (True, False, absent)):
        if name != "BertTokenizer" and (accents is None or chinese is True):
            continue
        chosen = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
        config = {"tokenizer_class": name, **{k: v for k, v in chosen.items() if v is not absent}}
        opposite = {**BERT, "lowercase": lower is False, "handle_chinese_chars": chinese is False}
        yield folder("wordpiece", config, changes={"normalizer": opposite}, pieces=["The", "NEW", "caf", "##é"])
    for name in ("ElectraTokenizer", "MobileBertTokenizerFast", "LxmertTokenizer", "MPNetTokenizer", "FooTokenizer", "PreTrainedTokenizerFast"):
        yield folder("wordpiece", {"tokenizer_class": name, "do_lower_case": False}, pieces=["The", "NEW"])
        yield folder("wordpiece", {"tokenizer_class": name, "do_lower_case": False}, form="files", pieces=["The", "NEW"])
    for name, prefix, other in itertools.product(
            ("RobertaTokenizer", "BartTokenizerFast", "LongformerTokenizer", "GPT2Tokenizer", "DebertaTokenizer", "GPTNeoXTokenizerFast",
             "Qwen2Tokenizer", "PreTrainedTokenizerFast"), (True, False, absent), (True, False)):
        config = {"tokenizer_class": name, **({} if prefix is absent else {"add_prefix_space": prefix})}
        if other:
            yield folder("bytelevel", config, pieces=ROBERTA, changes={"pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": prefix is not True, "trim_offsets": True, "use_regex": True}})
        else:
            yield folder("bytelevel", config, form="files", pieces=ROBERTA)
    yield folder("fallback", {"tokenizer_class": "GemmaTokenizer", "add_prefix_space": False, "legacy": False})
    for name, prefix, legacy in itertools.product(("LlamaTokenizer",), (True, False, None, absent), (True, False, absent)):
        chosen = {"add_prefix_space": prefix, "legacy": legacy}
        yield folder("fallback", {"tokenizer_class": name, **{k: v for k, v in chosen.items() if v is not absent}})


def classes():
    """Which class counts: of tokenizer_config.json, of config.json, of the model's type; and what a class drops of tokenizer.json."""
    for model_type in ("bert", "distilbert", "electra", "mpnet", "nomic_bert", "llama", "modernbert", "unheard-of", "xlm-roberta-xl"):
        yield folder("wordpiece", None, model_type=model_type, changes={"normalizer": None})
        yield folder("wordpiece", None, form="files", model_type=model_type)
    for model_type in ("roberta", "bart", "longformer", "gpt2", "deberta", "gpt_neox", "qwen2", "llama", "mistral"):
        yield folder("bytelevel", None, model_type=model_type, pieces=ROBERTA, changes={"pre_tokenizer": DIGITS})
        yield folder("bytelevel", None, form="files", model_type=model_type, pieces=ROBERTA)
    for model_type, name in (("llama", "LlamaTokenizer"), ("phi3", "LlamaTokenizer"), ("mistral", "LlamaTokenizerFast"), ("gemma", "PreTrainedTokenizerFast"),
                             ("llama", "Phi3Tokenizer"), ("gemma2", None)):
        yield folder("fallback", {"tokenizer_class": name} if name else None, model_type=model_type)
    for model_type, name in (("llama", "LlamaTokenizer"), ("llama", "GPT2Tokenizer"), ("granite", "GPT2Tokenizer"), ("qwen2", "LlamaTokenizerFast"),
                             ("qwen2", "PreTrainedTokenizerFast"), ("llama", "BloomTokenizerFast"), ("llama", "PreTrainedTokenizer"), ("bert", "RobertaTokenizer")):
        yield folder("bytelevel", {"tokenizer_class": name}, model_type=model_type, pieces=ROBERTA, changes={"pre_tokenizer": DIGITS})
    yield folder("wordpiece", None, model_type={"model_type": "llama", "tokenizer_class": "BertTokenizerFast"}, changes={"normalizer": None})
    yield folder("wordpiece", {"tokenizer_class": "PreTrainedTokenizerFast"}, model_type={"model_type": "unheard-of", "tokenizer_class": "BertTokenizer"},
                 changes={"normalizer": None})
    yield folder("wordpiece", {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, changes={"normalizer": None})
    yield folder("wordpiece", {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, model_type="unheard-of")
    yield folder("wordpiece", {"do_lower_case": False}, pieces=["The"])
    yield folder("bytelevel", {"tokenizer_class": "GPT2Tokenizer"}, changes={"model/ignore_merges": True, "normalizer": {"type": "NFKC"}})


def tokens():
    """Tokens beside the vocabulary, from each of the files, beside each kind of vocabulary."""
    for base, name, pieces in (("wordpiece", "BertTokenizer", ()), ("bytelevel", "RobertaTokenizer", ROBERTA), ("bytelevel", "GPT2Tokenizer", ROBERTA),
                               ("bytelevel", "Qwen2Tokenizer", ROBERTA), ("wordpiece", "MPNetTokenizer", ()), ("fallback", "LlamaTokenizer", ()),
                               ("bytelevel", "PreTrainedTokenizerFast", ROBERTA)):
        for form in ("json", "files"):
            if form == "files" and name in ("LlamaTokenizer", "PreTrainedTokenizerFast"):
                continue
            next_id = {"wordpiece": 300, "bytelevel": 400, "fallback": 416}[base] + len(pieces)
            make = lambda config=None, **files: folder(base, {"tokenizer_class": name, **(config or {})}, form=form, pieces=pieces, **files)
            added = {"<e1>": next_id, "[USER]": next_id + 1, "🙂": next_id + 2}
            yield make(added_tokens=added)
            yield make(added_tokens=added, special_tokens_map={"cls_token": "<e1>", "additional_special_tokens": ["[USER]"]})
            yield make({"additional_special_tokens": ["[USER]"]}, added_tokens=added)
            yield make({"extra_special_tokens": {"user_token": "[USER]"}}, added_tokens=added)
            yield make(special_tokens_map={"mask_token": token("<mask>", "lstrip", False), "pad_token": token("[USER]", "rstrip", False)})
            yield make({"added_tokens_decoder": decoder((next_id, "<e1>", "special lstrip"), (next_id + 1, "[USER]", "rstrip normalized"), (next_id + 2, "NEW", "normalized"))},
                       added_tokens={"hello": next_id}, special_tokens_map={"cls_token": "hello"})
            yield make({"added_tokens_decoder": decoder((next_id + 5, "[USER]", "special")), "additional_special_tokens": ["[USER]", "<x>", token("🙂", "single_word")]})
            yield make({"added_tokens_decoder": {}, "image_token": "<e1>", "pad_token": None})
            yield make({"added_tokens_decoder": decoder((0, "hello", "special rstrip"), (next_id, "<e1>", "special")), "split_special_tokens": True})
            yield make({"mask_token": token("hello", "lstrip special"), "bos_token": token("<e1>", "normalized")})
            yield make({"extra_special_tokens": ["<x>", "[USER]"], "additional_special_tokens": ["🙂"]})


def lengths():
    """Which end is cut, token types, bos and eos, spaces of decoded text."""
    for base, name in (("wordpiece", "BertTokenizer"), ("wordpiece", "PreTrainedTokenizerFast"), ("bytelevel", "RobertaTokenizer"), ("bytelevel", "GPT2Tokenizer")):
        for config in ({"truncation_side": "left"}, {"model_input_names": ["input_ids", "token_type_ids"]}, {"model_input_names": ["input_ids"]},
                       {"clean_up_tokenization_spaces": True}, {"add_bos_token": True, "add_eos_token": True}, {"model_max_length": 5, "padding_side": "left"}):
            yield folder(base, {"tokenizer_class": name, **config}, pieces=ROBERTA)
            yield folder(base, {"tokenizer_class": name, **config}, form="files", pieces=ROBERTA)
        left = {"direction": "Left", "max_length": 100, "strategy": "LongestFirst", "stride": 0}
        padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<e1>"}
        yield folder(base, {"tokenizer_class": name}, changes={"truncation": left, "padding": padding})


def at_random(seed):
    draw = random.Random(seed)
    base = draw.choice(["wordpiece", "bytelevel", "fallback"])
    name = draw.choice({"wordpiece": ["BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "PreTrainedTokenizerFast"],
                        "bytelevel": ["RobertaTokenizer", "GPT2Tokenizer", "DebertaTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "TokenizersBackend"],
                        "fallback": ["LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"]}[base])
    made = lambda typed=True: draw.choice(CONTENTS) if draw.random() < 0.5 else token(draw.choice(CONTENTS), " ".join(f for f in FLAGS if draw.random() < 0.4), typed)
    config = {"tokenizer_class": name, **{role: made() for role in ROLES if draw.random() < 0.15}}
    if draw.random() < 0.3:
        config["additional_special_tokens"] = [made() for _ in range(draw.randrange(3))]
    next_id = {"wordpiece": 300, "bytelevel": 400, "fallback": 416}[base] + 3
    some = lambda: draw.sample(CONTENTS, draw.randrange(1, 5))
    flags = lambda: " ".join(f for f in FLAGS if draw.random() < 0.4)
    if draw.random() < 0.4:
        config["added_tokens_decoder"] = decoder(*((next_id + k, content, flags()) for k, content in enumerate(some())))
    beside = {}
    if draw.random() < 0.4:
        beside["added_tokens"] = {content: next_id + k for k, content in enumerate(some())}
    if draw.random() < 0.4:
        beside["special_tokens_map"] = {role: made(False) for role in ROLES if draw.random() < 0.3}
    form = "files" if draw.random() < 0.4 and base != "fallback" and "Backend" not in name and "PreTrained" not in name else "json"
    return folder(base, config, form=form, pieces=draw.sample(CONTENTS, 2) + ["<|endoftext|>"], **beside)


def reference(files, more):
    with tempfile.TemporaryDirectory() as directory:
        for name, text in files.items():
            (pathlib.Path(directory) / name).write_text(text, encoding="utf-8")
        try:
            made = AutoTokenizer.from_pretrained(directory)
            out = {"class": type(made).__name__, "ids": [made(text)["input_ids"] for text in TEXTS]}
            if not more:
                return out
            first, second = (TEXTS[i] for i in PAIR)
            pair = made(first, second)
            out["pair"] = pair["input_ids"]
            out["types"] = pair.get("token_type_ids", [0] * len(pair["input_ids"]))
            out["cut"] = made(first, truncation=True, max_length=CUT[0])["input_ids"]
            out["pair_cut"] = made(first, second, truncation=True, max_length=CUT[1])["input_ids"]
            out["decoded"] = [made.decode(out["pair"], skip_special_tokens=True), made.decode(out["pair"], skip_special_tokens=False)]
            return out
        except Exception as error:
            return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:90]}".replace(directory, "DIR")}


def main():
    bases = json.loads((OUT / "cases.json").read_text())["bases"]
    short, whole = [*settings(), *classes()], [*tokens(), *lengths(), *(at_random(seed) for seed in range(60))]
    folders = short + whole
    for i, made in enumerate(folders):
        made.update(reference(files_of(bases, made), i >= len(short)))
    packed = {"made_with": f"transformers {transformers.__version__}", "texts": TEXTS, "PAIR": PAIR, "CUT": CUT}
    lines = [json.dumps(f, ensure_ascii=False, separators=(",", ":")) for f in folders]
    head = json.dumps(packed, ensure_ascii=False)[:-1]
    (OUT / "folders.json").write_text(head + ', "folders": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    refused = [f for f in folders if "refused" in f]
    print(f"{len(folders)} folders, {len(refused)} of them refused")


if __name__ == "__main__":
    main()
