# SPDX-License-Identifier: Apache-2.0
"""The same training steps here and in PyTorch + peft, interleaved on one machine.

    python benchmarks/compare_torch.py [--cases LIST] [--threads 1,2] [--arch native,v3,v4,none] [--cap v3|v4]
                                       [--rounds N] [--seconds S] [--ours PATH] [--json FILE]

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
Memory is the peak resident size of the process. --json writes a line per case, arch and thread count.

--arch says what ours is compiled for, and what the libraries may use of the processor. oneDNN (the roof too), PyTorch and
MKL choose their instructions when they run, so the levels of x86-64 bind them as well, by the environment:

native  fedlora-bench-step as CMake builds it by default, with -march=native; the libraries take what they find
v3      -march=x86-64-v3: AVX2 and FMA, for the libraries too. What a processor without AVX-512 would see of one that has it
v4      -march=x86-64-v4: AVX-512 and nothing newer, for the libraries too
none    a plain -O3, which is SSE2; the libraries take what they find, as they do for whoever compiles so

--cap v3 or v4 binds the libraries of `none`: `--arch v3,none --cap v3` is what leaving -march out costs with AVX2. The target
`step_benchmarks` builds the programs of all. Each program says what it was compiled for and what oneDNN uses, PyTorch says
what it uses, and a run where that is not what was asked for ends without a table.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import warnings

HERE = pathlib.Path(__file__).resolve().parent
CASES = ("encoder-128", "encoder-sst2", "minilm-sst2", "stories260k")
ARCHS = ("native", "v3", "v4", "none")

# What a level of x86-64 asks of a processor beyond the level before, in the words of /proc/cpuinfo.
LEVELS = {"v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
          "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}}
# How the libraries are bound to it.
CAPS = {"v3": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        "v4": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}}


class Processor:
    """This machine's, as /proc/cpuinfo has it."""

    def __init__(self):
        fields = {}
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        self.name = fields.get("model name", platform.machine())
        self.flags = set(fields.get("flags", "").split())

    def level(self):
        """The highest level of x86-64 that our programs are compared for; None below them, and elsewhere."""
        return next((level for level in ("v4", "v3") if not self.lacks(level)), None)

    def lacks(self, level):
        """What it has not got of a level of x86-64 and those below."""
        wanted = LEVELS["v3"] | (LEVELS["v4"] if level == "v4" else set())
        return sorted(wanted - self.flags)


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
            "tokens": tokens / steps, "isa": torch.backends.cpu.get_cpu_capability()}


def peak_mib():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


# --- the comparison --------------------------------------------------------------------------------------------------

def cap_of(arch, cap):
    """The level that binds the libraries beside ours of `arch`; None where nothing does."""
    return cap if arch == "none" else arch if arch in CAPS else None


def program_of(arch, ours):
    return pathlib.Path(ours) if arch == "native" else pathlib.Path(f"{ours}-{arch}")


def measure(command, threads, cap):
    bound = {name for settings in CAPS.values() for name in settings}
    environment = {name: value for name, value in os.environ.items() if name not in bound | {"DNNL_MAX_CPU_ISA"}}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **CAPS.get(cap, {})}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {result.returncode}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def check_levels(arch, cap, program, ours, peer, native):
    """Ends the run where a side did not use what was asked for. `native` is the level of this processor."""
    wanted = {"none": "v1", "native": native}.get(arch, arch)
    said = [(program, "compiled for", ours["compiled_for"], wanted)]
    if cap:
        if ours["gemm"] == "oneDNN":
            said.append((program, "oneDNN uses", ours["gemm_isa"], CAPS[cap]["ONEDNN_MAX_CPU_ISA"]))
        said.append(("PyTorch", "uses", peer["isa"].lower(), CAPS[cap]["ATEN_CPU_CAPABILITY"]))
    for who, what, got, wanted in said:
        if wanted is not None and got != wanted:
            raise SystemExit(f"--arch {arch}: {who}: {what} {got}, wanted {wanted}")


