# SPDX-License-Identifier: Apache-2.0
"""Float64 forms of what transformers computes in float32 whatever the model's dtype, and names shared by the scripts here.

transformers computes Llama's RMSNorm, its RoPE tables and the softmax of its eager attention in float32 even in a float64
model, which leaves errors near 1e-7. `use_float64_forms()` replaces the three by forms that stay in the dtype of their
input: in a float32 model nothing changes but rounding of the RoPE table.
"""

import re

import torch
from transformers.models.llama import modeling_llama


def _rms_norm(self, hidden_states):
    mean_square = hidden_states.square().mean(-1, keepdim=True)
    return self.weight * (hidden_states / torch.sqrt(mean_square + self.variance_epsilon))


def _rope_tables(self, x, position_ids):
    if self.rope_type != "default":
        raise NotImplementedError(f"no float64 form for rope_type {self.rope_type}")
    config = self.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    frequencies = config.rope_parameters["rope_theta"] ** -exponents
    angles = position_ids[..., None].to(torch.float64) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def use_float64_forms():
    """Patches transformers' Llama for the rest of this process. Models must be made with attn_implementation="eager"."""
    modeling_llama.LlamaRMSNorm.forward = _rms_norm
    modeling_llama.LlamaRotaryEmbedding.forward = _rope_tables
    modeling_llama.eager_attention_forward = _eager_attention


def peft_key(parameter_name):
    """The key under which PEFT saves a parameter of a PeftModel with one adapter called "default"."""
    return re.sub(r"\.(lora_[AB])\.default\.", r".\1.", parameter_name).replace(".modules_to_save.default.", ".")


def trainable(model):
    """The trainable parameters of a PeftModel by PEFT key, in the model's order."""
    return {peft_key(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def pad_rows(rows, pad, device=None):
    """Right-padded ids and the attention mask of ragged rows."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def causal_lm_losses(logits, ids, mask):
    """Next-token cross-entropy of every predicted token (a row of n tokens predicts n - 1), in the dtype of the logits."""
    keep = mask[:, 1:].bool()
    return torch.nn.functional.cross_entropy(logits[:, :-1][keep], ids[:, 1:][keep], reduction="none")
