#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes activations.json: every function of transformers' ACT2FN that has no trained parameters, its values and slopes (autograd's)
in float64, at points that avoid the places where a slope jumps; `trained` names the others. Needs torch and transformers.

  python3 make_activation_golden.py > activations.json
"""
import json
import sys

import torch
from transformers.activations import ACT2FN

torch.manual_seed(7)
points = torch.cat([torch.linspace(-12, 12, 33) + 0.0625, torch.randn(31) * 3, torch.tensor([-60.0, -25.0, 25.0, 60.0])]).double()

table = {"x": points.tolist(), "functions": {}, "trained": []}
for name in ACT2FN:
    function = ACT2FN[name]
    if list(function.parameters()):
        table["trained"].append(name)
        continue
    x = points.clone().requires_grad_()
    value = function(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    table["functions"][name] = {"value": value.tolist(), "slope": slope.tolist()}
json.dump(table, sys.stdout)
sys.stdout.write("\n")
