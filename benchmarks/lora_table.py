#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns what fedlora-bench-lora or fedlora-bench-lora-cuda wrote as JSON into a table, and into a picture of the ratio
against the hidden size where matplotlib is installed.

    fedlora-bench-lora-cuda --benchmark_out=lora.json --benchmark_out_format=json
    lora_table.py lora.json > lora.md
    lora_table.py lora.json --picture lora.svg > lora.md
"""

import argparse
import collections
import json
import re
import statistics
import sys

NAME = re.compile(
    r"(?P<op>[a-z]+)_(?P<variant>[^/]+)/(?P<m>\d+)/(?P<k>\d+)/(?P<n>\d+)/r(?P<r>\d+)/p(?P<p>[0-9.e-]+)"
    r"/(?P<dtype>[^/]+)/(?P<last>[^/]+)(/|$)"
)

Case = collections.namedtuple("Case", "dtype last op m k n r p")

NO_COUNTERS = {"family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads", "iterations"}

WHAT = {"block": "all linear layers of a block", "both": "forward + backward", "forward": "forward", "backward": "backward"}


class Results:
    """What the files hold: for each case, each variant's counters."""

    def __init__(self, paths):
        self.variants = []  # in the order of the files
        self.cases = {}
        self.context = {}
        self.failures = []
        runs = collections.defaultdict(list)
        for path in paths:
            try:
                with open(path, encoding="utf-8") as file:
                    content = json.load(file)
            except (OSError, ValueError) as error:
                sys.exit(f"lora_table.py: {path}: {error}")
            if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
                sys.exit(f"lora_table.py: {path}: expected what --benchmark_out writes, got something else")
            self.context = self.context or content.get("context", {})
            for entry in content.get("benchmarks", []):
                match = NAME.match(entry.get("name", ""))
                if match is None or entry.get("run_type") == "aggregate":
                    continue
                if entry.get("error_occurred"):
                    self.failures.append((entry["name"], entry.get("error_message", "")))
                    continue
                numbers = [int(match[field]) for field in "mknr"]
                if not all(isinstance(entry.get(key), (int, float)) and entry[key] > 0 for key in ("ratio", "base_s", "median_s")):
                    self.failures.append((entry["name"], "no ratio, base_s and median_s above 0"))
                    continue
                case = Case(match["dtype"], match["last"], match["op"], *numbers, float(match["p"]))
                runs[case, match["variant"]].append(entry)
        for (case, variant), entries in runs.items():
            if variant not in self.variants and variant != "base":
                self.variants.append(variant)
            numeric = [key for key, value in entries[0].items() if isinstance(value, (int, float))]
            self.cases.setdefault(case, {})[variant] = {
                key: statistics.median(entry[key] for entry in entries if key in entry) for key in numeric
            }

    def adapted(self):
        """The cases with low-rank terms."""
        return [case for case in self.cases if case.r > 0]

    def noise(self):
        """The ratios of the bare products to themselves."""
        return [found["base"]["ratio"] for found in self.cases.values() if "ratio" in found.get("base", {})]

    def values(self):
        """The counters that a table can show."""
        return sorted({key for found in self.cases.values() for counters in found.values() for key in counters} - NO_COUNTERS)


def base_rate(counters, unit):
    """Operations per second of the bare products."""
    return counters[unit] * counters["median_s"] / counters["base_s"] if unit in counters else None


def cell(value):
    if value is None:
        return ""
    return f"{value:.2f}" if 0.1 <= value < 100 or value == 0 else f"{value:.3g}" if value < 0.1 else f"{value:.0f}"