def compare(case, arch, threads, arguments):
    sides = {"ours": [], "peer": []}
    cap, program = cap_of(arch, arguments.cap), program_of(arch, arguments.ours)
    common = ["--threads", str(threads), "--seconds", str(arguments.seconds)]
    for _ in range(arguments.rounds):
        sides["ours"].append(measure([program, "--case", case, *common], threads, cap))
        sides["peer"].append(measure([sys.executable, __file__, "--peer", case, *common], threads, cap))
        check_levels(arch, cap, program, sides["ours"][-1], sides["peer"][-1], arguments.native)

    def median(side, field):
        values = [run[field] for run in sides[side] if run.get(field) is not None]
        return statistics.median(values) if values else None

    ours, theirs, roof = median("ours", "ms_per_step"), median("peer", "ms_per_step"), median("ours", "roof_ms")
    tokens = [median(side, "tokens") for side in sides]
    if abs(tokens[0] - tokens[1]) > 0.02 * tokens[1]:
        print(f"{case}: {tokens[0]:.0f} tokens a step here, {tokens[1]:.0f} there: not the same work", file=sys.stderr)
    return {"case": case, "arch": arch, "cap": cap, "compiled_for": sides["ours"][0]["compiled_for"], "threads": threads,
            "ours_ms": round(ours, 3), "peer_ms": round(theirs, 3),
            "ratio": round(ours / theirs, 4), "roof_ratio": roof and round(ours / roof, 4),
            "ours_mib": round(median("ours", "peak_mib"), 1), "peer_mib": round(median("peer", "peak_mib"), 1)}


def commit():
    """The checkout's, with `-dirty` where tracked files were changed; None where git cannot tell."""
    try:
        return subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                              check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="a comma-separated list (default: all)")
    parser.add_argument("--threads", default="1,2", help="a comma-separated list of thread counts")
    parser.add_argument("--arch", default="native", help=f"a comma-separated list of {', '.join(ARCHS)} (default: native)")
    parser.add_argument("--cap", choices=CAPS, help="what the libraries of `none` may use of the processor (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; medians are reported")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of steps per turn")
    parser.add_argument("--ours", default=HERE.parent / "build" / "bin" / "fedlora-bench-step",
                        help="the program of `native`; the others' names have -v3, -v4 or -none behind it")
    parser.add_argument("--json", help="write a line per case, arch and thread count to this file")
    parser.add_argument("--peer", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return arguments, None
    for name, known in (("cases", CASES), ("arch", ARCHS)):
        chosen = getattr(arguments, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        setattr(arguments, name, chosen)
    if arguments.cap and "none" not in arguments.arch:
        parser.error("--cap binds the libraries of --arch none, which is not asked for; v3 and v4 are their own")
    processor = Processor()
    arguments.native = processor.level()
    for arch in arguments.arch:
        level = arch if arch in LEVELS else cap_of(arch, arguments.cap)
        if level and (lacking := processor.lacks(level)):
            parser.error(f"--arch {arch}: x86-64-{level} is more than this processor ({processor.name}) has: "
                         f"no {', '.join(lacking)}")
        if not (program := program_of(arch, arguments.ours)).exists():
            parser.error(f"{program} does not exist: build the target step_benchmarks first, or give --ours")
    return arguments, processor


def main():
    arguments, processor = parse()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer, int(arguments.threads), arguments.seconds)))
        return 0

    # Not imported here: a child's getrusage counts the memory of the process that started it.
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")]
    except importlib.metadata.PackageNotFoundError as missing:
        raise SystemExit(f"this Python has no {missing.name}: python3 -m venv build/venv && build/venv/bin/pip install torch "
                         "transformers peft, then build/venv/bin/python benchmarks/compare_torch.py")
    print(f"{', '.join(versions)}, on {processor.name}; medians of {arguments.rounds} turns of {arguments.seconds:g} s"
          + (f"; the libraries of `none` bound to x86-64-{arguments.cap}" if arguments.cap else ""))
    print("\n| case | arch | threads | ours ms | PyTorch ms | ratio | roof | ours MiB | PyTorch MiB |\n" + 9 * "|---" + "|",
          flush=True)
    about = {"processor": processor.name, "commit": commit()}
    lines = []
    for case, arch, threads in itertools.product(arguments.cases, arguments.arch, map(int, arguments.threads.split(","))):
        row = compare(case, arch, threads, arguments)
        lines.append(json.dumps(row | about))
        roof = "-" if row["roof_ratio"] is None else f"{row['roof_ratio']:.2f}"
        print(f"| {case} | {arch} | {threads} | {row['ours_ms']:.1f} | {row['peer_ms']:.1f} | {row['ratio']:.2f} | {roof} | "
              f"{row['ours_mib']:.0f} | {row['peer_mib']:.0f} |", flush=True)
        if arguments.json:
            pathlib.Path(arguments.json).write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
