# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/models: tiny random checkpoints with float64 logits, losses, LoRA gradients and AdamW steps.

    python make_model_golden.py [OUT]

What the files hold stands in README.md beside this script.
"""

import json
import pathlib
import shutil
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from float64_forms import causal_lm_losses, pad_rows, trainable, use_float64_forms

LABELS = 3
LENGTHS = (1, 9, 4, 7, 2)
STEPS = 3
OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

SHAPE = dict(vocab_size=96, hidden_size=32, num_attention_heads=4, intermediate_size=48, max_position_embeddings=24)
FAMILIES = {
    "bert": dict(
        config=transformers.BertConfig(
            **SHAPE, num_hidden_layers=2, type_vocab_size=2, initializer_range=0.1, pad_token_id=0),
        save_as=transformers.BertModel,  # no prefix, with the pooler
        first_id=1, types=True,
        query_value=["query", "value"],
        pattern=dict(
            target_modules=["query", "key", "output.dense"],
            rank_pattern={"layer.0.attention.self.query": 2, r"layer\.1\.output\.dense": 6},
            alpha_pattern={"layer.0.attention.self.query": 12, "key": 3},
            modules_to_save=["pooler"]),
    ),
    "distilbert": dict(
        config=transformers.DistilBertConfig(
            vocab_size=96, dim=32, n_heads=4, hidden_dim=48, n_layers=3, max_position_embeddings=24,
            initializer_range=0.1, pad_token_id=0),
        save_as=transformers.DistilBertModel,  # no prefix
        first_id=1, types=False,
        query_value=["q_lin", "v_lin"],
        modules_to_save=["pre_classifier"],
        # PEFT itself fails without this: "classifier" in modules_to_save also matches "pre_classifier" (it compares ends of
        # names without a dot), and a module cannot be both a target and saved.
        exclude_modules=["pre_classifier"],
        pattern=dict(
            target_modules=["q_lin", "out_lin", "lin2"],
            rank_pattern={"layer.0.attention.q_lin": 2, r"transformer\.layer\.[12]\.ffn\.lin2": 6},
            alpha_pattern={"layer.0.attention.q_lin": 12, "out_lin": 3},
            modules_to_save=["pre_classifier"]),
    ),
    "roberta": dict(
        config=transformers.RobertaConfig(
            **SHAPE, num_hidden_layers=2, type_vocab_size=1, initializer_range=0.1, pad_token_id=1, bos_token_id=0,
            eos_token_id=2, layer_norm_eps=1e-5),
        save_as=transformers.RobertaForMaskedLM,  # prefix "roberta.", and an lm_head that a classifier does not use
        first_id=2, types=False,
        query_value=["query", "value"],
        pattern=dict(
            target_modules=["query", "key", "output.dense"],
            rank_pattern={"layer.0.attention.self.query": 2, r"layer\.1\.output\.dense": 6},
            alpha_pattern={"layer.0.attention.self.query": 12, "key": 3}),
    ),
    "llama": dict(
        config=transformers.LlamaConfig(
            **SHAPE, num_hidden_layers=2, num_key_value_heads=2, initializer_range=0.1, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            tie_word_embeddings=False),
        save_as=transformers.LlamaForCausalLM,  # prefix "model.", and an untied lm_head
        first_id=3, types=False,
        query_value=["q_proj", "v_proj"],
        pattern=dict(
            target_modules=["q_proj", "k_proj", "mlp.down_proj"],
            rank_pattern={"layers.0.self_attn.q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
            alpha_pattern={"layers.0.self_attn.q_proj": 12, "k_proj": 3}),
    ),
}


def randomise(model, generator):
    """Random numbers in place of zeros and ones: biases, norm weights, and the padding rows of the embeddings."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "norm" in name.lower():
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.1 * noise)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n")


def save_model(model, directory):
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def load(cls, directory, seed, **options):
    """A float64 model of the checkpoint; what the checkpoint lacks (the head) is random, and rounded to float32."""
    torch.manual_seed(seed)
    model = cls.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("classifier", "pre_classifier", "score"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def classifier(directory, seed=7):
    return load(transformers.AutoModelForSequenceClassification, directory, seed, num_labels=LABELS)


def language_model(directory, seed=7):
    return load(transformers.AutoModelForCausalLM, directory, seed)


def with_adapter(model, config, seed):
    """The PeftModel with every trainable tensor of the adapter random (B too), rounded to float32."""
    model = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted_modules(model):
    """Names, as the base model knows them, of the modules that carry a low-rank term."""
    return [name.removeprefix("base_model.model.") for name, module in model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)]


