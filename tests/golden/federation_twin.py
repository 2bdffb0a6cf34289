# SPDX-License-Identifier: Apache-2.0
"""The same federation in Python: transformers + peft run what `fedlora-federation --export-plan DIR` wrote.

    federation_twin.py DIR [--dtype float64|float32] [--rounds N] [--threads N] [--check-tokens] [--curve CSV] [--json FILE]

DIR holds plan.json (the configuration, the cohort and example order of every round), train_ids.jsonl and test_ids.jsonl,
initial/ and round-001/ … (PEFT adapters: the global one before the first and after each round) and metrics.jsonl (our
accuracies). All dropouts must be 0. Every client makes a new torch AdamW; the server averages by number of examples. After
each round every tensor is compared with ours: |ours - theirs| / |theirs - initial|, Frobenius.

Exit status 1 when the two differ: in float64 above 1e-6 for a tensor in the first three rounds, another accuracy in the
first ten, or a loss that differs by 1e-7 of itself; in float32 when the mean accuracies of the first ten rounds are more than one point apart.
"""

import argparse
import csv
import json
import pathlib
import sys
import time
import warnings

import peft
import torch
import transformers

import reference_model as reference
from float64_forms import trainable, use_float64_forms


def refuse_what_differs(config):
    """The twin covers plain FedAvg and FedProx of a family's own classifier with AdamW."""
    for field, allowed in {"dropout": (0,), "base_dropout": (0, None), "lr_schedule": ("constant", None),
                           "pooling": ("default", "cls", "last", "family", "", "own", None), "optimizer": ("adamw", None),
                           "method": ("fedavg", "fedprox", None)}.items():
        if config.get(field) not in allowed:
            raise SystemExit(f"plan.json, config.{field}: expected one of {allowed}, got {config.get(field)!r}")


