#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several files that Google Benchmark wrote, as one; or what they say of blocks, one case on a line.

    merge_json.py FILE... > lora.json
    merge_json.py --ratios FILE...
"""

import json
import sys

import model  # beside this: the goals, of each device


def ratios(entries, device):
    """Lines 'what TAB ratios of all variants'; goals where `device` is one that has them."""
    cases = {}
    for entry in entries:
        if entry.get("error_occurred") or entry.get("run_type") == "aggregate" or "ratio" not in entry:
            continue
        if entry["name"].count("/") < 7:
            continue
        name, *sizes, _, _, dtype, last = entry["name"].split("/")[:8]
        operation, _, variant = name.partition("_")
        rank, dropout = entry["name"].split("/")[4:6]
        if operation != "block" or variant == "base":
            continue
        case = (sizes[1] + "/" + sizes[2], sizes[0], rank, dropout, dtype, last)
        cases.setdefault(case, {})[variant] = entry["ratio"]
    for (block, rows, rank, dropout, dtype, last), found in cases.items():
        goal = model.target(block, device) if (rows, rank, dropout, dtype, last) == ("8192", "r16", "p0", "bf16", "cold") else None
        goal = f" (goal: {goal:.2f})" if goal else ""
        print(f"block {block}, M {rows}, {rank}, {dropout}, {dtype}, {last}: time over bare products{goal}", end="\t")
        print(", ".join(f"{variant} {ratio:.3f}" for variant, ratio in found.items()))


def main():
    arguments = sys.argv[1:]
    only_ratios = arguments[:1] == ["--ratios"]
    files = arguments[1:] if only_ratios else arguments
    if not files:
        sys.exit(__doc__)
    merged = None
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError) as error:
            sys.exit(f"merge_json.py: {path}: {error}")
        if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
            sys.exit(f"merge_json.py: {path}: expected what --benchmark_out writes")
        if merged is None:
            merged = content
        else:
            merged["benchmarks"] += content["benchmarks"]
    if only_ratios:
        context = merged.get("context")
        ratios(merged["benchmarks"], context.get("device") if isinstance(context, dict) else None)
    else:
        json.dump(merged, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
