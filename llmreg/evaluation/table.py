"""A summary as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_STAGES = (("initial", "initial_"), ("prealigned", "prealigned_"), ("registered", ""))
_OTHERS = (
    ("ASSD (mm)", "assd_mm", 2),
    ("TRE (mm)", "tre_mm", 2),
    ("HD95 (Learn2Reg, voxels)", "hd95_l2r", 2),
    ("|J| <= 0 (%)", "folding_percent", 3),
    ("|J| <= 0, interior (%)", "folding_interior_percent", 3),
    ("SDlogJ", "sdlogj", 3),
    ("SDlogJ (Learn2Reg)", "sdlogj_learn2reg", 3),
)
_INTERPOLATIONS = {"nearest": "nearest neighbours", "linear": "the linearly interpolated label that weighs most"}


def format_summary(summary: Mapping[str, Any]) -> str:
    """Before and after: Dice (percent) and HD95 (mm) label by label, then what else there is of all together.

    Args:
        summary: of :func:`llmreg.evaluation.summary.write_results` or :func:`~llmreg.evaluation.summary.summarise`.
    """
    metrics = summary["metrics"]
    stages = [(title, prefix) for title, prefix in _STAGES if prefix + "dice" in metrics]
    head = ["label", "pairs"]
    head += [f"Dice {title}" for title, _ in stages] + [f"HD95 {title}" for title, _ in stages]
    lines = [
        [str(label["name"]), str(label["num_pairs"])]
        + [_value(label[prefix + "dice"], 100) for _, prefix in stages]
        + [_value(label[prefix + "hd95_mm"]) for _, prefix in stages]
        for label in summary["labels"].values()
    ]
    mean = ["mean +- SD over pairs", str(metrics["dice"]["num_pairs"])]
    mean += [_with_sd(metrics[prefix + "dice"], 100) for _, prefix in stages]
    mean += [_with_sd(metrics[prefix + "hd95_mm"]) for _, prefix in stages]
    # Pairs may have landmarks alone.
    text = [*_aligned(head, [*lines, mean], 1), ""] if lines else []

    others = [
        [title]
        + [_with_sd(metrics[prefix + name], digits=digits) if prefix + name in metrics else "" for _, prefix in stages]
        for title, name, digits in _OTHERS
        if name in metrics and metrics[name]["num_pairs"]
    ]
    text += _aligned(["", *(title for title, _ in stages)], others)
    text.append("")
    if summary["num_lost"]:
        text.append(f"{summary['num_lost']} structures vanished in warping: Dice 0, left out of HD95 and ASSD.")
    if summary.get("failed"):
        text.append(f"Pairs that could not be registered, and count in nothing: {', '.join(summary['failed'])}.")
    if lines and "label_interpolation" in summary:
        text.append(f"Labels were warped by {_INTERPOLATIONS[summary['label_interpolation']]}.")
    text += _cost(summary)
    return "\n".join(text) + "\n"


def _cost(summary: Mapping[str, Any]) -> list[str]:
    """What the prediction took, in a line, where that is known."""
    told = []
    if "seconds" in summary["metrics"]:
        told.append(f"{_with_sd(summary['metrics']['seconds'], digits=1)} s a pair")
    for name, where in (("peak_memory_gb", "memory"), ("peak_gpu_memory_gb", "GPU memory")):
        if name in summary:
            told.append(f"{summary[name]:.1f} GiB of {where} at its peak")
    return [f"The prediction took {', '.join(told)}."] if told else []


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]], below: int = 0) -> list[str]:
    """Head and lines in columns, with a rule under the head and one above the last ``below`` lines."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    rows = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in (head, *lines)
    ]
    last = len(rows) - below
    return [rows[0], rule, *rows[1:last], *([rule] if below else []), *rows[last:]]


def _value(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _with_sd(metric: Mapping[str, float | None], scale: float = 1, digits: int = 2) -> str:
    sd = metric["sd"]
    return _value(metric["mean"], scale, digits) + (f" +- {_value(sd, scale, digits)}" if sd is not None else "")