def lines_of_table(results, value):
    """Markdown: a table for each type and each state of the cache (or GEMM)."""
    facts = ["device", "driver supports CUDA", "CUDA runtime", "date"]
    about = [f"{key}: {results.context[key]}" for key in facts if key in results.context]
    lines = ["; ".join(about), ""] if about else []
    for dtype, last in sorted({(case.dtype, case.last) for case in results.adapted()}):
        lines += [f"### {dtype}, {last}: {value}", ""]
        unit = "GFLOP/s" if any("GFLOP/s" in found for case in results.cases.values() for found in case.values()) else "TFLOP/s"
        lines.append(f"| | M | K | N | r | dropout | base µs | base {unit} | " + " | ".join(results.variants) + " |")
        lines.append("|---|" + "---:|" * (7 + len(results.variants)))
        for case in results.adapted():
            if (case.dtype, case.last) != (dtype, last):
                continue
            found = results.cases[case]
            base = statistics.median(counters["base_s"] for counters in found.values())
            speed = base_rate(next(iter(found.values())), unit)
            cells = [WHAT.get(case.op, case.op), case.m, case.k, case.n, case.r, f"{case.p:g}", cell(1e6 * base), cell(speed)]
            cells += [cell(found[name].get(value) if name in found else None) for name in results.variants]
            lines.append("| " + " | ".join(str(each) for each in cells) + " |")
        lines.append("")
    noise = results.noise()
    if noise:
        lines += [f"The bare products against themselves: {min(noise):.3f} to {max(noise):.3f}.", ""]
    if results.failures:
        lines += ["Not measured:", ""] + [f"- {name}: {message}" for name, message in results.failures] + [""]
    return lines


def draw(results, op, path):
    """A panel for each type, cache and dropout; a line for each variant. Single layers are drawn where they are square."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for case in results.adapted() if case.op == op and (op == "block" or case.k == case.n)]
    if not cases:
        sys.exit(f"lora_table.py: no {'blocks' if op == 'block' else 'square layers'} of {op} to draw")
    m, r = (statistics.mode(getattr(case, field) for case in cases) for field in "mr")
    cases = sorted((case for case in cases if (case.m, case.r) == (m, r)), key=lambda case: case.k)
    panels = sorted({(case.dtype, case.last, case.p) for case in cases})
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(3.6 * across + 1, 3.4 * down + 0.3), sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels):
        shown = [case for case in cases if (case.dtype, case.last, case.p) == panel]
        for variant in results.variants:
            points = [(case.k, results.cases[case][variant]["ratio"]) for case in shown if variant in results.cases[case]]
            if points:
                axis.plot(*zip(*points), marker="o", markersize=4, label=variant)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        sizes = {case.k: f"{case.k}/{case.n}" if op == "block" else str(case.k) for case in shown}
        axis.set_xticks(list(sizes), list(sizes.values()), fontsize=8)
        axis.minorticks_off()
        axis.set_title(f"{panel[0]}, {panel[1]}, dropout {panel[2]:g}", fontsize=9)
        axis.set_xlabel("hidden/intermediate size" if op == "block" else "in = out", fontsize=9)
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("time / time of the bare products", fontsize=9)
    axes[0][0].legend(fontsize=8)
    device = results.context.get("device")
    figure.suptitle(f"{WHAT.get(op, op)}, M = {m}, r = {r}" + (f", {device}" if device else ""), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", help="files of --benchmark_out")
    parser.add_argument("--value", default="ratio", help="the counter in the table: ratio, median_s, spread, saved_bytes, …")
    parser.add_argument("--picture", metavar="FILE", help="FILE.png or FILE.svg")
    parser.add_argument("--op", help="what the picture shows; block if it was measured, otherwise both")
    arguments = parser.parse_args()

    results = Results(arguments.json)
    if not results.adapted():
        sys.exit("lora_table.py: no results of fedlora-bench-lora or fedlora-bench-lora-cuda in " + ", ".join(arguments.json))
    if arguments.value not in results.values():
        sys.exit(f"lora_table.py: --value is one of {', '.join(results.values())} for these results, not {arguments.value}")
    print("\n".join(lines_of_table(results, arguments.value)), end="")
    if arguments.picture:
        measured = {case.op for case in results.adapted()}
        op = arguments.op or next((op for op in ("block", "both") if op in measured), sorted(measured)[0])
        try:
            draw(results, op, arguments.picture)
        except ImportError:
            print("lora_table.py: matplotlib is not installed, so there is only the table", file=sys.stderr)
        except (OSError, ValueError) as error:
            sys.exit(f"lora_table.py: {arguments.picture}: {error}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
