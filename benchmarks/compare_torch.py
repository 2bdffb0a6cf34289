# SPDX-License-Identifier: Apache-2.0
"""The same training steps here and in PyTorch + peft, interleaved on one machine.

    python benchmarks/compare_torch.py [--cases LIST] [--threads 1,2] [--rounds N] [--seconds S] [--ours PATH] [--json FILE]

A step is forward, backward and AdamW of one batch, float32, all dropouts 0, LoRA r 8 and a trained classification head:

encoder-128   BERT of 6 layers, hidden 768, 12 heads, random weights; 8 rows of 128 tokens; query and value
encoder-sst2  the same at SST-2's own lengths, 8 sentences a batch; sst2_lengths.txt holds the lengths, [CLS] and [SEP]
              included, of its first 256 training sentences under bert-base-uncased
minilm-sst2   6 layers, hidden 384, 12 heads (all-MiniLM-L6-v2's shape), as above
stories260k   the stories260K model, 16 utterances of CLINC150 a batch, all linear layers

Both sides run whole passes over the same batches until the time is over, at least one; the time is the mean of a
step. Ours (`fedlora-bench-step`) packs the rows, PyTorch pads them. With 2 threads ours trains two clients at once and
counts time per step; PyTorch uses both threads for one step. Each runs in a process of its own, in turns, `--rounds` times;
the table has medians. `roof` is ours over the summed time of the step's frozen base products in the fastest GEMM at hand.
Memory is the peak resident size of the process. --json writes a line per case and thread count.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import warnings

HERE = pathlib.Path(__file__).resolve().parent
CASES = ("encoder-128", "encoder-sst2", "minilm-sst2", "stories260k")


# --- one peer process ------------------------------------------------------------------------------------------------

def encoder(hidden):
    import transformers
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=hidden, num_hidden_layers=6, num_attention_heads=12, intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    return transformers.BertForSequenceClassification(config)


def stories():
    import transformers
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        HERE.parent / "examples" / "data" / "stories260K", num_labels=10, dtype="float32")
    model.config.pad_token_id = model.config.eos_token_id
    return model


def utterances(count):
    """Token ids of every 97th training utterance, wrapping around: a mixture of all domains."""
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(str(HERE.parent / "examples" / "data" / "stories260K" / "tokenizer.json"))
    path = HERE.parent / "examples" / "data" / "clinc150" / "domain_train.tsv"
    texts = [line.split("\t")[2] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [tokenizer.encode(texts[97 * number % len(texts)]).ids for number in range(count)]


def batches_of(case):
    """Rows of token ids, batch by batch."""
    import random
    draw = random.Random(1)
    if case == "stories260k":
        rows, size = utterances(512), 16
    else:
        lengths = [128] * 8 if case == "encoder-128" else [int(n) for n in (HERE / "sst2_lengths.txt").read_text().split()]
        rows, size = [[draw.randrange(1000, 30000) for _ in range(length)] for length in lengths], 8
    return [rows[start:start + size] for start in range(0, len(rows) - size + 1, size)]


def peer(case, threads, seconds):
    import peft
    import torch
    import transformers
    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = stories() if case == "stories260k" else encoder(384 if case == "minilm-sst2" else 768)
    pad, labels = model.config.pad_token_id, model.config.num_labels
    model = peft.get_peft_model(model, peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0,
        target_modules="all-linear" if case == "stories260k" else ["query", "value"]))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    batches = []
    for rows in batches_of(case):
        width = max(map(len, rows))
        batches.append({
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            "labels": torch.randint(labels, (len(rows),))})

    def step(number):
        optimizer.zero_grad()
        model(**batches[number % len(batches)]).loss.backward()
        optimizer.step()
        return sum(map(int, batches[number % len(batches)]["attention_mask"].sum(1)))

    for number in range(2):
        step(number)
    tokens = steps = 0
    start = time.perf_counter()
    while steps == 0 or steps % len(batches) or time.perf_counter() - start < seconds:
        tokens += step(steps)
        steps += 1
    elapsed = time.perf_counter() - start
    return {"case": case, "threads": threads, "ms_per_step": 1000 * elapsed / steps, "peak_mib": peak_mib(),
            "tokens": tokens / steps}


def peak_mib():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


# --- the comparison --------------------------------------------------------------------------------------------------

def measure(command, threads):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {result.returncode}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def compare(case, threads, arguments):
    sides = {"ours": [], "peer": []}
    common = ["--threads", str(threads), "--seconds", str(arguments.seconds)]
    for _ in range(arguments.rounds):
        sides["ours"].append(measure([arguments.ours, "--case", case, *common], threads))
        sides["peer"].append(measure([sys.executable, __file__, "--peer", case, *common], threads))

    def median(side, field):
        values = [run[field] for run in sides[side] if run.get(field) is not None]
        return statistics.median(values) if values else None

    ours, theirs, roof = median("ours", "ms_per_step"), median("peer", "ms_per_step"), median("ours", "roof_ms")
    tokens = [median(side, "tokens") for side in sides]
    if abs(tokens[0] - tokens[1]) > 0.02 * tokens[1]:
        print(f"{case}: {tokens[0]:.0f} tokens a step here, {tokens[1]:.0f} there: not the same work", file=sys.stderr)
    return {"case": case, "threads": threads, "ours_ms": round(ours, 3), "peer_ms": round(theirs, 3),
            "ratio": round(ours / theirs, 4), "roof_ratio": roof and round(ours / roof, 4),
            "ours_mib": round(median("ours", "peak_mib"), 1), "peer_mib": round(median("peer", "peak_mib"), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="a comma-separated list (default: all)")
    parser.add_argument("--threads", default="1,2", help="a comma-separated list of thread counts")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; medians are reported")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of steps per turn")
    parser.add_argument("--ours", default=HERE.parent / "build" / "bin" / "fedlora-bench-step")
    parser.add_argument("--json", help="write a line per case and thread count to this file")
    parser.add_argument("--peer", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer, int(arguments.threads), arguments.seconds)))
        return 0
    cases = arguments.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    if not pathlib.Path(arguments.ours).exists():
        parser.error(f"{arguments.ours} does not exist: build the benchmarks first, or give --ours")

    # Not imported here: a child's getrusage counts the memory of the process that started it.
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")), sep=", ", end="; ")
    print(f"medians of {arguments.rounds} turns of {arguments.seconds:g} s")
    print("\n| case | threads | ours ms | PyTorch ms | ratio | roof | ours MiB | PyTorch MiB |\n" + 8 * "|---" + "|",
          flush=True)
    lines = []
    for case in cases:
        for threads in map(int, arguments.threads.split(",")):
            row = compare(case, threads, arguments)
            lines.append(json.dumps(row))
            roof = "-" if row["roof_ratio"] is None else f"{row['roof_ratio']:.2f}"
            print(f"| {case} | {threads} | {row['ours_ms']:.1f} | {row['peer_ms']:.1f} | {row['ratio']:.2f} | {roof} | "
                  f"{row['ours_mib']:.0f} | {row['peer_mib']:.0f} |", flush=True)
            if arguments.json:
                pathlib.Path(arguments.json).write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