class Federation:
    def __init__(self, directory, dtype):
        self.directory = pathlib.Path(directory)
        self.plan = json.loads((self.directory / "plan.json").read_text())
        self.config = self.plan["config"]
        refuse_what_differs(self.config)
        self.train_examples = reference.Examples.from_jsonl(self.directory / self.plan["train_ids"])
        self.test_examples = reference.Examples.from_jsonl(self.directory / self.plan["test_ids"])

        initial = reference.adapter_tensors(self.directory / "initial")
        self.base_directory = reference.model_directory(self.config.get("model"))
        base = reference.load_classifier(self.base_directory, reference.head_size(initial), dtype,
                                         problem_type=self.config.get("problem_type", "single_label_classification"))
        self.model_config = base.config
        self.model = peft.PeftModel.from_pretrained(
            base, self.directory / "initial", is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()
        self.parameters = trainable(self.model)
        if set(initial) != set(self.parameters):
            raise SystemExit(f"initial/: PEFT knows other tensors: {sorted(set(initial) ^ set(self.parameters))}")
        self.initial = {key: value.to(dtype) for key, value in initial.items()}
        self.current = dict(self.initial)

    def load(self, tensors):
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(tensors[key])

    def check_tokens(self):
        """Tokenises the texts again with the Hugging Face tokenizer; ids, types and labels must be ours."""
        config = self.config
        if config.get("problem_type", "single_label_classification") != "single_label_classification":
            raise SystemExit("--check-tokens reads tables with one label per text")
        labels = config.get("labels") or None
        tokenizer = reference.load_tokenizer(self.base_directory)
        for split, ours in (("train", self.train_examples), ("test", self.test_examples)):
            theirs, _ = reference.Examples.from_table(
                reference.table_path(config.get(split), split), config["text_columns"], config["label_column"], tokenizer,
                config["max_tokens"], labels, config.get("text_pair_column") or None)
            for field in ("ids", "types", "labels"):
                for number, (a, b) in enumerate(zip(getattr(ours, field), getattr(theirs, field), strict=True)):
                    if list(a) != list(b) if field != "labels" else a != b:
                        raise SystemExit(f"{split}, example {number}: {field} {a} of ours, {b} of Hugging Face")
        print(f"tokens, types and labels of {len(self.train_examples)} + {len(self.test_examples)} texts are equal")

    def optimizer(self):
        low_rank = [parameter for key, parameter in self.parameters.items() if ".lora_" in key]
        head = [parameter for key, parameter in self.parameters.items() if ".lora_" not in key]
        lr = self.config["lr"]
        groups = [{"params": low_rank, "lr": lr}, {"params": head, "lr": self.config.get("head_lr") or lr}]
        return torch.optim.AdamW([group for group in groups if group["params"]],
                                 weight_decay=self.config.get("weight_decay", 0.01))

    def train_client(self, steps):
        self.load(self.current)
        optimizer = self.optimizer()
        mu = self.config.get("mu") or 0.0 if self.config.get("method") == "fedprox" else 0.0
        clip = self.config.get("clip_norm") or 0.0
        for micro_batches in steps:
            optimizer.zero_grad()
            total = sum(len(numbers) for numbers in micro_batches)
            for numbers in micro_batches:
                inputs, answers = reference.batch_of(self.train_examples, numbers, self.model_config)
                (reference.loss_sum(self.model(**inputs).logits, answers, self.model_config) / total).backward()
            with torch.no_grad():
                for key, parameter in self.parameters.items():
                    if mu:
                        parameter.grad.add_(parameter - self.current[key], alpha=mu)
            if clip:
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), clip)
            optimizer.step()
        return {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def run_round(self, clients):
        examples = sum(client["num_examples"] for client in clients)
        average = {key: torch.zeros_like(value) for key, value in self.current.items()}
        for client in clients:
            for key, value in self.train_client(client["steps"]).items():
                average[key].add_(value, alpha=client["num_examples"] / examples)
        self.current = average

    def evaluate(self):
        self.load(self.current)
        return reference.evaluate(self.model, self.model_config, self.test_examples)

    def difference(self, ours):
        """The largest |ours - theirs| / |theirs - initial| over tensors, and which tensor it is."""
        if set(ours) != set(self.current):
            raise SystemExit(f"other tensors than in initial/: {sorted(set(ours) ^ set(self.current))}")
        worst, where = 0.0, ""
        for key, theirs in self.current.items():
            apart = float((ours[key].double() - theirs.double()).norm())
            moved = float((theirs.double() - self.initial[key].double()).norm())
            relative = apart / moved if moved else (0.0 if apart == 0 else float("inf"))
            if relative >= worst:
                worst, where = relative, key
        return worst, where


def our_metrics(path):
    """Rows of metrics.jsonl of the federated run, by round."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {row["round"]: row for row in rows if row.get("mode", "federated") == "federated"}


def verdict(rows, dtype):
    """What the comparison must show, as a list of failures."""
    failures = []
    if all(row["difference"] is None and row["ours_loss"] is None for row in rows):
        return ["nothing to compare with: neither round-001/ nor metrics.jsonl"]
    compared = [row for row in rows[:10] if row["ours_accuracy"] is not None]
    if dtype == "float64":
        for row in rows[:3]:
            if row["difference"] is None:
                failures.append(f"round {row['round']}: no adapter to compare with")
            elif not row["difference"] <= 1e-6:
                failures.append(f"round {row['round']}: {row['tensor']} differs by {row['difference']:.3g} of its change")
        for row in compared:
            if abs(row["ours_accuracy"] - row["theirs_accuracy"]) > 1e-12:
                failures.append(f"round {row['round']}: accuracy {row['ours_accuracy']} and {row['theirs_accuracy']}")
        for row in rows[:10]:
            ours, theirs = row["ours_loss"], row["theirs_loss"]
            if ours is not None and theirs is not None and abs(ours - theirs) > 1e-7 * abs(theirs):
                failures.append(f"round {row['round']}: loss {ours} and {theirs}")
    elif compared:
        ours = sum(row["ours_accuracy"] for row in compared) / len(compared)
        theirs = sum(row["theirs_accuracy"] for row in compared) / len(compared)
        if abs(ours - theirs) > 0.01:
            failures.append(f"mean accuracy {ours:.4f} and {theirs:.4f}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="the directory written by --export-plan")
    parser.add_argument("--dtype", choices=("float64", "float32"))
    parser.add_argument("--rounds", type=int, help="at most so many rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-evaluation", action="store_true", help="compare adapters only")
    parser.add_argument("--check-tokens", action="store_true")
    parser.add_argument("--curve", help="write round, accuracies, seconds as CSV")
    parser.add_argument("--json", help="write the comparison as JSON")
    parser.add_argument("--write-adapters", help="save the adapters of this run as DIR/round-001/…")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(arguments.threads)

    config = json.loads((pathlib.Path(arguments.plan) / "plan.json").read_text())["config"]
    dtype = arguments.dtype or ("float64" if config.get("dtype") in ("f64", "float64") else "float32")
    if dtype == "float64":
        use_float64_forms()
    federation = Federation(arguments.plan, getattr(torch, dtype))
    if arguments.check_tokens:
        federation.check_tokens()
    metrics = our_metrics(federation.directory / "metrics.jsonl")

    rows, seconds = [], 0.0
    print(f"{'round':>5} {'ours':>8} {'theirs':>8} {'difference':>11} {'seconds':>8}  of")
    for entry in federation.plan["rounds"][:arguments.rounds]:
        number = entry["round"]
        start = time.perf_counter()
        federation.run_round(entry["clients"])
        seconds += time.perf_counter() - start
        accuracy = loss = None
        if not arguments.no_evaluation:
            accuracy, loss = federation.evaluate()
        ours = federation.directory / f"round-{number:03d}"
        difference, where = federation.difference(reference.adapter_tensors(ours)) if ours.is_dir() else (None, "")
        ours_row = metrics.get(number, {})
        row = {"round": number, "ours_accuracy": ours_row.get("accuracy"), "theirs_accuracy": accuracy,
               "ours_loss": ours_row.get("loss"), "theirs_loss": loss, "difference": difference, "tensor": where,
               "ours_seconds": ours_row.get("train_seconds"), "theirs_seconds": seconds}
        if row["theirs_accuracy"] is None:
            row["ours_accuracy"] = None
        rows.append(row)
        show = lambda value, form: "-" if value is None else format(value, form)
        print(f"{number:5} {show(row['ours_accuracy'], '.4f'):>8} {show(accuracy, '.4f'):>8} {show(difference, '.2e'):>11} "
              f"{seconds:8.1f}  {where.removeprefix('base_model.model.')}", flush=True)
        if arguments.write_adapters:
            federation.load(federation.current)
            federation.model.save_pretrained(pathlib.Path(arguments.write_adapters) / f"round-{number:03d}")

    failures = verdict(rows, dtype)
    for failure in failures:
        print("FAILED:", failure)
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    print(f"{dtype}, {arguments.threads} threads: {len(rows)} rounds trained in {seconds:.1f} s; largest difference "
          f"{max(differences, default=float('nan')):.3g}; {'agrees' if not failures else 'differs'}")
    if arguments.curve:
        with open(arguments.curve, "w", newline="") as file:
            fields = ["round", "ours_accuracy", "theirs_accuracy", "ours_loss", "theirs_loss", "ours_seconds",
                      "theirs_seconds", "difference"]
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(
            {"dtype": dtype, "threads": arguments.threads, "seconds": seconds, "rounds": rows, "failures": failures},
            indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
