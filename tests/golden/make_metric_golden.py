# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/metrics.json: random predictions, and what scikit-learn, scipy and torch measure of them.

    python make_metric_golden.py [OUT]

Made with scikit-learn 1.9.1, scipy 1.17.1, torch 2.15. Undefined values are null.
"""

import json
import math
import pathlib
import sys
import warnings

import numpy
import scipy.stats
import torch
from sklearn import metrics

RANDOM = numpy.random.default_rng(20261128)


def number(value):
    return None if math.isnan(value) else float(value)


def classes(name, truth, predicted, labels):
    """One label per example. `f1` is of each label as the positive one."""
    return {
        "name": name, "labels": labels, "truth": list(map(int, truth)), "predicted": list(map(int, predicted)),
        "accuracy": metrics.accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "matthews": metrics.matthews_corrcoef(truth, predicted),
        "f1": list(metrics.f1_score(truth, predicted, average=None, labels=list(range(labels)), zero_division=0)),
    }


def sets(name, truth, logits):
    """Any number of labels per example: predicted where the logit is above 0."""
    truth, logits = numpy.asarray(truth), numpy.asarray(logits, dtype=float)
    predicted = (logits > 0).astype(int)
    if truth.shape[1] == 1:  # for scikit-learn the two classes of one column; here F1 of the one label
        micro = macro = metrics.f1_score(truth, predicted)
    else:
        micro = metrics.f1_score(truth, predicted, average="micro", zero_division=0)
        macro = metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    return {
        "name": name, "truth": truth.tolist(), "logits": logits.tolist(),
        "loss": torch.nn.BCEWithLogitsLoss()(torch.tensor(logits), torch.tensor(truth, dtype=torch.float64)).item(),
        "micro_f1": micro, "macro_f1": macro,
        "subset_accuracy": metrics.accuracy_score(truth, predicted),
        "hamming_loss": metrics.hamming_loss(truth, predicted),
    }


def numbers(name, targets, predicted):
    """Rows of numbers; correlations are means over the columns."""
    targets, predicted = numpy.asarray(targets, dtype=float), numpy.asarray(predicted, dtype=float)

    def mean_of(correlation):
        if len(targets) < 2:
            return math.nan
        return float(numpy.mean([correlation(p, t).statistic for p, t in zip(predicted.T, targets.T)]))

    return {
        "name": name, "targets": targets.tolist(), "predicted": predicted.tolist(),
        "pearson": number(mean_of(scipy.stats.pearsonr)), "spearman": number(mean_of(scipy.stats.spearmanr)),
        "mse": metrics.mean_squared_error(targets, predicted), "mae": metrics.mean_absolute_error(targets, predicted),
    }


def column(values):
    return [[value] for value in values]


def main(out):
    warnings.simplefilter("ignore")
    some = RANDOM.integers
    single = [
        classes("two labels", some(0, 2, 40), some(0, 2, 40), 2),
        classes("five labels", some(0, 5, 60), some(0, 5, 60), 5),
        classes("labels absent from both", some(0, 2, 30) * 3, some(0, 2, 30) * 3, 6),
        classes("a label never predicted", [0, 1, 2, 2, 1, 0, 2], [0, 1, 1, 0, 1, 0, 1], 3),
        classes("a label predicted that does not occur", [0, 0, 1, 1, 0], [0, 2, 1, 2, 2], 4),
        classes("one label in the truth", [1] * 9, [1, 0, 1, 1, 2, 1, 1, 1, 1], 3),
        classes("one label everywhere", [1] * 5, [1] * 5, 3),
        classes("one prediction for all", [0, 1, 2, 1], [1] * 4, 3),
        classes("all wrong", [0, 1] * 6, [1, 0] * 6, 2),
        classes("one example, right", [2], [2], 4),
        classes("one example, wrong", [0], [1], 2),
        classes("skewed", (RANDOM.random(200) < 0.03).astype(int), (RANDOM.random(200) < 0.05).astype(int), 2),
    ]
    perfect = some(0, 4, 25)
    single.append(classes("perfect", perfect, perfect, 4))
    flags = lambda rows, labels, share: (RANDOM.random((rows, labels)) < share).astype(int)
    multi = [
        sets("four labels", flags(30, 4, 0.4), RANDOM.normal(0, 2, (30, 4))),
        sets("rare labels", flags(25, 9, 0.08), RANDOM.normal(-2, 1.5, (25, 9))),
        sets("a label that is nowhere", [[1, 0, 0], [0, 0, 1], [1, 0, 1]], [[2, -1, -3], [-1, -2, 1], [3, -4, -0.5]]),
        sets("nothing at all", numpy.zeros((4, 3), int), numpy.full((4, 3), -1.5)),
        sets("logits of a thousand", [[1, 0], [0, 1], [1, 1]], [[1000, -1000], [1000, -1000], [800, 0.25]]),
        sets("a logit of zero is no label", [[1, 0, 1]], [[0, 0, 1e-300]]),
        sets("one label", flags(12, 1, 0.5), RANDOM.normal(0, 1, (12, 1))),
    ]
    line = numpy.arange(20.0)
    regression = [
        numbers("scores", column(RANDOM.uniform(0, 5, 50)), column(RANDOM.uniform(0, 5, 50))),
        numbers("ties on both sides", column(some(0, 5, 60)), column(some(0, 7, 60) / 2)),
        numbers("correlated", column(line), column(line + RANDOM.normal(0, 3, 20))),
        numbers("a line that falls", column(line), column(3 - 2 * line)),
        numbers("a monotone curve", column(line), column(numpy.exp(line / 3))),
        numbers("constant predictions", column(line), column([1.25] * 20)),
        numbers("constant targets", column([4.0] * 6), column(line[:6])),
        numbers("two examples", column([1.0, 2.0]), column([0.5, -3.0])),
        numbers("one example", column([1.0]), column([2.5])),
        numbers("large and small", column([1e200, 2e200, 3e200, 2.5e200]), column([1e-200, 3e-200, 2e-200, 5e-200])),
        numbers("far from zero", column(1e6 + RANDOM.normal(0, 1, 30)), column(1e6 + RANDOM.normal(0, 1, 30))),
        numbers("three outputs", RANDOM.normal(0, 1, (25, 3)), RANDOM.normal(0, 1, (25, 3))),
        numbers("two outputs, one constant", RANDOM.normal(0, 1, (8, 2)),
                numpy.stack([RANDOM.normal(0, 1, 8), numpy.ones(8)], axis=1)),
    ]
    regression[9].update(mse=None, mae=None)  # infinite
    cases = {"single_label_classification": single, "multi_label_classification": multi, "regression": regression}
    lines = []
    for kind, list_ in cases.items():
        lines.append(f' "{kind}": [\n  ' + ",\n  ".join(json.dumps(case, allow_nan=False) for case in list_) + "\n ]")
    pathlib.Path(out).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "metrics.json")
