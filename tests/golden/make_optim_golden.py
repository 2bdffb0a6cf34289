# SPDX-License-Identifier: Apache-2.0
"""Writes optim.json: five steps of torch's AdamW and SGD, clipped gradient norms, and transformers' schedules, in float64.

    python make_optim_golden.py > optim.json
"""
import json
import math

import torch
from transformers import get_scheduler

SIZE, STEPS = 11, 5
generator = torch.Generator().manual_seed(20)
start = torch.randn(SIZE, dtype=torch.float64, generator=generator)
gradients = torch.randn(STEPS, SIZE, dtype=torch.float64, generator=generator)
gradients[:, 3] = 0.0  # a number that never gets a gradient still decays
gradients[2, 5] = 1e-9
rates = [1.0, 0.5, 0.25, 1.5, 0.0]  # a schedule's factors

CASES = [
    ("adamw", {"lr": 1e-3}),
    ("adamw", {"lr": 0.05, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.05, "beta1": 0.3, "weight_decay": 0.0}),
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.2}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
]


def run(name, options, dtype):
    w = torch.nn.Parameter(start.clone().to(dtype))
    options = dict(options)
    if name == "adamw":
        betas = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
        optimizer = torch.optim.AdamW([w], betas=betas, **options)
    else:
        optimizer = torch.optim.SGD([w], **options)
    after = []
    for gradient, rate in zip(gradients, rates):
        for group in optimizer.param_groups:
            group["lr"] = options["lr"] * rate
        w.grad = gradient.to(dtype)
        optimizer.step()
        after.append(w.detach().double().tolist())
    return after


optimizers = [
    {"optimizer": name, "options": options, "float64": run(name, options, torch.float64),
     "float32": run(name, options, torch.float32)} for name, options in CASES
]

clips = []
for max_norm in (0.5, 3.0, 100.0):
    w = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    w.grad = gradients[0].clone()
    norm = torch.nn.utils.clip_grad_norm_([w], max_norm)
    clips.append({"max_norm": max_norm, "norm": norm.item(), "clipped": w.grad.tolist()})

schedules = []
for name, shape in (("constant_with_warmup", "constant"), ("linear", "linear"), ("cosine", "cosine")):
    for warmup, total in ((0.0, 7), (0.25, 10), (0.06, 20)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=math.ceil(warmup * total), num_training_steps=total)
        factors = []
        for _ in range(total):
            factors.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        schedules.append({"shape": shape, "warmup": warmup, "total": total, "factors": factors})

print(json.dumps({"start": start.tolist(), "gradients": gradients.tolist(), "rates": rates, "optimizers": optimizers,
                  "clips": clips, "schedules": schedules}, indent=1))
