#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the linear layers of a Transformer block with LoRA should cost on a GPU: a model.

    model.py [--device h100|h200] [--copy TB/s] [--flops TFLOP/s] [--launch us] [--rows M] [--rank R] [--dropout P] [--parts]
    model.py lora.json        beside what fedlora-bench-lora-cuda measured (merge_json.py's output, or one --benchmark_out)
    model.py --ceilings ceilings.json [lora.json]        with the rates that fedlora-bench-ceilings-cuda measured

Prints forward + backward of all linear layers of a block (benchmarks/lora/cases.hpp) over the bare products, in bf16.

The model. A pass is a row of launches, one after the other, and each takes `launch` + the time of its work:

  product   M x N x K on tensor cores: whole waves of tiles over the multiprocessors, K in steps of 64; the quickest of
            the --tiles (rows x columns : rate over --flops), but never less than its operands once at the copy rate.
            cuBLAS's choices are its own: that is the first thing a measurement corrects.
  others    bytes of device memory over a rate. A, B, S, dS are read from the L2 cache and count where they are written
            (S, dS: 2 M r) or summed. Waves of their blocks do not count.

Bytes (M rows, K = in, N = out, R = ranks of a group side by side, each rounded up to 8; 2 bytes an element, partials 4):

  shrink        2 M K once for a group, + 2 M R written; at M > 4224 without partials, which the model does not have
  copy of S     2 M r read, 2 M r written; a launch for each part
  fill of W+    2 N K read, 2 N (K + R) written; a launch for each part and direction
  expand        4 M N in forward (a launch for each part), 4 M K in backward (one for a group)
  pass over dY  2 M N, + partials of dS 4 M r N / 256 written + partials of dB 4 runs N r written
  sum of dS     the partials read, 2 M r written; for ranks above 32 no partials, and 2 M N + 2 M r, a shrink of dY
  pass over X   2 M K once for a group, + partials of dA 4 runs r K written, for each term
  sum of dA, dB the partials read, 8 r (N + K) read and written: gradients are added to

`runs` as PassCuts (low_rank_backward.cuh) makes them. Which groups take S along in a product is `augmented_is_right` and
the slot of 64 MiB (linear.cuh), for ranks of 48 together, or 64 with W+ kept: as it is, in forward, down of 2048/8192 and
gate, up and down of 4096/14336 do not. A group of more than 128 ranks takes X from the L2 cache for the second 128.

Rates: --copy is a device's own copy, bytes read + written. What is bound by memory reaches --share of it. As it is, the
shrink reaches --shrink and the passes --pass TB/s whatever the memory (they are bound by instructions and by latency).
With dropout a mask of M K bits is drawn for each term in the shrink, in the pass over X and in the expand of backward, at
--draws elements a second beside the bytes: what takes longer counts. Those three numbers are read off the compiled code,
not measured (15 instructions an element at a third of the issue rate): fedlora-bench-ceilings-cuda measures the first two.
--ceilings takes them from what it wrote, and --copy, --flops and --launch too: the launches and sums in a measured time, which
the model adds by itself, are taken off.

Rows of the table; each has what the rows above it have, and p is 0 but in the second:

  as it is                       what the library does: the variant `fused`
  kernels at 85 %                shrink and passes reach --share of the copy
  W+ kept, S and dS in place     each W lies in a W+ for good: no fill (one launch a step writes A and B into all of
                                 them: 4 r (N + K) bytes, no launch of its own here), no copy, no expand anywhere
  one product for a group        q, k, v and gate, up: one product each, forward (N summed) and backward (inner N summed)
  S from the producers of X      no shrink; 2 M R are written by what writes X
  dS, dB from ... dY             no pass over dY and no sum of dS; partials of dB are written, and summed with dA's
  dA beside later products       the pass over X on another branch: no launch in the way, 30 % of its time not hidden

`floor` is what no order of launches can pass: LoRA's operations added to the bare ones, and A, B, their gradients, S, dS
and X (once, for dA) moved at the copy rate at the same time as operations run. `two passes` adds X (for S) and dY, read
again, to products that are a step longer, all at the copy rate and without launches.

`target` is the goal at M 8192 and r 16: 1.13, 1.09, 1.04, 1.02 on an H200. It assumes no launches and no tiles, products a step
of 64 longer (a group as one), and X read once at the copy rate. On another device the part that is bytes costs
4.3 / --copy times as much, the longer products the same; a measured copy does not move it.
"""

import argparse
import json
import math
import re
import statistics
import sys

DEVICES = {"h100": 3.0, "h200": 4.3}  # TB/s of a copy on the device
RATES = {"flops": 790.0, "launch": 1.8, "shrink": 1.25, "passes": 2.05}  # TFLOP/s in bf16, us, TB/s, TB/s; of either
BLOCKS = ["768/3072", "1024/4096", "2048/8192", "4096/14336"]
TARGET = dict(zip(BLOCKS, [1.13, 1.09, 1.04, 1.02]))  # at H200's copy
SLOT = 64 << 20
SUM_BLOCKS = 264  # enough_blocks of checks.cuh


def device_of(name):
    """The preset of a GPU's name, or None."""
    return next((device for device in DEVICES if device in name.lower()), None)


def layers_of(block):
    """[(in, [out, …]), …]: the groups of layers that read the same x."""
    hidden, intermediate = (int(size) for size in block.split("/"))
    kv, gated = {2048: (512, True), 4096: (1024, True)}.get(hidden, (hidden, False))
    wide = [intermediate] * (2 if gated else 1)
    return [(hidden, [hidden, kv, kv]), (hidden, [hidden]), (hidden, wide), (intermediate, [hidden])]


def up(value, unit):
    return -(-value // unit) * unit


class Model:
    """Times in us."""

    def __init__(self, copy=DEVICES["h100"], flops=RATES["flops"], launch=RATES["launch"], rows=8192, rank=16, dropout=0.1,
                 share=0.85, shrink=RATES["shrink"], passes=RATES["passes"], draws=0.7, hidden=0.7, multiprocessors=132,
                 tiles=((128, 256, 1.0), (128, 128, 0.88)), goal_copy=None):
        self.copy, self.flops, self.launch, self.m, self.r, self.p = copy, flops, launch, rows, rank, dropout
        self.share, self.shrink, self.passes, self.draws, self.hidden = share, shrink, passes, draws, hidden
        self.multiprocessors, self.tiles = multiprocessors, tiles
        self.padded = up(rank, 8)
        self.goal_copy = goal_copy or copy

    # --- launches ---
    def bytes_at(self, count, rate):
        return count / rate * 1e-6

    def good(self):
        return self.share * self.copy

    def masks(self, k, outs, dropped):
        """Of all terms, drawn once."""
        return self.m * k * len(outs) / self.draws * 1e-6 if dropped else 0.0

    def product(self, n, k):
        """(M, N, K) without its launch."""
        def of_tile(rows, cols, rate):
            waves = math.ceil(math.ceil(self.m / rows) * math.ceil(n / cols) / self.multiprocessors)
            return waves * self.multiprocessors * 2 * rows * cols * up(k, 64) / (self.flops * rate) * 1e-6
        moved = self.bytes_at(2 * (self.m * k + n * k + self.m * n), self.copy)
        return max(moved, min(of_tile(*tile) for tile in self.tiles))

    def runs(self, width, slab, tiles):
        """PassCuts."""
        row_tiles = math.ceil(self.m / 64)
        wanted = math.ceil(SUM_BLOCKS / max(1, math.ceil(width / slab)))
        return math.ceil(row_tiles / max(1, math.ceil(row_tiles / wanted), tiles))

    # --- the bare products ---
    def base(self, block):
        return sum(self.product(n, k) + self.product(k, n) + 2 * self.launch for k, outs in layers_of(block) for n in outs)

    # --- with low-rank terms ---
    def takes_along(self, forward, k, n, columns, dropped, kept):
        if columns > (64 if kept else 48) or (dropped and not forward):
            return False
        if kept:
            return True
        copied = k if forward else n
        held = 2 * n * (k + columns) if forward else 2 * (n + columns) * k
        return columns * self.m + copied * 367 < 367 * self.m and held <= SLOT

    def backward_parts(self, k, outs, rates, dropped, steps):
        """(what, us, launches) of a group's adapters on the way back, without products and expands."""
        m, r = self.m, self.r
        slab = 256 if self.padded <= 16 else 128 if self.padded <= 64 else 64
        runs = self.runs(sum(math.ceil(n / slab) for n in outs) * slab, slab, self.padded // 8)
        projects = self.padded <= 32  # otherwise dS comes from a shrink of dY, which has no partials
        of_ds = 4 * m * self.padded * sum(math.ceil(n / slab) for n in outs) if projects else 0
        of_db = 4 * runs * self.padded * sum(outs)
        all_tiles = self.padded // 8 * len(outs)
        slab_x = 256 if all_tiles <= 2 else 128 if all_tiles <= 8 else 64
        of_da = 4 * self.runs(math.ceil(k / slab_x) * slab_x, slab_x, all_tiles) * r * k * len(outs)
        gradients = 8 * r * (sum(outs) + k * len(outs))
        parts = []
        if "dS" not in steps_of(steps):
            parts.append(("pass over dY", self.bytes_at(2 * m * sum(outs) + of_ds + of_db, rates["pass"]), 1))
            written = 2 * m * self.padded * len(outs)
            if projects:
                parts.append(("sum of dS", self.bytes_at(of_ds + written, self.good()), 1))
            else:
                parts.append(("shrink of dY", self.bytes_at(2 * m * sum(outs) + written, rates["shrink"]), 1))
        else:
            parts.append(("written by producers", self.bytes_at(2 * m * self.padded * len(outs) + of_db, self.good()), 0))
        over_x = max(self.bytes_at(2 * m * k + of_da, rates["pass"]), self.masks(k, outs, dropped))
        if "beside" in steps_of(steps):
            parts.append(("pass over X, not hidden", (1 - self.hidden) * over_x, 0))
        else:
            parts.append(("pass over X", over_x, 1))
        parts.append(("sum of dA, dB", self.bytes_at(of_db + of_da + gradients, self.good()), 1))
        return parts

    def library(self, block, dropped=False, steps=0, slot=True):
        """The variants `fused` (steps 0), `expanded` (no slot), and what is to come (steps 1 to 6): [(what, us, launches)]."""
        m, has = self.m, steps_of(steps)
        rates = {"shrink": min(self.shrink, self.good()), "pass": min(self.passes, self.good())}
        if steps >= 1:
            rates = {"shrink": self.good(), "pass": self.good()}
        kept, one = "kept" in has, "one" in has
        parts = []
        for k, outs in layers_of(block):
            columns = self.padded * len(outs)
            # forward
            if "S" in has:
                parts.append(("written by producers", self.bytes_at(2 * m * columns, self.good()), 0))
            else:
                read = self.bytes_at(2 * m * k + 2 * m * columns, rates["shrink"])
                parts.append(("shrink", max(read, self.masks(k, outs, dropped)), 1))
            along = (slot or kept) and all(self.takes_along(True, k, n, columns, dropped, kept) for n in outs)
            for n in outs if not one else [sum(outs)]:
                if along and not kept:
                    parts.append(("copy of S", self.bytes_at(2 * m * self.r + 2 * m * self.padded, self.good()), 1))
                    parts.append(("fill of W+", self.bytes_at(2 * n * k + 2 * n * (k + columns), self.good()), 1))
                parts.append(("product", self.product(n, k + (columns if along else 0)), 1))
                if not along:
                    parts.append(("expand", self.bytes_at(4 * m * n, self.good()), 1))
            # backward
            parts += self.backward_parts(k, outs, rates, dropped, steps)
            adds = False
            for n in outs if not one else [sum(outs)]:
                width = self.padded if not one else columns
                behind = (slot or kept) and self.takes_along(False, k, n, width, dropped, kept)
                if behind and not kept:
                    parts.append(("fill of W+", self.bytes_at(2 * n * k + 2 * (n + width) * k, self.good()), 1))
                parts.append(("product", self.product(k, n + (width if behind else 0)), 1))
                adds = adds or not behind
            if adds:
                parts.append(("expand", max(self.bytes_at(4 * m * k, self.good()), self.masks(k, outs, dropped)), 1))
            if kept:
                parts.append(("A, B into W+", self.bytes_at(4 * self.padded * (sum(outs) + k * len(outs)), self.good()), 0))
        return parts

    def augmented(self, block, dropped=False):
        """The variant of that name: W+ kept for each part, its factors written again in every pass."""
        parts = []
        rates = {"shrink": min(self.shrink, self.good()), "pass": min(self.passes, self.good())}
        for k, outs in layers_of(block):
            columns = self.padded * len(outs)
            read = self.bytes_at(2 * self.m * k + 2 * self.m * columns, rates["shrink"])
            parts.append(("shrink", max(read, self.masks(k, outs, dropped)), 1))
            for n in outs:
                parts.append(("A, B into W+", self.bytes_at(2 * n * columns, self.good()), 1))
                parts.append(("product", self.product(n, k + columns), 1))
            parts += self.backward_parts(k, outs, rates, dropped, 0)
            for n in outs:
                if not dropped:
                    parts.append(("A, B into W+", self.bytes_at(2 * k * self.padded, self.good()), 1))
                parts.append(("product", self.product(k, n + (0 if dropped else self.padded)), 1))
            if dropped:
                parts.append(("expand", max(self.bytes_at(4 * self.m * k, self.good()), self.masks(k, outs, dropped)), 1))
        return parts

    def plain(self, block, dropped=False):
        """The variant of that name: cuBLAS alone, each thin product bound by memory."""
        m, parts = self.m, []
        for k, outs in layers_of(block):
            for n in outs:
                parts += [("product", self.product(n, k) + self.product(k, n), 2)]
                thin = [2 * m * k, 4 * m * n, 2 * m * n, 2 * m * n, 2 * m * k]  # S; Y; dS; dB; dA
                thin += [4 * m * k, 4 * m * k, 2 * m * k, 6 * m * k] if dropped else [4 * m * k]  # x again, twice; dS A; dX
                parts += [("thin products", self.bytes_at(count, self.good()), 1) for count in thin]
        return parts

    def ratio(self, block, parts):
        return sum(us + launches * self.launch for _, us, launches in parts) / self.base(block)

    # --- limits ---
    def longer_products(self, block, step):
        """What products that are longer by `step` for each group cost, over bare ones; no tiles, no launches."""
        more = sum(step(k, outs) * (sum(outs) + k) for k, outs in layers_of(block))
        return more / sum(2 * k * sum(outs) for k, outs in layers_of(block))

    def least(self, block):
        """us of the bare products' operations alone."""
        return sum(4 * self.m * k * sum(outs) for k, outs in layers_of(block)) / self.flops * 1e-6

    def floor(self, block):
        groups = layers_of(block)
        work = sum(2 * self.m * self.r * 3 * (k * len(outs) + sum(outs)) for k, outs in groups) / self.flops * 1e-6
        moved = sum(2 * self.m * k + 2 * self.m * (k + sum(outs)) * 2 + 4 * k * sum(outs)
                    + self.r * (12 * (k * len(outs) + sum(outs)) + 8 * self.m * len(outs)) for k, outs in groups)
        return max(self.least(block) + work, self.bytes_at(moved, self.copy)) / self.least(block)

    def two_passes(self, block):
        groups = layers_of(block)
        again = self.bytes_at(sum(2 * self.m * (2 * k + sum(outs)) for k, outs in groups), self.copy) / self.least(block)
        return 1 + self.longer_products(block, lambda k, outs: up(self.padded * len(outs), 64)) + again

    def target(self, block):
        if block not in TARGET or (self.m, self.r) != (8192, 16):
            return None
        longer = self.longer_products(block, lambda k, outs: up(self.padded * len(outs), 64))
        return 1 + longer + max(0.0, TARGET[block] - 1 - longer) * DEVICES["h200"] / self.goal_copy

    def variant(self, name, block, dropped):
        """The parts of a variant of benchmarks/lora/variants.cuh; None for one that is not there."""
        if name == "fused":
            return self.library(block, dropped)
        if name == "expanded":
            return self.library(block, dropped, slot=False)
        if name == "augmented":
            return self.augmented(block, dropped)
        return self.plain(block, dropped) if name == "plain" else None


STEPS = ["85", "kept", "one", "S", "dS", "beside"]


def steps_of(count):
    return set(STEPS[:count])


def target(block, device_name):
    """The goal of a block on a device of that name; None where there is none."""
    device = device_of(device_name or "")
    return Model(copy=DEVICES[device]).target(block) if device else None


def rows_of_table(model):
    """(name, function of a block that gives its ratio)."""
    def of(steps, dropped=False):
        return lambda block: model.ratio(block, model.library(block, dropped, steps))
    return [
        ("as it is, p 0", of(0)),
        (f"as it is, p {model.p:g}", of(0, model.p > 0)),
        (f"kernels at {100 * model.share:.0f} % of the memory's rate", of(1)),
        ("+ W+ kept, S and dS in place", of(2)),
        ("+ q, k, v and gate, up as one product", of(3)),
        ("+ S from the producers of X", of(4)),
        ("+ dS, dB from the producers of dY", of(5)),
        ("+ dA beside later products", of(6)),
        ("target", model.target),
        ("two passes, nothing else", model.two_passes),
        ("floor", model.floor),
    ]


def print_table(rows, blocks):
    print("| | " + " | ".join(blocks) + " |")
    print("|---|" + "---:|" * len(blocks))
    for name, value in rows:
        values = [value(block) for block in blocks]
        print(f"| {name} | " + " | ".join("" if each is None else f"{each:.2f}" for each in values) + " |")


FEWEST_ROWS = 4224  # with no more than these the shrink is split over columns, which the model does not have


def measured_in(path):
    """(device, {(variant, p, state): {block: ratio}}, rows, ranks) of a file that the bench wrote."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    found, sizes = {}, set()
    for entry in content.get("benchmarks", []):
        fields = entry.get("name", "").split("/")
        if entry.get("error_occurred") or entry.get("run_type") == "aggregate" or "ratio" not in entry or len(fields) < 8:
            continue
        operation, _, variant = fields[0].partition("_")
        if operation != "block" or variant == "base" or fields[6] != "bf16" or int(fields[1]) <= FEWEST_ROWS:
            continue
        sizes.add((int(fields[1]), int(fields[4][1:])))
        key = (int(fields[1]), int(fields[4][1:]), variant, fields[5][1:], fields[7])
        found.setdefault(key, {})[fields[2] + "/" + fields[3]] = (entry["ratio"], entry.get("launches"))
    return content.get("context", {}).get("device", ""), found, sorted(sizes)


def ceilings_in(path):
    """({rate: value}, device) of a file that fedlora-bench-ceilings-cuda wrote; what it did not measure is not there.

    Rates of kernels are the median over widths, from cold layers."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    values = {each["what"]: each["value"] for each in content["measurements"]
              if isinstance(each.get("value"), (int, float)) and 0 < each["value"] < math.inf}
    found = {}
    for rate, what in (("copy", "copy by cudaMemcpyAsync, 1 GiB"), ("launch", "a launch in a graph of 465")):
        if what in values:
            found[rate] = values[what]
    model = Model(**found, flops=1.0)
    assert (model.m, model.r) == (8192, 16)  # as those below
    if "bf16 product of 8192 cubed" in values:
        time = 2 * 8192**3 / values["bf16 product of 8192 cubed"] * 1e-6 - model.launch
        if time > 0:
            found["flops"] = model.product(8192, 8192) / time
    shrinks, passes = [], []
    for what, value in values.items():
        size = re.search(r"^(shrink of 1 term|adapter backward), M 8192, width (\d+), cold$", what)
        if size and size[1] == "adapter backward":
            width = int(size[2])
            parts = model.backward_parts(width, [width], {"pass": 1.0}, False, 0)
            others = sum(us for name, us, _ in parts if not name.startswith("pass")) + len(parts) * model.launch
            time = 4 * model.m * width / value * 1e-3
            if time > others:
                passes.append(sum(us for name, us, _ in parts if name.startswith("pass")) / (time - others))
        elif size:
            time = 2 * model.m * int(size[2]) / value * 1e-3 - model.launch
            if time > 0:
                shrinks.append((2 * model.m * int(size[2]) + 2 * model.m * model.padded) / time * 1e-6)
    found.update({rate: statistics.median(each) for rate, each in (("shrink", shrinks), ("passes", passes)) if each})
    return found, str(content.get("context", {}).get("device", ""))


def tile(text):
    size, _, rate = text.partition(":")
    rows, _, cols = size.partition("x")
    return int(rows), int(cols), float(rate or 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", help="what fedlora-bench-lora-cuda wrote")
    parser.add_argument("--device", choices=sorted(DEVICES), help="sets --copy, whatever --ceilings says; h100, or the device of the file")
    parser.add_argument("--copy", type=float, metavar="TB/s", help="3.0 for h100, 4.3 for h200")
    parser.add_argument("--flops", type=float, metavar="TFLOP/s", help=f"bf16 products of full waves ({RATES['flops']:g})")
    parser.add_argument("--launch", type=float, metavar="us", help=f"of each launch in a graph ({RATES['launch']:g})")
    parser.add_argument("--rows", type=int, default=8192, metavar="M", help="rows of x (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, metavar="R", help="(%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="P", help="of the second row; masks cost the same at any P")
    parser.add_argument("--share", type=float, default=0.85, help="of the copy's rate, for what memory bounds (%(default)s)")
    parser.add_argument("--shrink", type=float, metavar="TB/s", help=f"of the shrink as it is ({RATES['shrink']:g})")
    parser.add_argument("--pass", type=float, metavar="TB/s", dest="passes",
                        help=f"of the passes as they are ({RATES['passes']:g})")
    parser.add_argument("--ceilings", metavar="FILE", help="measured rates, for those that are not given")
    parser.add_argument("--draws", type=float, default=0.7, metavar="1e12/s", help="elements of masks (%(default)s)")
    parser.add_argument("--tiles", type=tile, nargs="+", default=[(128, 256, 1.0), (128, 128, 0.88)], metavar="RxC:RATE",
                        help="of products (128x256:1 128x128:0.88)")
    parser.add_argument("--parts", action="store_true", help="also what each part takes as it is, p 0")
    arguments = parser.parse_args()
    try:
        measured, their_device = ceilings_in(arguments.ceilings) if arguments.ceilings else ({}, "")
    except OSError as error:
        sys.exit(f"model.py: {error}")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        sys.exit(f"model.py: {arguments.ceilings}: not what fedlora-bench-ceilings-cuda writes: {error!r}")
    if arguments.device:
        measured.pop("copy", None)
    measured = {rate: value for rate, value in measured.items() if getattr(arguments, rate) is None}
    for rate in ["copy", *RATES]:
        if getattr(arguments, rate) is None:
            setattr(arguments, rate, measured.get(rate, RATES.get(rate)))
    positive = [arguments.flops, arguments.rows, arguments.rank, arguments.share, arguments.shrink, arguments.passes,
                arguments.draws] + [arguments.copy] * (arguments.copy is not None)
    if min(positive) <= 0 or arguments.launch < 0:
        parser.error("rates and sizes must be above 0")
    if arguments.rows <= FEWEST_ROWS:
        parser.error("--rows: more than 4224; below, the shrink is split over columns, which the model does not have")
    if arguments.rank > 128:
        parser.error("the kernels take ranks up to 128")
    try:
        device, found, sizes = measured_in(arguments.json) if arguments.json else ("", {}, [])
    except (OSError, ValueError, AttributeError, KeyError) as error:
        sys.exit(f"model.py: {arguments.json}: {error}")
    if device and their_device and device != their_device:
        sys.exit(f"model.py: {arguments.ceilings} was measured on {their_device}, {arguments.json} on {device}")
    known = arguments.device or device_of(device) or device_of(their_device)
    copy = DEVICES[known or "h100"] if arguments.copy is None else arguments.copy
    goal_copy = DEVICES[known] if known and arguments.ceilings else None  # a goal does not move with what is measured

    def model_for(rows, rank):
        return Model(copy, arguments.flops, arguments.launch, rows, rank, arguments.dropout, arguments.share, arguments.shrink,
                     arguments.passes, arguments.draws, tiles=tuple(arguments.tiles), goal_copy=goal_copy)

    rates = (f"copy {copy:g} TB/s, {arguments.flops:g} TFLOP/s, {arguments.launch:g} us a launch, shrink {arguments.shrink:g} "
             f"and passes {arguments.passes:g} TB/s")
    if arguments.ceilings:
        rates += f" (measured: {', '.join(measured) or 'none'})"
    if not arguments.json:
        model = model_for(arguments.rows, arguments.rank)
        print(f"model: M {model.m}, r {model.r}, bf16, {rates}\n")
        print_table(rows_of_table(model), BLOCKS)
        if arguments.parts:
            names = list(dict.fromkeys(name for block in BLOCKS for name, _, _ in model.library(block)))
            print("\nmodel, us without launches, as it is, p 0\n")
            taken = [(name, lambda block, name=name: sum(us for what, us, _ in model.library(block) if what == name)) for name in names]
            taken.append(("launches", lambda block: sum(count for _, _, count in model.library(block))))
            print_table(taken + [("bare, with its launches", model.base)], BLOCKS)
        return 0
    if not found:
        sys.exit(f"model.py: {arguments.json} holds no blocks in bf16")
    for rows, rank in sizes:
        model = model_for(rows, rank)
        of_size = {key[2:]: values for key, values in found.items() if key[:2] == (rows, rank)}
        blocks = [block for block in BLOCKS if any(block in values for values in of_size.values())]
        print(f"M {rows}, r {rank}, bf16; model with {rates}; measured on {device or 'a device not named'}\n")
        table, notes = [], []
        for (variant, dropout, state), values in of_size.items():
            table.append((f"measured: {variant}, p {dropout}, {state}", lambda block, values=values: values.get(block, (None,))[0]))
            if model.variant(variant, blocks[0], float(dropout) > 0) is None:
                continue
            parts = {block: model.variant(variant, block, float(dropout) > 0) for block in blocks}
            table.append((f"model: {variant}, p {dropout}", lambda block, parts=parts: model.ratio(block, parts[block])))
            for block in blocks:
                launches = sum(count for _, _, count in parts[block])
                if values.get(block, (0, 0))[1] not in (None, 0, launches):
                    notes.append(f"{variant}, p {dropout}, {block}: {values[block][1]:g} launches, {launches} in the model")
        print_table(table + [("target", model.target)], blocks)
        print("\n" + "".join(note + "\n" for note in dict.fromkeys(notes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