def record(model, case, losses_of, tensors):
    """Runs a case: adapter, gradients, STEPS AdamW steps. `losses_of()` gives (logits, per-example losses)."""
    parameters = trainable(model)
    state = peft.get_peft_model_state_dict(model)
    assert set(state) == set(parameters), set(state) ^ set(parameters)
    for key, parameter in parameters.items():
        tensors[f"adapter.{case}.{key}"] = parameter.detach().clone()

    optimizer = torch.optim.AdamW(
        parameters.values(), lr=OPTIMIZER["lr"], weight_decay=OPTIMIZER["weight_decay"], foreach=False)
    losses = []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        logits, example_losses = losses_of()
        loss = example_losses.mean()
        losses.append(loss.item())
        loss.backward()
        if step == 1:
            if logits is not None:
                tensors[f"logits.{case}"] = logits.detach().clone()
            tensors[f"example_losses.{case}"] = example_losses.detach().clone()
            for key, parameter in parameters.items():
                assert parameter.grad.abs().max() > 0, (case, key)
                tensors[f"grad.{case}.{key}"] = parameter.grad.clone()
        optimizer.step()
        for key, parameter in parameters.items():
            tensors[f"step{step}.{case}.{key}"] = parameter.detach().clone()
    return losses


def lora(task, targets, modules_to_save=None, **options):
    copy = lambda value: list(value) if isinstance(value, list) else value  # PEFT changes the lists it is given
    return peft.LoraConfig(task_type=task, target_modules=copy(targets), modules_to_save=copy(modules_to_save),
                           lora_dropout=0.0, **options)


def describe(targets, model, losses):
    """What C++ needs to build the same adapter: PEFT's fields as given, and the modules PEFT made of them."""
    config = model.peft_config["default"]
    return {
        "target_modules": targets, "task_type": config.task_type, "r": config.r, "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern,
        "modules_to_save": sorted(config.modules_to_save or []), "modules": adapted_modules(model), "losses": losses,
    }


def target_lists(directory, causal, exclude):
    """The modules PEFT adapts for several target specifications."""
    found = []
    specifications = [None, "all-linear", ["query", "value"], ["q_lin", "v_lin"], ["q_proj", "o_proj"], ["dense"],
                      ["output.dense"], ["lin1", "lin2"], ["down_proj"], r".*layers?\.1\..*(query|q_lin|q_proj)",
                      r".*\.(value|v_lin|v_proj)"]
    for task, cls in [("SEQ_CLS", classifier)] + ([("CAUSAL_LM", language_model)] if causal else []):
        for targets in specifications:
            try:
                model = peft.get_peft_model(cls(directory), lora(task, targets, exclude_modules=exclude))
                found.append({"task_type": task, "target_modules": targets, "modules": adapted_modules(model),
                              "modules_to_save": sorted(model.peft_config["default"].modules_to_save or [])})
            except ValueError:  # nothing matches, or the family has no default
                found.append({"task_type": task, "target_modules": targets, "error": True})
    return found


