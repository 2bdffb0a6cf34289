#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/format_fields.json: which fields the files of a checkpoint and of an adapter may have, as their authors' own classes
write them, for tests/hf/formats_test.cpp to look up in examples/formats.md.

`config.json` by model_type: PreTrainedConfig.to_dict() of a configuration that is all defaults. `adapter_config.json`: peft's LoraConfig.
`tokenizer.json`: one of every component that `tokenizers` has, as it writes it, by part and type ("normalizer.BertNormalizer"); the whole
under "".
`tokenizer_config.json`: what save_pretrained writes for the classes whose files are read here.
"""
import json
import pathlib
import tempfile

from peft import LoraConfig
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, DistilBertConfig, LlamaConfig, RobertaConfig
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

CLS, SEP = ("[CLS]", 0), ("[SEP]", 1)


def components():
    """Every component of tokenizer.json that can be made from Python, with what it needs."""
    t = Tokenizer(models.WordPiece({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    t.add_tokens([AddedToken("x")])
    t.enable_padding()
    t.enable_truncation(8)
    whole = json.loads(t.to_str())
    yield "", whole
    yield "added_tokens", whole["added_tokens"][0]
    yield "truncation", whole["truncation"]
    yield "padding", whole["padding"]
    for model in (models.BPE({"a": 0, "b": 1, "ab": 2, "<unk>": 3}, [("a", "b")]), models.WordPiece({"[UNK]": 0}), models.WordLevel({"a": 0}, unk_token="a"), models.Unigram([("a", 0.0)])):
        yield "model", json.loads(Tokenizer(model).to_str())["model"]
    n, p, d, q = normalizers, pre_tokenizers, decoders, processors
    for part, made in {
        "normalizer": [n.BertNormalizer(), n.ByteLevel(), n.Lowercase(), n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.Nmt(), n.Prepend("x"),
                       n.Replace("a", "b"), n.Sequence([]), n.Strip(), n.StripAccents()],
        "pre_tokenizer": [p.BertPreTokenizer(), p.ByteLevel(), p.CharDelimiterSplit("a"), p.Digits(), p.FixedLength(), p.Metaspace(),
                          p.Punctuation(), p.Sequence([]), p.Split(Regex("a"), "removed"), p.UnicodeScripts(), p.Whitespace(),
                          p.WhitespaceSplit()],
        "decoder": [d.BPEDecoder(), d.ByteFallback(), d.ByteLevel(), d.CTC(), d.Fuse(), d.Metaspace(), d.Replace("a", "b"),
                    d.Sequence([]), d.Strip(), d.WordPiece()],
        "post_processor": [q.BertProcessing(SEP, CLS), q.RobertaProcessing(SEP, CLS), q.ByteLevel(), q.Sequence([]),
                           q.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [CLS])]}.items():
        for component in made:
            yield part, json.loads(component.__getstate__())


def tokenizer_parts():
    return {f"{part}.{value['type']}" if part and "type" in value else part: value for part, value in components()}


def tokenizer_config_fields():
    fields = {}
    plain = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made = [BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}), GPT2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[]),
            RobertaTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[]), PreTrainedTokenizerFast(tokenizer_object=plain)]
    for tokenizer in made:
        with tempfile.TemporaryDirectory() as directory:
            tokenizer.save_pretrained(directory)
            written = json.loads(pathlib.Path(directory, "tokenizer_config.json").read_text())
        fields[type(tokenizer).__name__] = sorted(written)
    return fields


def main():
    configs = (BertConfig, DistilBertConfig, RobertaConfig, LlamaConfig)
    out = {
        "config.json": {c.model_type: sorted(c().to_dict()) for c in configs},
        "adapter_config.json": sorted(LoraConfig().to_dict()),
        "tokenizer.json": tokenizer_parts(),
        "tokenizer_config.json": tokenizer_config_fields(),
    }
    path = pathlib.Path(__file__).with_name("format_fields.json")
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
