# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/safetensors: what the Python package writes, and what it reads.

python.safetensors   written by safetensors.torch: every dtype that torch has, a scalar, an empty tensor, metadata.
written.safetensors  laid out by hand as fedlora::safetensors_bytes must write it, and checked here to load in Python.
"""
import json
import math
import pathlib
import struct

import torch
from safetensors import safe_open
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent / "safetensors"
here.mkdir(exist_ok=True)

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}

# Sixths are not exact in any format, so that rounding shows; the last value is subnormal in F16.
values = torch.tensor([[0.0, -1 / 6, 2 / 6], [-3 / 6, 1234.5, 2.0**-20]], dtype=torch.float64)
tensors = {}
for name, dtype in DTYPES.items():
    if dtype.is_floating_point and not name.startswith("F8"):
        tensors[name] = values.to(dtype)
    elif name == "BOOL":
        tensors[name] = torch.tensor([True, False, True])
    else:
        size = torch.empty(0, dtype=dtype).element_size()
        tensors[name] = torch.arange(3 * size, dtype=torch.uint8).view(dtype)
tensors["scalar"] = torch.tensor(2.5, dtype=torch.float32)
tensors["empty"] = torch.zeros((0, 4), dtype=torch.float32)
save_file(tensors, here / "python.safetensors", metadata={"format": "pt", "naïve \"key\"": "line\nbreak"})

# name, dtype, shape, bytes: not sorted, and after three booleans nothing is aligned.
written = [
    ("z.weight", "F32", [2, 3], struct.pack("<6f", 0.0, 1.0, -2.0, 3.5, math.inf, 2.0**-140)),
    ("mask \"é\"", "BOOL", [3], b"\x01\x00\x01"),
    ("a", "F64", [], struct.pack("<d", 1 / 3)),
    ("empty", "I64", [0, 5], b""),
    ("half", "BF16", [1, 2], struct.pack("<2H", 0x3F80, 0xC000)),
]
for metadata, file in [({"b": "tab\there", "a": "1"}, "written.safetensors"), ({}, "written_plain.safetensors")]:
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    for name, dtype, shape, contents in written:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(contents)]}
        data += contents
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    (here / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
    with safe_open(here / file, "pt") as loaded:
        assert (loaded.metadata() or {}) == metadata
        assert set(loaded.keys()) == {name for name, *_ in written}
        for name, dtype, shape, contents in written:
            tensor = loaded.get_tensor(name)
            assert tensor.dtype == DTYPES[dtype] and list(tensor.shape) == shape, name
            assert tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == contents, name
