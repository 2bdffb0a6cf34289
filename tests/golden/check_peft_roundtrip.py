# SPDX-License-Identifier: Apache-2.0
"""Checks adapters and merged checkpoints written by fedlora with the real peft, and makes adapters for the other way.

    check_peft_roundtrip.py check --model DIR --adapter DIR --outputs FILE [--texts FILE] [--merged DIR]
    check_peft_roundtrip.py make --model DIR --out DIR [--targets LIST|all-linear] [--labels N] [--texts FILE]

check: FILE is JSON lines, {"ids": […], "types": […], "logits": […]} as our tests print them, or the lines of
`fedlora-predict`, {"logits": […], …} or {"nll": x, "tokens": n}, with the texts it read, one a line. PEFT loads the base and
the adapter (and transformers the merged checkpoint) in float64; every logit must agree within the tolerance.
make: PEFT makes a random adapter over the base and saves it to OUT; OUT/expected.jsonl then holds ids, types and logits.
"""

import argparse
import json
import pathlib
import random
import sys
import warnings

import peft
import torch
import transformers

import reference_model as reference
from float64_forms import causal_lm_losses, pad_rows, trainable, use_float64_forms


def load_base(directory, task, labels):
    if task == "CAUSAL_LM":
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager")
        return model.double().eval()
    return reference.load_classifier(directory, labels, torch.float64)


def load_adapted(base, directory):
    """Base and adapter by PEFT; the float64 values of the file are kept."""
    model = peft.PeftModel.from_pretrained(base, directory, autocast_adapter_dtype=False, is_trainable=True).double().eval()
    tensors = reference.adapter_tensors(directory)
    parameters = trainable(model)
    if set(tensors) != set(parameters):
        raise SystemExit(f"{directory}: tensors differ from what PEFT expects: {sorted(set(tensors) ^ set(parameters))}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return model


@torch.no_grad()
def outputs_of(model, config, task, ids, types):
    rows, mask = pad_rows([ids], config.pad_token_id or 0)
    extra = {"token_type_ids": torch.tensor([types])} if getattr(config, "type_vocab_size", 1) > 1 else {}
    logits = model(input_ids=rows, attention_mask=mask, **extra).logits
    return float(causal_lm_losses(logits, rows, mask).mean()) if task == "CAUSAL_LM" else logits[0].tolist()


def with_tokens(lines, arguments):
    if all("ids" in line for line in lines):
        return [(line["ids"], line.get("types") or [0] * len(line["ids"])) for line in lines]
    if not arguments.texts:
        raise SystemExit("the outputs hold no ids: give the texts with --texts")
    texts = pathlib.Path(arguments.texts).read_text(encoding="utf-8").splitlines()
    return list(zip(*reference.tokenise(reference.load_tokenizer(arguments.model), texts, arguments.max_tokens)))


def check(arguments):
    config = json.loads((pathlib.Path(arguments.adapter) / "adapter_config.json").read_text())
    task = config["task_type"]
    lines = [json.loads(line) for line in pathlib.Path(arguments.outputs).read_text().splitlines() if line]
    lines = [line for line in lines if "logits" in line or "nll" in line]
    tokens = with_tokens(lines, arguments)
    if not lines or len(tokens) != len(lines):
        raise SystemExit(f"{len(lines)} outputs, {len(tokens)} texts")
    labels = reference.head_size(reference.adapter_tensors(arguments.adapter)) if task == "SEQ_CLS" else None

    models = {"peft": load_adapted(load_base(arguments.model, task, labels), arguments.adapter)}
    if arguments.merged:
        models["merged"] = load_base(arguments.merged, task, labels)
        # The merged file holds F32, so it is compared with our outputs within the same tolerance, not exactly.
    worst_of_all = 0.0
    for name, model in models.items():
        worst = 0.0
        for line, (ids, types) in zip(lines, tokens):
            expected = torch.tensor(outputs_of(model, model.config, task, ids, types), dtype=torch.float64)
            ours = torch.tensor(line["nll"] if task == "CAUSAL_LM" else line["logits"], dtype=torch.float64)
            worst = max(worst, float((expected - ours).abs().max()))
        print(f"{name}: {len(lines)} texts, largest difference {worst:.3g}")
        worst_of_all = max(worst_of_all, worst)
    return 0 if worst_of_all <= arguments.tolerance else 1


def make(arguments):
    base = load_base(arguments.model, "SEQ_CLS", arguments.labels)
    targets = "all-linear" if arguments.targets == "all-linear" else arguments.targets and arguments.targets.split(",")
    distil = base.config.model_type == "distilbert"
    model = peft.get_peft_model(base, peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets,
        modules_to_save=["pre_classifier"] if distil else None,
        exclude_modules=["pre_classifier"] if distil and targets == "all-linear" else None)).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_((0.05 * torch.randn(parameter.shape, generator=generator)))
    out = pathlib.Path(arguments.out)
    model.float().save_pretrained(out)
    model.double()
    if arguments.texts:
        texts = pathlib.Path(arguments.texts).read_text(encoding="utf-8").splitlines()
        tokens = zip(*reference.tokenise(reference.load_tokenizer(arguments.model), texts, arguments.max_tokens))
    else:
        draw = random.Random(5)
        tokens = [([draw.randrange(4, base.config.vocab_size) for _ in range(length)], [0] * length)
                  for length in (1, 9, 4, 17, 2)]
    with (out / "expected.jsonl").open("w") as file:
        for ids, types in tokens:
            logits = outputs_of(model, base.config, "SEQ_CLS", ids, types)
            file.write(json.dumps({"ids": ids, "types": types, "logits": logits}) + "\n")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parser_check = commands.add_parser("check")
    parser_check.add_argument("--adapter", required=True)
    parser_check.add_argument("--outputs", required=True)
    parser_check.add_argument("--merged")
    parser_check.add_argument("--tolerance", type=float, default=1e-5)
    parser_make = commands.add_parser("make")
    parser_make.add_argument("--out", required=True)
    parser_make.add_argument("--targets")
    parser_make.add_argument("--labels", type=int, default=3)
    for command in (parser_check, parser_make):
        command.add_argument("--model", required=True)
        command.add_argument("--texts")
        command.add_argument("--max-tokens", type=int, default=0)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    use_float64_forms()
    arguments.model = reference.model_directory(arguments.model)
    return check(arguments) if arguments.command == "check" else make(arguments)


if __name__ == "__main__":
    sys.exit(main())
