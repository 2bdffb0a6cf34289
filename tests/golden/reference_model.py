# SPDX-License-Identifier: Apache-2.0
"""What the federation's twin and the reference runs share: data, tokens, the model, batches, evaluation, in Python."""

import csv
import json
import pathlib

import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from float64_forms import pad_rows

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EMBEDDED_MODEL = REPOSITORY / "examples" / "data" / "stories260K"
EMBEDDED_TABLES = {"train": REPOSITORY / "examples" / "data" / "clinc150" / "domain_train.tsv",
                   "test": REPOSITORY / "examples" / "data" / "clinc150" / "domain_test.tsv"}


def model_directory(name):
    """The directory of a model given as our programs give it: a directory, "embedded:…", or org/name in the cache."""
    if not name or str(name).startswith("embedded"):
        return EMBEDDED_MODEL
    if pathlib.Path(name).is_dir():
        return pathlib.Path(name)
    import huggingface_hub
    return pathlib.Path(huggingface_hub.snapshot_download(name, local_files_only=True))


def table_path(name, split):
    return EMBEDDED_TABLES[split] if not name or str(name).startswith("embedded") else pathlib.Path(name)


def read_table(path, columns):
    """Columns of a CSV, TSV or JSONL file, each a list of strings; a column is a name or a number from 1 (no header)."""
    path = pathlib.Path(path)
    columns = [str(column) for column in columns]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [[str(row[column]) for row in rows] for column in columns]
    if path.suffix == ".tsv":
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    if all(column.isdigit() for column in columns):
        numbers = [int(column) - 1 for column in columns]
    else:
        header, rows = rows[0], rows[1:]
        numbers = [header.index(column) for column in columns]
    return [[row[number] for row in rows] for number in numbers]


def load_tokenizer(directory):
    """The directory's tokenizer.json, its own padding and truncation switched off."""
    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(directory) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenise(tokenizer, texts, max_tokens, pairs=None):
    if max_tokens:
        tokenizer.enable_truncation(max_tokens)
    encodings = tokenizer.encode_batch(list(zip(texts, pairs)) if pairs else texts)
    return [encoding.ids for encoding in encodings], [encoding.type_ids for encoding in encodings]


class Examples:
    """Token ids, token types and labels, example by example."""

    def __init__(self, ids, types, labels):
        self.ids, self.types, self.labels = ids, types, labels

    def __len__(self):
        return len(self.ids)

    def subset(self, numbers):
        return Examples(*([field[number] for number in numbers] for field in (self.ids, self.types, self.labels)))

    @classmethod
    def from_jsonl(cls, path):
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line]
        return cls([row["ids"] for row in rows], [row.get("types") or [0] * len(row["ids"]) for row in rows],
                   [row["label"] for row in rows])

    @classmethod
    def from_table(cls, path, text_columns, label_column, tokenizer, max_tokens, labels=None, pair_column=None):
        """Texts of several columns are joined by a space; labels are numbered in sorted order (or as given)."""
        columns = read_table(path, list(text_columns) + [label_column] + ([pair_column] if pair_column else []))
        pairs = columns.pop() if pair_column else None
        names = columns.pop()
        labels = labels or sorted(set(names), key=lambda name: name.encode())
        ids, types = tokenise(tokenizer, [" ".join(texts) for texts in zip(*columns)], max_tokens, pairs)
        return cls(ids, types, [labels.index(name) for name in names]), labels


def load_classifier(directory, labels, dtype, seed=0, problem_type="single_label_classification"):
    """The family's ForSequenceClassification over a checkpoint. float64 uses eager attention (see float64_forms)."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=labels, problem_type=problem_type, dtype=torch.float32, ignore_mismatched_sizes=True,
        attn_implementation="eager" if dtype == torch.float64 else "sdpa")
    if model.config.pad_token_id is None:  # a decoder without one: any id that ends no text
        model.config.pad_token_id = model.config.eos_token_id
    return model.to(dtype).eval()


def loss_sum(logits, answers, config):
    """The sum over examples of the problem type's loss, where several numbers or labels of one are averaged."""
    if config.problem_type == "single_label_classification":
        return torch.nn.functional.cross_entropy(logits, torch.tensor(answers), reduction="sum")
    if config.problem_type == "regression":
        targets = torch.tensor(answers, dtype=logits.dtype)
        return torch.nn.functional.mse_loss(logits, targets, reduction="none").mean(1).sum()
    targets = torch.zeros_like(logits)
    for row, labels in zip(targets, answers):
        row[labels] = 1
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()


def batch_of(examples, numbers, config):
    """The padded inputs of some examples, and their answers."""
    pad = config.pad_token_id or 0
    rows = [examples.ids[number] for number in numbers]
    if config.model_type == "llama" and any(row[-1] == pad for row in rows):
        raise ValueError(f"an example ends with the padding id {pad}")
    ids, mask = pad_rows(rows, pad)
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 1) > 1:
        batch["token_type_ids"] = pad_rows([examples.types[number] for number in numbers], 0)[0]
    return batch, [examples.labels[number] for number in numbers]


@torch.no_grad()
def evaluate(model, config, examples, batch=64):
    """Accuracy (of one label per example; else None) and mean loss, in batches of similar length."""
    order = sorted(range(len(examples)), key=lambda number: len(examples.ids[number]))
    single = config.problem_type == "single_label_classification"
    correct, loss = 0, 0.0
    for start in range(0, len(order), batch):
        inputs, labels = batch_of(examples, order[start:start + batch], config)
        logits = model(**inputs).logits
        loss += float(loss_sum(logits, labels, config))
        if single:
            correct += int((logits.argmax(-1) == torch.tensor(labels)).sum())
    return correct / len(examples) if single else None, loss / len(examples)


def head_size(adapter_tensors):
    """The number of labels an adapter's head has."""
    for key in ("classifier.out_proj.weight", "classifier.weight", "score.weight"):
        if f"base_model.model.{key}" in adapter_tensors:
            return adapter_tensors[f"base_model.model.{key}"].shape[0]
    raise KeyError("the adapter has no classification head")


def adapter_tensors(directory):
    return load_file(pathlib.Path(directory) / "adapter_model.safetensors")
