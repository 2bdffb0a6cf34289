# SPDX-License-Identifier: Apache-2.0
"""What transformers + peft reach with the example federation's settings: the figures that fedlora's runs are held against.

    reference_runs.py [--modes head,centralised,federated] [--seeds 1,2,3] [--json FILE] [the options of fedlora-federation]

Without --model and --train: stories260K on CLINC150's ten domains. head: the base frozen, only the head trained
(--head-only-lr). centralised: LoRA on the pooled data. federated: FedAvg over a Dirichlet partition. Partitions and orders
are this script's own; only the settings are shared with our program, so accuracies agree within what seeds do.
"""

import argparse
import json
import pathlib
import sys
import time
import warnings

import numpy
import peft
import torch
import transformers

import reference_model as reference
from float64_forms import trainable


def make_model(arguments, labels, seed, head_only):
    base = reference.load_classifier(arguments.directory, labels, torch.float32, seed)
    for module in base.modules():  # the base's own dropouts; None: as config.json has them
        if isinstance(module, torch.nn.Dropout) and arguments.base_dropout is not None:
            module.p = arguments.base_dropout
    targets = arguments.targets if arguments.targets == "all-linear" else arguments.targets.split(",")
    model = peft.get_peft_model(base, peft.LoraConfig(
        task_type="SEQ_CLS", r=arguments.rank, lora_alpha=arguments.alpha, lora_dropout=arguments.dropout,
        target_modules="dummy-target-modules" if head_only else targets))
    return model, base.config


def train_epoch(model, config, examples, numbers, optimizer, batch, draw):
    model.train()
    numbers = draw.permutation(numbers)
    for start in range(0, len(numbers), batch):
        inputs, labels = reference.batch_of(examples, numbers[start:start + batch].tolist(), config)
        optimizer.zero_grad()
        (reference.loss_sum(model(**inputs).logits, labels, config) / len(labels)).backward()
        optimizer.step()
    model.eval()


def adamw(model, lr):
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr)


def pooled(arguments, labels, train, test, seed, head_only):
    """Accuracy after each epoch over the pooled data."""
    model, config = make_model(arguments, labels, seed, head_only)
    optimizer = adamw(model, arguments.head_only_lr if head_only else arguments.lr)
    draw = numpy.random.default_rng(seed)
    for _ in range(arguments.epochs):
        train_epoch(model, config, train, numpy.arange(len(train)), optimizer, arguments.batch, draw)
        yield reference.evaluate(model, config, test)[0]


def dirichlet(labels, clients, alpha, draw, smallest=10):
    """Each label dealt to the clients in Dirichlet shares; drawn again (at most 100 times) while a client is too small."""
    labels = numpy.array(labels)
    for _ in range(100):
        parts = [[] for _ in range(clients)]
        for label in numpy.unique(labels):
            numbers = draw.permutation(numpy.flatnonzero(labels == label))
            cuts = (numpy.cumsum(draw.dirichlet([alpha] * clients))[:-1] * len(numbers)).astype(int)
            for part, more in zip(parts, numpy.split(numbers, cuts)):
                part.extend(more)
        if min(map(len, parts)) >= smallest:
            return parts
    raise SystemExit(f"no partition of {len(labels)} examples gives {clients} clients {smallest} each")


def federated(arguments, labels, train, test, seed):
    """Accuracy of the global adapter after each round."""
    model, config = make_model(arguments, labels, seed, False)
    parameters = trainable(model)
    current = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    draw = numpy.random.default_rng(seed)
    parts = dirichlet(train.labels, arguments.clients, arguments.dirichlet, draw)
    for _ in range(arguments.rounds):
        cohort = draw.choice(arguments.clients, max(1, round(arguments.cohort * arguments.clients)), replace=False)
        examples = sum(len(parts[client]) for client in cohort)
        average = {key: torch.zeros_like(value) for key, value in current.items()}
        for client in cohort:
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(current[key])
            optimizer = adamw(model, arguments.lr)
            for _ in range(arguments.local_epochs):
                train_epoch(model, config, train, parts[client], optimizer, arguments.batch, draw)
            for key, parameter in parameters.items():
                average[key].add_(parameter.detach(), alpha=len(parts[client]) / examples)
        current = average
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(current[key])
        yield reference.evaluate(model, config, test)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="head,centralised,federated")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--model", default="")
    parser.add_argument("--train", default="")
    parser.add_argument("--test", default="")
    parser.add_argument("--text-column", default="text", help="names or numbers, comma-separated")
    parser.add_argument("--label-column", default="domain")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--examples", type=int, help="use only so many training and test examples")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--dirichlet", type=float, default=0.3)
    parser.add_argument("--cohort", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3, help="of head and centralised")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--head-only-lr", type=float, default=1e-2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--base-dropout", type=float)
    parser.add_argument("--targets", default="all-linear")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(arguments.threads)

    arguments.directory = reference.model_directory(arguments.model)
    tokenizer = reference.load_tokenizer(arguments.directory)
    columns = arguments.text_column.split(",")
    train, labels = reference.Examples.from_table(
        reference.table_path(arguments.train, "train"), columns, arguments.label_column, tokenizer, arguments.max_tokens)
    test, _ = reference.Examples.from_table(
        reference.table_path(arguments.test, "test"), columns, arguments.label_column, tokenizer, arguments.max_tokens,
        labels)
    if arguments.examples:
        draw = numpy.random.default_rng(0)
        train, test = (part.subset(draw.permutation(len(part))[:arguments.examples].tolist()) for part in (train, test))

    runs = {"head": lambda seed: pooled(arguments, len(labels), train, test, seed, True),
            "centralised": lambda seed: pooled(arguments, len(labels), train, test, seed, False),
            "federated": lambda seed: federated(arguments, len(labels), train, test, seed)}
    results = []
    for mode in arguments.modes.split(","):
        curves = []
        for seed in map(int, arguments.seeds.split(",")):
            start = time.perf_counter()
            curves.append(list(runs[mode](seed)))
            results.append({"mode": mode, "seed": seed, "accuracy": curves[-1], "seconds": time.perf_counter() - start})
            print(f"{mode}, seed {seed}, {results[-1]['seconds']:.0f} s:", *(f"{a:.4f}" for a in curves[-1]), flush=True)
        print(f"{mode}, mean:", *(f"{a:.4f}" for a in numpy.mean(curves, axis=0)), flush=True)
        if arguments.json:
            pathlib.Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
