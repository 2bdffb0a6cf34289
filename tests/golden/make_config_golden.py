#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes config_fields.json: what transformers computes when a field of config.json is another one, for the checkpoints of models/.

  python3 make_config_golden.py > config_fields.json      needs: torch, transformers

Each entry has `family`, `set` and `drop` (fields of config.json), and `last`: the last hidden state of the last token of the longest
sequence of cases.json, in float64 (Llama's norm, rotary tables and softmax in float32, as transformers has them); `refused` where
transformers refuses or computes something that this library does not: what our message must name.
"""
import json
import pathlib
import sys
import tempfile

import torch
import transformers

MODELS = pathlib.Path(__file__).parent / "models"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
LINEAR = {"type": "linear", "factor": 2.0}


def entries():
    for act in ("gelu_python", "gelu_python_tanh", "gelu_accurate", "gelu_10", "quick_gelu", "hardswish", "laplace", "leaky_relu",
                "linear", "mish", "relu2", "relu6", "sigmoid", "sqrtsoftplus"):
        yield "bert", {"hidden_act": act}, [], None
    yield "distilbert", {"activation": "mish", "hidden_act": "relu"}, [], None
    yield "roberta", {"hidden_act": "hardswish"}, [], None
    yield "llama", {"hidden_act": "relu2", "hidden_activation": "gelu"}, [], None
    for family, field in (("bert", "hidden_act"), ("distilbert", "activation"), ("llama", "hidden_act")):
        yield family, {}, [field], None
        for name in ("prelu", "xielu", "gelu2"):
            yield family, {field: name}, [], f"field {field}"

    # What transformers does not look at, or what does not change what it computes.
    for family in ("bert", "distilbert", "roberta", "llama"):
        yield family, {"chunk_size_feed_forward": 0, "is_encoder_decoder": True, "use_cache": False, "output_attentions": True,
                       "output_hidden_states": True, "torch_dtype": "bfloat16", "pruned_heads": {"0": [1]}, "sliding_window": 2,
                       "layer_types": ["full_attention"] * (3 if family == "distilbert" else 2), "label2id": {"a": 1, "b": 0},
                       "id2label": {"0": 0, "1": 1}, "eos_token_id": [1, 2], "bos_token_id": None, "gradient_checkpointing": True,
                       "initializer_range": 0.7, "auto_map": {"AutoModel": "a.b"}, "extra": float("nan"), "more": float("-inf"),
                       "quantization_config": None}, [], None
        yield family, {"tie_word_embeddings": family == "llama"}, [], None
        yield family, {"per_layer_config": {"1": {"intermediate_size": 7}}}, [], "field per_layer_config"
        yield family, {"vocab_size": 97}, [], "(97, 32)"
    yield "bert", {"chunk_size_feed_forward": 1}, [], None
    yield "distilbert", {"is_decoder": True, "sinusoidal_pos_embds": True, "tie_weights_": True, "layer_norm_eps": 0.5}, [], None
    yield "llama", {"is_decoder": True, "pretraining_tp": 4, "attention_dropout": None, "logits_scaling": 8, "head_dim": None}, [], None

    # What it looks at.
    for family in ("bert", "roberta"):
        yield family, {"num_attention_heads": 2, "layer_norm_eps": 1e-3}, [], None
        yield family, {"is_decoder": True}, [], "field is_decoder"
        yield family, {"add_cross_attention": True}, [], "field add_cross_attention"
        yield family, {"position_embedding_type": "relative_key"}, [], "field position_embedding_type"
    yield "bert", {"num_attention_heads": None}, [], "field num_attention_heads"
    yield "bert", {"hidden_size": 32.0}, [], "field hidden_size"
    yield "bert", {"id2label": {"0": "a", "00": "b"}}, [], "field id2label"
    yield "roberta", {"pad_token_id": 5}, [], None
    yield "roberta", {"pad_token_id": -1}, [], None
    yield "roberta", {"pad_token_id": None}, [], "field pad_token_id"
    yield "distilbert", {"num_attention_heads": 2}, [], None
    yield "distilbert", {"num_hidden_layers": 2}, [], None
    yield "distilbert", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8}, ["dim", "n_layers", "n_heads"], None
    yield "llama", {"num_key_value_heads": None}, [], "k_proj"
    yield "llama", {"rms_norm_eps": 1e-2}, [], None
    yield "llama", {}, ["rms_norm_eps", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "rope_parameters"], None

    # Rotary positions.
    for fields in ({"rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16, "rope_theta": 100.0},
                   {"rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "o"}}, {"rope_scaling": LINEAR},
                   {"rope_scaling": LINEAR, "rope_parameters": None, "rope_theta": 100}, {"rope_scaling": dict(LINEAR, rope_type="default")},
                   {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
                   {"rope_scaling": {}, "rope_parameters": dict(LINEAR, rope_theta=50.0), "rope_theta": 7.0},
                   {"rope_parameters": LINEAR, "rope_theta": 300.0}, {"rope_scaling": dict(LINEAR, factor=0.5, beta_fast=32)},
                   {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 9},
                   {"rope_scaling": {"type": "dynamic", "factor": 3.7, "original_max_position_embeddings": 4}, "rope_theta": 500.0},
                   {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 60.0}, "original_max_position_embeddings": 4},
                   {"rope_scaling": {"type": "default", "factor": 9.0}, "partial_rotary_factor": 1.0}):
        yield "llama", fields, [], None
    for fields, what in (({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "field rope_scaling.rope_type"),
                         ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1] * 4, "long_factor": [2] * 4}},
                          "field rope_parameters.rope_type"),
                         ({"rope_scaling": {"type": "mrope"}}, "'mrope'"), ({"rope_scaling": {"type": "linear"}}, "field factor"),
                         ({"rope_scaling": {"type": "dynamic"}}, "field factor"), ({"rope_theta": float("inf"), "rope_parameters": None},
                                                                                  "field rope_theta"),
                         ({"partial_rotary_factor": 0.5}, "field partial_rotary_factor"),
                         ({"rope_scaling": dict(LINEAR, partial_rotary_factor=0.5)}, "field partial_rotary_factor")):
        yield "llama", fields, [], what


def last_state(family, config, directory):
    source = MODELS / family
    cases = json.loads((source / "cases.json").read_text())
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).double().eval()
    row = max(range(len(cases["lengths"])), key=lambda i: cases["lengths"][i])
    types = {"token_type_ids": torch.tensor([cases["token_type_ids"][row]])} if family == "bert" else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([cases["input_ids"][row]]), **types).last_hidden_state[0, -1].tolist()


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    written = []
    for family, fields, drop, refused in entries():
        config = json.loads((MODELS / family / "config.json").read_text())
        for name in drop:
            config.pop(name, None)
        config.update(fields)
        entry = {"family": family, "set": fields, "drop": drop}
        if refused is not None:
            entry["refused"] = refused
        else:
            with tempfile.TemporaryDirectory() as directory:
                entry["last"] = last_state(family, config, pathlib.Path(directory))
        written.append(entry)
    sys.stdout.write("[" + ",\n".join(json.dumps(entry) for entry in written) + "]\n")


main()