def make_family(name, family, out, number):
    directory = out / name
    generator = torch.Generator().manual_seed(1000 + number)
    torch.manual_seed(number)
    model = family["save_as"](family["config"])
    randomise(model, generator)
    save_model(model, directory)

    pad = family["config"].pad_token_id
    rows = [torch.randint(family["first_id"], 96, (n,), generator=generator).tolist() for n in LENGTHS]
    types = [[int(i >= (n + 1) // 2) for i in range(n)] if family["types"] else [0] * n for n in LENGTHS]
    types[0] = [1] if family["types"] else [0]
    labels = [2, 0, 1, 1, 0]
    ids, mask = pad_rows(rows, pad)
    extra = {"token_type_ids": pad_rows(types, 0)[0]} if family["types"] else {}
    tensors, cases = {}, {}

    def run(case, targets, seed, **options):
        model = with_adapter(classifier(directory), lora("SEQ_CLS", targets, **options), seed)
        with torch.no_grad():  # padding must not matter
            padded = model(input_ids=ids, attention_mask=mask, **extra).logits
            for row, row_types, expected in zip(rows, types, padded):
                alone = {"token_type_ids": torch.tensor([row_types])} if extra else {}
                assert torch.allclose(model(torch.tensor([row]), **alone).logits[0], expected, rtol=1e-12, atol=1e-12)

        def losses_of():
            logits = model(input_ids=ids, attention_mask=mask, **extra).logits
            return logits, torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")

        losses = record(model, case, losses_of, tensors)
        cases[case] = describe(targets, model, losses)

    pattern = dict(family["pattern"])
    run("a", family["query_value"], 11, r=4, lora_alpha=8, modules_to_save=family.get("modules_to_save"))
    run("b", "all-linear", 12, r=3, lora_alpha=5, use_rslora=True, exclude_modules=family.get("exclude_modules"))
    run("c", pattern.pop("target_modules"), 13, r=4, lora_alpha=8, **pattern)

    if name == "llama":
        model = with_adapter(language_model(directory), lora("CAUSAL_LM", "all-linear", r=4, lora_alpha=8), 14)

        def losses_of():
            return None, causal_lm_losses(model(input_ids=ids, attention_mask=mask).logits, ids, mask)

        losses = record(model, "lm", losses_of, tensors)
        cases["lm"] = describe("all-linear", model, losses)

    with torch.no_grad():
        base = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
        hidden = base.double().eval()(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
        tensors["base.last_hidden_state"] = hidden[mask.bool()].clone()  # packed rows

    description = {
        "model_type": name,
        "lengths": list(LENGTHS), "input_ids": rows, "token_type_ids": types, "labels": labels, "num_labels": LABELS,
        "optimizer": OPTIMIZER, "steps": STEPS,
        "tolerance": {"float64_relative": 1e-9, "float32_of_largest_entry": 1e-5},
        "cases": cases,
        "targets": target_lists(directory, name == "llama", family.get("exclude_modules")),
    }
    return directory, description, tensors, (ids, mask, extra)


def half_precision(directory, description, tensors, batch):
    """The same checkpoint stored in F16 and BF16: logits of case a over the widened weights. With the int64 position_ids
    that real checkpoints of older transformers carry."""
    ids, mask, extra = batch
    weights = load_file(directory / "model.safetensors")
    for kind, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        (directory / kind).mkdir(exist_ok=True)
        shutil.copy(directory / "config.json", directory / kind / "config.json")
        stored = {key: value.to(dtype) for key, value in weights.items()}
        stored["embeddings.position_ids"] = torch.arange(24)[None]
        save_file(stored, directory / kind / "model.safetensors", metadata={"format": "pt"})
        model = with_adapter(classifier(directory / kind), lora("SEQ_CLS", ["query", "value"], r=4, lora_alpha=8), 11)
        with torch.no_grad():
            tensors[f"{kind}.logits.a"] = model(input_ids=ids, attention_mask=mask, **extra).logits
    description["half_precision"] = {
        "f16": {"directory": "f16", "adapter": "adapter.a", "logits": "f16.logits.a"},
        "bf16": {"directory": "bf16", "adapter": "adapter.a", "logits": "bf16.logits.a"}}


def sharded(directory, description):
    """The bert checkpoint as BertForPreTraining writes it: prefix "bert.", unused cls.* tensors, three shards."""
    torch.manual_seed(3)
    model = transformers.BertForPreTraining.from_pretrained(directory, dtype=torch.float32)
    target = directory / "sharded"
    target.mkdir(exist_ok=True)
    model.save_pretrained(target, max_shard_size="40KB")
    (target / "generation_config.json").unlink(missing_ok=True)
    shards = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(shards) == 3, shards
    description["sharded"] = {"directory": "sharded", "note": "same base weights: every case's reference holds",
                              "files": shards}


def llama_variants(directory, description, tensors, batch):
    """tied: lm_head is the embedding, configuration as transformers 4 wrote it (rope_theta at the top). biased: biases in
    attention and MLP, head_dim apart from hidden / heads. bare: the tensors of LlamaModel, no prefix."""
    ids, mask, _ = batch
    generator = torch.Generator().manual_seed(77)
    for kind, options in (("tied", dict(tie_word_embeddings=True)),
                          ("biased", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12))):
        config = transformers.LlamaConfig(**{**FAMILIES["llama"]["config"].to_dict(), **options})
        config.num_hidden_layers = 1
        model = transformers.LlamaForCausalLM(config)
        randomise(model, generator)
        model.tie_weights()
        save_model(model, directory / kind)
        if kind == "tied":
            path = directory / kind / "config.json"
            written = json.loads(path.read_text())
            rope = written.pop("rope_parameters")
            written.update(rope_theta=rope["rope_theta"], rope_scaling=None, torch_dtype=written.pop("dtype"))
            written.pop("head_dim", None)
            written["transformers_version"] = "4.40.0"
            write_json(path, written)
        assert "lm_head.weight" not in load_file(directory / kind / "model.safetensors")
        with torch.no_grad():
            logits = language_model(directory / kind)(input_ids=ids, attention_mask=mask).logits
            tensors[f"{kind}.lm_logits"] = logits[mask.bool()].clone()
            tensors[f"{kind}.lm_losses"] = causal_lm_losses(logits, ids, mask)
    with torch.no_grad():
        logits = language_model(directory)(input_ids=ids, attention_mask=mask).logits
        tensors["untied.lm_logits"] = logits[mask.bool()].clone()
        tensors["untied.lm_losses"] = causal_lm_losses(logits, ids, mask)
    (directory / "bare").mkdir(exist_ok=True)
    save_model(transformers.LlamaModel.from_pretrained(directory, dtype=torch.float32), directory / "bare")
    assert "embed_tokens.weight" in load_file(directory / "bare" / "model.safetensors")
    description["variants"] = {
        "untied": {"directory": ".", "lm_logits": "untied.lm_logits", "lm_losses": "untied.lm_losses"},
        "tied": {"directory": "tied", "lm_logits": "tied.lm_logits", "lm_losses": "tied.lm_losses"},
        "biased": {"directory": "biased", "lm_logits": "biased.lm_logits", "lm_losses": "biased.lm_losses"},
        "bare": {"directory": "bare", "note": "same base weights: the references of cases a, b, c hold; no lm_head"}}


def peft_directory(directory, description, tensors, batch, family):
    """An adapter directory that the real peft wrote, and the logits of the base with it and merged."""
    ids, mask, extra = batch
    model = with_adapter(
        classifier(directory),
        lora("SEQ_CLS", family["query_value"], r=4, lora_alpha=6, modules_to_save=family.get("modules_to_save")), 21)
    model = model.float()
    model.peft_config["default"].base_model_name_or_path = f"tiny-{description['model_type']}"
    target = directory / "peft_adapter"
    model.save_pretrained(target, save_embedding_layers=False)
    (target / "README.md").unlink(missing_ok=True)
    written = json.loads((target / "adapter_config.json").read_text())
    written["target_modules"].sort()  # PEFT writes a set, in any order
    write_json(target / "adapter_config.json", written)
    with torch.no_grad():
        tensors["peft.logits"] = model.double()(input_ids=ids, attention_mask=mask, **extra).logits
        merged = model.merge_and_unload()
        difference = (merged(input_ids=ids, attention_mask=mask, **extra).logits - tensors["peft.logits"]).abs().max()
        assert difference < 1e-12, difference
    description["peft_adapter"] = {"directory": "peft_adapter", "logits": "peft.logits", "tolerance": 1e-5}


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "models")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    use_float64_forms()
    for number, (name, family) in enumerate(FAMILIES.items()):
        shutil.rmtree(out / name, ignore_errors=True)
        directory, description, tensors, batch = make_family(name, family, out, number)
        peft_directory(directory, description, tensors, batch, family)
        if name == "bert":
            half_precision(directory, description, tensors, batch)
            sharded(directory, description)
        if name == "llama":
            llama_variants(directory, description, tensors, batch)
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / "reference.safetensors")
        write_json(directory / "cases.json", description)
        print(name, len(tensors), "tensors;", *(f"{c} {v['losses'][0]:.4f}" for c, v in description["cases"].items()))


if __name__ == "__main__":
    main()
