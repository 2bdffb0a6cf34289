# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/problem_types: regression and multi-label heads over the checkpoints of tests/golden/models, with
float64 logits, losses, LoRA gradients and AdamW steps of transformers and peft.

    python make_problem_type_golden.py [OUT]

What the files hold stands in README.md beside this script.
"""

import json
import pathlib
import sys
import warnings

import torch
import transformers
from safetensors.torch import save_file

import make_model_golden as golden
from float64_forms import pad_rows, use_float64_forms

MODELS = pathlib.Path(__file__).parent / "models"

# A target for each of the five rows of cases.json. One column for regression is squeezed by transformers.
CASES = {
    "regression": dict(problem_type=None, targets=[[2.5], [-1.25], [0.1], [4.8], [3.0]]),
    "regression3": dict(problem_type="regression", targets=[
        [0.5, -2.0, 1.1], [3.0, 0.0, -0.7], [-1.0, 2.25, 0.3], [0.0, 0.0, 0.0], [1.9, -0.4, 5.0]]),
    "multi_label4": dict(problem_type="multi_label_classification", targets=[
        [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]]),
}


def make_family(name, out):
    described = json.loads((MODELS / name / "cases.json").read_text())
    family = golden.FAMILIES[name]
    rows, types = described["input_ids"], described["token_type_ids"]
    ids, mask = pad_rows(rows, family["config"].pad_token_id)
    extra = {"token_type_ids": pad_rows(types, 0)[0]} if family["types"] else {}
    tensors, cases = {}, {}
    for number, (case, what) in enumerate(CASES.items()):
        targets = torch.tensor(what["targets"], dtype=torch.float64)
        base = golden.load(transformers.AutoModelForSequenceClassification, MODELS / name, 7,
                           num_labels=targets.shape[1], problem_type=what["problem_type"])
        model = golden.with_adapter(base, golden.lora("SEQ_CLS", family["query_value"], r=2, lora_alpha=4), 31 + number)

        def losses_of():
            result = model(input_ids=ids, attention_mask=mask, **extra,
                           labels=targets.squeeze(1) if targets.shape[1] == 1 else targets)
            return result.logits, result.loss[None]  # the model's own loss

        losses = golden.record(model, case, losses_of, tensors)
        cases[case] = golden.describe(family["query_value"], model, losses)
        cases[case].update(problem_type=model.config.problem_type, num_labels=targets.shape[1], targets=what["targets"])
        assert model.config.problem_type == (what["problem_type"] or "regression")
    save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}.safetensors")
    golden.write_json(out / f"{name}.json", {
        "input_ids": rows, "token_type_ids": types, "optimizer": golden.OPTIMIZER, "cases": cases})
    print(name, *(f"{case} {value['losses'][0]:.4f}" for case, value in cases.items()))


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "problem_types")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    use_float64_forms()
    for name in ("bert", "llama"):
        make_family(name, out)


if __name__ == "__main__":
    main()
