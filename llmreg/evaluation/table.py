"""A summary as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STAGES = (("initial", "initial_"), ("prealigned", "prealigned_"), ("registered", ""))
_FIELD = (
    ("|J| <= 0 (%)", "folding_percent"),
    ("SDlogJ", "sdlogj"),
    ("SDlogJ (Learn2Reg)", "sdlogj_learn2reg"),
)


def format_summary(summary: Mapping[str, Any]) -> str:
    """Before and after, label by label and together; Dice in percent, HD95 in mm.

    Args:
        summary: of :func:`llmreg.evaluation.evaluate.summarise`.
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
    mean = ["mean +- SD over pairs", str(summary["num_pairs"])]
    mean += [_with_sd(metrics[prefix + "dice"], 100) for _, prefix in stages]
    mean += [_with_sd(metrics[prefix + "hd95_mm"]) for _, prefix in stages]

    widths = [max(len(line[column]) for line in (head, *lines, mean)) for column in range(len(head))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text = [_row(head, widths), rule, *(_row(line, widths) for line in lines), rule, _row(mean, widths), ""]
    text += [f"{title:<20}{_with_sd(metrics[metric], digits=3)}" for title, metric in _FIELD if metric in metrics]
    if summary["num_lost"]:
        text.append(f"{summary['num_lost']} structures vanished in warping: Dice 0, left out of HD95.")
    return "\n".join(text) + "\n"


def _row(cells: list[str], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *numbers])


def _value(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _with_sd(metric: Mapping[str, float | None], scale: float = 1, digits: int = 2) -> str:
    sd = metric["sd"]
    return _value(metric["mean"], scale, digits) + (f" +- {_value(sd, scale, digits)}" if sd is not None else "")
