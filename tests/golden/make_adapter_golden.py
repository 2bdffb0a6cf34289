# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/adapters: adapters over the checkpoints of models/ whose configuration says in other ways which modules
are adapted and how, as peft reads them.

    python make_adapter_golden.py

Every directory is an adapter as peft's save_pretrained left it, with the changes of `edit` and `rename`. cases.json has for each
the family, the base, the task and what `PeftModel.from_pretrained` over the checkpoint answers in float64 to the inputs of the family's
cases.json: logits of a classifier, the mean loss of every row of a language model (the first row predicts nothing, and is left
out).
"""

import json
import pathlib
import shutil
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from float64_forms import causal_lm_losses, pad_rows, use_float64_forms
from make_model_golden import classifier, language_model, with_adapter, write_json

HERE = pathlib.Path(__file__).resolve().parent
ALPACA = dict(  # the fields that peft 0.2 wrote
    base_model_name_or_path="tiny-llama", bias="none", enable_lora=None, fan_in_fan_out=True, inference_mode=True, lora_alpha=16,
    lora_dropout=0.05, merge_weights=False, modules_to_save=None, peft_type="LORA", r=2, target_modules=["q_proj"],
    task_type="CAUSAL_LM")


def lm(**options):
    return "llama", peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options)


def seq_cls(family, **options):
    return family, peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, **options})


# name: (family, configuration), what to change in the saved configuration, how to rename its tensors, options of save_pretrained
CASES = {
    "layers_in_a_list": (lm(target_modules=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern=["layers"]),),
    "first_layer": (lm(target_modules=["q_proj", "v_proj"], layers_to_transform=0),),
    "layers_of_an_encoder": (seq_cls("bert", target_modules=["query", "dense"], layers_to_transform=1, layers_pattern="layer"),),
    "layers_of_distilbert": (seq_cls("distilbert", target_modules=["q_lin", "lin2"], layers_to_transform=[0, 2]),),
    "expression_with_flags": (lm(target_modules=r"(?i).*\.(?P<which>Q_PROJ|V_PROJ)"),),
    "expression_with_look_behind": (lm(target_modules=r"model\.layers\.\d++\..*(?<!k)(?<!o)_proj\Z"),),
    "excluded_by_expression": (lm(target_modules="all-linear", exclude_modules=r".*\.mlp\..*"),),
    "patterns": (lm(target_modules=["q_proj", "v_proj", "o_proj"], use_rslora=True, lora_alpha=5.5,
                    rank_pattern={r"layers\.0\.self_attn\.[qv]_proj": 3}, alpha_pattern={r"1\..*v_proj": 7, "o_proj": 2.5}),),
    "fan_in_fan_out": (lm(target_modules=["v_proj"]), {"fan_in_fan_out": True}),
    "written_by_peft_0_2": (lm(target_modules=["q_proj"], lora_alpha=16), ALPACA),
    "without_alpha_and_rank": (lm(target_modules=["q_proj"], lora_alpha=8), ["lora_alpha", "lora_dropout", "rank_pattern",
                               "alpha_pattern", "use_rslora", "init_lora_weights"]),
    "named_default": (lm(target_modules=["q_proj"]), {}, lambda key: key.replace(".weight", ".default.weight")),
    "drawn_orthogonal": (lm(target_modules=["q_proj"], init_lora_weights="orthogonal"),),
    "drawn_by_mica": (lm(target_modules=["q_proj"]), {"init_lora_weights": "mica"}),
    "drawn_otherwise": (lm(target_modules=["q_proj"], init_lora_weights=False), {"eva_config": {"rho": 2.0}}),
    "embeddings_saved": (lm(target_modules=["q_proj"]), {}, None, {"save_embedding_layers": True}),
    "embeddings_saved_of_an_encoder": (seq_cls("roberta", target_modules=["query"]), {}, None, {"save_embedding_layers": True}),
    "embeddings_to_save": (lm(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),),
    "without_task_type": (seq_cls("roberta", task_type=None, target_modules=["query"], modules_to_save=["classifier"]),),
    "head_of_bert": (seq_cls("bert", target_modules="all-linear", modules_to_save=["classifier"]),),
    "head_of_the_base": (seq_cls("bert", task_type=None, target_modules=["query"]),),  # over a checkpoint that has one
}
HEADS = {"head_of_the_base": "public_cases/merge_without_task_type/base"}


def base(family, task, directory):
    directory = HERE / directory
    if directory.name == "base":
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32).double().eval()
    return language_model(directory) if task == "CAUSAL_LM" else classifier(directory)


def answer(family, task, directory, adapter):
    described = json.loads((HERE / "models" / family / "cases.json").read_text())
    ids, mask = pad_rows(described["input_ids"], 0)
    extra = {}
    if described.get("token_type_ids"):
        extra["token_type_ids"] = pad_rows(described["token_type_ids"], 0)[0]
    model = base(family, task, directory).float()  # some ways to draw A and B, which are overwritten, know no float64
    model.config.pad_token_id = model.config.pad_token_id or 0
    model = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double().eval()
    with torch.no_grad():
        if task != "CAUSAL_LM":
            return model(input_ids=ids, attention_mask=mask, **extra).logits.tolist()
        answers = []
        for row in described["input_ids"]:
            if len(row) > 1:
                one = torch.tensor([row])
                logits = model(input_ids=one).logits
                answers.append(causal_lm_losses(logits, one, torch.ones_like(one)).mean().item())
        return answers


def main():
    use_float64_forms()
    out = HERE / "adapters"
    shutil.rmtree(out, ignore_errors=True)
    cases = {}
    for number, (name, case) in enumerate(CASES.items()):
        (family, config), edit, rename, options = case + (({}, None, {})[len(case) - 1:])
        task = config.task_type or "SEQ_CLS"
        directory = HEADS.get(name, f"models/{family}")
        model = with_adapter(base(family, task, directory), config, 100 + number).float()
        model.peft_config["default"].base_model_name_or_path = f"tiny-{family}"
        target = out / name
        model.save_pretrained(target, **{"save_embedding_layers": False, **options})
        (target / "README.md").unlink(missing_ok=True)
        written = json.loads((target / "adapter_config.json").read_text())
        if edit is ALPACA:
            written = dict(edit)
        elif isinstance(edit, list):
            for field in edit:
                del written[field]
        else:
            written.update(edit)
        if isinstance(written["target_modules"], list):
            written["target_modules"].sort()  # PEFT writes a set, in any order
        write_json(target / "adapter_config.json", written)
        tensors = load_file(target / "adapter_model.safetensors")
        if rename:
            tensors = {rename(key): tensor for key, tensor in tensors.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answered = answer(family, task, directory, target)
        cases[name] = {"family": family, "base": directory, "task_type": task, "answer": answered,
                       "modules": sorted({key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors if ".lora_" in key})}
        print(name, [str(w.message)[:90] for w in caught if "gradient_checkpointing" not in str(w.message)])
    write_json(out / "cases.json", cases)


if __name__ == "__main__":
    main()
