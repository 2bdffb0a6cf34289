#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A training step of BERT-base's size on a GPU, here and in PyTorch + peft, in one run.

    python benchmarks/gpu/compare_torch_gpu.py [--ours PATH] [--limit SECONDS] [--batch N] [--length N] [--dtype bf16|tf32]
        [--modes eager,compile,reduce-overhead]

A step is forward, backward and AdamW of one batch: BERT of 12 layers, hidden 768, 12 heads, random weights, all dropouts 0,
LoRA r 8 on query and value and a trained head; batches of 32 rows of 128 tokens, no padding.

PyTorch gets its best: base and adapter both in bfloat16 (peft would keep the adapter in float32 and convert around it;
ours has float32 master copies), scaled_dot_product_attention without a mask, fused AdamW. It runs eager, then by
torch.compile in its default mode, then with mode="reduce-overhead", each for three seconds after eight steps to warm up, as
medians of events; compilation does not count. Ours (fedlora-bench-step-cuda) runs before eager, behind it and in the end; a
ratio is to the median of what had been measured of ours by then. Memory is max_memory_allocated there, and the most that was
in use here. Without torch, transformers or peft the script says so and ends with 3; after --limit seconds nothing new is begun.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
import warnings

HERE = pathlib.Path(__file__).resolve().parent
GOALS = {"eager": 2.0, "compile": 1.3, "reduce-overhead": 1.0}  # how many times as fast ours should be
MIB = 1 << 20


def say(text):
    print(text, flush=True)


class Rows:
    """Lines 'what TAB result' for check.sh, written as soon as they are known."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8") if path else None

    def add(self, what, result):
        say(f"{what}: {result}")
        if self.file:
            self.file.write(f"{what}\t{result}\n")
            self.file.flush()


def ours(arguments, path="fused", graphs="on"):
    command = [arguments.ours, "--dtype", arguments.dtype, "--path", path, "--graphs", graphs, "--batch", arguments.batch,
               "--length", arguments.length, "--seconds", 2]
    result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {result.returncode}")
    say(result.stdout.strip())
    return json.loads(result.stdout.strip().splitlines()[-1])


def median(runs):
    return statistics.median(run["ms_per_step"] for run in runs)


class Peer:
    """The model in PyTorch, and its batches on the GPU."""

    def __init__(self, arguments):
        import peft
        import torch
        import transformers

        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        self.torch = torch
        torch.manual_seed(1)
        torch.set_float32_matmul_precision("high")
        dtype = {"bf16": torch.bfloat16, "tf32": torch.float32}[arguments.dtype]
        config = transformers.BertConfig(
            vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2, attn_implementation="sdpa")
        model = transformers.BertForSequenceClassification(config)
        lora = peft.LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
        self.model = peft.get_peft_model(model, lora).to(device="cuda", dtype=dtype)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        shape = (arguments.batch, arguments.length)
        self.batches = [
            {"input_ids": torch.randint(1000, 30000, shape, device="cuda"),
             "labels": torch.randint(2, shape[:1], device="cuda")} for _ in range(8)]

    def step(self, model, number):
        self.torch.compiler.cudagraph_mark_step_begin()
        model(**self.batches[number % len(self.batches)]).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, model, seconds):
        """Median milliseconds of a step, and the most MiB that were allocated."""
        torch = self.torch
        for number in range(8):
            self.step(model, number)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times, start = [], time.perf_counter()
        while len(times) < 5 or time.perf_counter() - start < seconds:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for number in range(16):
                self.step(model, number)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 16)
        return statistics.median(times), torch.cuda.max_memory_allocated() / MIB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=HERE.parents[1] / "build-gpu" / "bin" / "fedlora-bench-step-cuda")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which nothing new is begun")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "tf32"])
    parser.add_argument("--modes", default=",".join(GOALS), help="of PyTorch, of " + ", ".join(GOALS))
    parser.add_argument("--rows", help="write lines for check.sh to this file")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if not set(modes) <= set(GOALS):
        parser.error(f"--modes: expected some of {', '.join(GOALS)}, got {arguments.modes}")
    start = time.monotonic()
    rows = Rows(arguments.rows)
    what = f"BERT-base step, {arguments.batch}x{arguments.length}, {arguments.dtype}"

    if not pathlib.Path(arguments.ours).exists():
        sys.exit(f"{arguments.ours} does not exist: build fedlora-bench-step-cuda first, or give --ours")
    runs = [ours(arguments)]
    plain = ours(arguments, "plain")
    rows.add(f"{what}, ours", f"{runs[0]['ms_per_step']:.2f} ms (plain products {plain['ms_per_step']:.2f}), "
             f"{runs[0]['peak_mib']:.0f} MiB in use, {runs[0]['held_mib']:.0f} held")
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        say(f"PyTorch is left out: {error}")
        return 3
    if not torch.cuda.is_available():
        say("PyTorch is left out: it sees no GPU")
        return 3
    say(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, "
        f"{torch.cuda.get_device_name()}")

    peer = Peer(arguments)
    results = {}
    makers = {
        "eager": lambda model: model,
        "compile": lambda model: torch.compile(model),
        "reduce-overhead": lambda model: torch.compile(model, mode="reduce-overhead"),
    }
    for name, make in makers.items():
        if name not in modes:
            continue
        if time.monotonic() - start > arguments.limit - 15:
            rows.add(f"{what}, PyTorch {name}", "no time was left")
            continue
        torch._dynamo.reset()
        try:
            results[name] = peer.measure(make(peer.model), 3)
        except Exception as error:  # a compiler that fails must not take the other results along
            rows.add(f"{what}, PyTorch {name}", f"failed: {' '.join(str(error).split())[:120]}")
            continue
        milliseconds, mebibytes = results[name]
        if name == "eager":
            runs.append(ours(arguments))
            rows.add(f"{what}, ours again", f"{runs[-1]['ms_per_step']:.2f} ms")
        rows.add(f"{what}, PyTorch {name}", f"{milliseconds:.2f} ms, {mebibytes:.0f} MiB allocated at most; "
                 f"{milliseconds / median(runs):.2f} times ours (goal: {GOALS[name]:.1f})")
        if name == "eager":
            rows.add("memory, ours over eager", f"{runs[0]['peak_mib'] / mebibytes:.2f} (goal: at most 0.60)")
    if time.monotonic() - start < arguments.limit - 20:
        runs.append(ours(arguments))
        rows.add(f"{what}, ours in the end", f"{runs[-1]['ms_per_step']:.2f} ms")
        rows.add(f"{what}, ours without graphs", f"{ours(arguments, graphs='off')['ms_per_step']:.2f} ms")
    for name, (theirs, _) in results.items():
        say(f"PyTorch {name} over ours: {theirs / median(runs):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
