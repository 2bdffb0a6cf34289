#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Halves a safetensors file: F32 tensors become F16, others stay as they are.    f16.py IN.safetensors OUT.safetensors"""

import array
import json
import math
import struct
import sys

BLOCK = 1 << 16  # values at a time


def halves(source, count):
    """The F16 bytes of `count` float32 values from `source`."""
    for start in range(0, count, BLOCK):
        values = array.array("f")
        values.fromfile(source, min(BLOCK, count - start))
        if sys.byteorder == "big":
            values.byteswap()
        yield struct.pack(f"<{len(values)}e", *values)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], "rb") as source:
        (size,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(size))
        begin = 8 + size
        order = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
        written, offset = {}, 0
        if "__metadata__" in header:
            written["__metadata__"] = header["__metadata__"]
        for name in order:
            tensor = header[name]
            first, last = tensor["data_offsets"]
            length = (last - first) // 2 if tensor["dtype"] == "F32" else last - first
            dtype = "F16" if tensor["dtype"] == "F32" else tensor["dtype"]
            written[name] = {"dtype": dtype, "shape": tensor["shape"], "data_offsets": [offset, offset + length]}
            offset += length
        text = json.dumps(written, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(sys.argv[2], "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                tensor = header[name]
                first, last = tensor["data_offsets"]
                source.seek(begin + first)
                if tensor["dtype"] != "F32":
                    out.write(source.read(last - first))
                    continue
                try:
                    for block in halves(source, math.prod(tensor["shape"])):
                        out.write(block)
                except OverflowError:
                    sys.exit(f"f16.py: {name} holds numbers beyond 65504")
    return 0


if __name__ == "__main__":
    sys.exit(main())
