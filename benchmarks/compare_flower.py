# SPDX-License-Identifier: Apache-2.0
"""A MiniLM federation here and as a Flower simulation: seconds and memory of 440 client steps on two workers.

    python benchmarks/compare_flower.py [--model DIR|org/name] [--data DIR] [--rounds N] [--ours PATH] [--json FILE]
                                        [--only ours|flower]

all-MiniLM-L6-v2 on SST-2 (--data, else $FEDLORA_DATA, else ../shared/data): 20 clients of 346 sentences, a quarter of them a
round, batch 8, two rounds of one local epoch: 2 x 5 x 44 steps. LoRA r 8 on query and value, head trained, AdamW, dropouts
as configured (LoRA 0.1); one evaluation of the global adapter on dev.tsv at the end. Flower (`pip install
"flwr[simulation]"`) runs two actors of one thread, each keeping its model between clients; ours runs `fedlora-federation
--threads 2`. Seconds are those of the whole process, memory is the peak of the summed proportional set size (shared pages
counted once) of the process and its children, sampled five times a second, or the high-water mark of the process itself where that
is more.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
CLIENTS, COHORT, BATCH, RANK, LR = 20, 5, 8, 8, 1e-3


# --- Flower's side: server and actors import this file as a module, so that actors keep their caches -----------------

@functools.lru_cache(maxsize=1)
def settings():
    return json.loads(os.environ["FEDLORA_FLOWER_SETTINGS"])


@functools.lru_cache(maxsize=1)
def model():
    import peft
    import torch
    import transformers
    torch.set_num_threads(1)
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        settings()["model"], num_labels=2, dtype="float32")
    return peft.get_peft_model(base, peft.LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"]))


def trainable():
    return {name: parameter for name, parameter in model().named_parameters() if parameter.requires_grad}


@functools.lru_cache(maxsize=2)
def sentences(split):
    import tokenizers
    lines = (pathlib.Path(settings()["data"]) / "sst2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines))
    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(settings()["model"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))], [int(label) for label in labels]


def batch_of(split, numbers):
    import torch
    ids, labels = sentences(split)
    rows = [ids[number] for number in numbers]
    width = max(map(len, rows))
    return (torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            torch.tensor([labels[number] for number in numbers]))


def train_client(message, context):
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    parameters = trainable()
    arrays = message.content["arrays"].to_torch_state_dict()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[name])
    number = int(context.node_config["partition-id"])
    mine = list(range(number, len(sentences("train")[0]), CLIENTS))
    order = [mine[place] for place in torch.randperm(len(mine)).tolist()]
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR)
    model().train()
    for start in range(0, len(order), BATCH):
        ids, mask, labels = batch_of("train", order[start:start + BATCH])
        optimizer.zero_grad()
        model()(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    return Message(RecordDict({
        "arrays": ArrayRecord({name: parameter.detach() for name, parameter in parameters.items()}),
        "metrics": MetricRecord({"num-examples": len(mine)})}), reply_to=message)


def accuracy(arrays):
    import torch
    model().eval()
    correct = 0
    with torch.no_grad():
        for name, parameter in trainable().items():
            parameter.copy_(arrays[name])
        ids = sentences("dev")[0]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        for start in range(0, len(order), 32):
            rows, mask, labels = batch_of("dev", order[start:start + 32])
            correct += int((model()(input_ids=rows, attention_mask=mask).logits.argmax(-1) == labels).sum())
    return correct / len(ids)


def serve(grid, context):
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg
    strategy = FedAvg(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    result = strategy.start(
        grid=grid, num_rounds=settings()["rounds"],
        initial_arrays=ArrayRecord({name: parameter.detach() for name, parameter in trainable().items()}))
    pathlib.Path(settings()["result"]).write_text(json.dumps(
        {"accuracy": accuracy(result.arrays.to_torch_state_dict()), "client_steps": settings()["rounds"] * COHORT * 44}))


def run_flower():
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation
    server, client = ServerApp(), ClientApp()
    server.main()(serve)
    client.train()(train_client)
    run_simulation(server, client, num_supernodes=CLIENTS, backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": 2}})


# --- the comparison --------------------------------------------------------------------------------------------------

def tree_mib(root):
    """Summed proportional set size of a process and all its descendants, MiB. Ray's daemons are descendants too."""
    parents = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    tree, found = {root}, True
    while found:
        found = {child for child, parent in parents.items() if parent in tree} - tree
        tree |= found
    total = 0
    for process in tree:
        try:
            for line in pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return total / 1024


def high_water_mib(process):
    """Peak resident set of one process so far, MiB: it also holds what rose and fell between two samples."""
    try:
        for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def measure(command, environment):
    """Seconds and peak MiB of a command that must succeed."""
    peak, done = 0.0, threading.Event()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)

        def watch():
            nonlocal peak
            while not done.wait(0.2):
                peak = max(peak, tree_mib(process.pid), high_water_mib(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        if status != 0:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise SystemExit(f"{command[0]}: exit {status}")
    return {"seconds": round(seconds, 1), "peak_mib": round(peak, 1)}


def ours(arguments, scratch):
    out = scratch / "out"
    sst2 = pathlib.Path(arguments.data) / "sst2"
    result = measure(
        [arguments.ours, "--mode", "federated", "--model", arguments.model, "--train", sst2 / "train.tsv",
         "--test", sst2 / "dev.tsv", "--text-column", "1", "--label-column", "2",
         "--clients", str(CLIENTS), "--partition", "iid",
         "--cohort", str(COHORT / CLIENTS), "--rounds", str(arguments.rounds), "--eval-every", str(arguments.rounds),
         "--local-epochs", "1", "--batch", str(BATCH), "--lr", str(LR), "--rank", str(RANK), "--alpha", "16",
         "--dropout", "0.1", "--targets", "query,value", "--max-tokens", "128", "--threads", "2", "--out", out], {"OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {**result, "accuracy": [row["accuracy"] for row in rows if row.get("accuracy") is not None][-1]}


def flower(arguments, scratch):
    model_directory = arguments.model
    if not pathlib.Path(model_directory).is_dir():
        import huggingface_hub
        model_directory = huggingface_hub.snapshot_download(model_directory, local_files_only=True)
    result = measure(
        [sys.executable, "-c", "import compare_flower; compare_flower.run_flower()"],
        {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
         "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0",
         "PYTHONWARNINGS": "ignore", "FEDLORA_FLOWER_SETTINGS": json.dumps({
             "model": str(pathlib.Path(model_directory).resolve()), "data": str(pathlib.Path(arguments.data).resolve()),
             "rounds": arguments.rounds, "result": str(scratch / "flower.json")})})
    return {**result, **json.loads((scratch / "flower.json").read_text())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--data", default=os.environ.get("FEDLORA_DATA", HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ours", default=HERE.parent / "build" / "bin" / "fedlora-federation")
    parser.add_argument("--only", choices=("ours", "flower"))
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, run in (("ours", ours), ("flower", flower)):
            if arguments.only in (None, name):
                results[name] = run(arguments, pathlib.Path(scratch))
                print(f"{name}: {results[name]['seconds']:.1f} s, {results[name]['peak_mib']:.0f} MiB, "
                      f"accuracy {results[name]['accuracy']:.4f}", flush=True)
    if len(results) == 2:
        for field in ("seconds", "peak_mib"):
            results[f"{field}_ratio"] = round(results["ours"][field] / results["flower"][field], 4)
        print(f"ratio: {results['seconds_ratio']:.2f} of the time, {results['peak_mib_ratio']:.2f} of the memory")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
