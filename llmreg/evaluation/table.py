"""A summary as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from llmreg.text_tables import format_table

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
    """Tables of Dice (percent) and HD95 (mm) by label, and of the other metrics, before and after registration.

    Args:
        summary: of :func:`llmreg.evaluation.summary.write_results` or :func:`~llmreg.evaluation.summary.summarise`.
    """
    metrics, labels = summary["metrics"], summary["labels"].values()
    stages = [(title, prefix) for title, prefix in _STAGES if prefix + "dice" in metrics]
    paragraphs = []
    # Pairs may have landmarks alone.
    if labels:
        head = [f"{metric} {title}" for metric in ("Dice", "HD95") for title, _ in stages]
        rows = [
            [str(label["name"]), str(label["num_pairs"])]
            + [_format(label[prefix + "dice"], 100) for _, prefix in stages]
            + [_format(label[prefix + "hd95_mm"]) for _, prefix in stages]
            for label in labels
        ]
        rows.append(
            ["mean +- SD over pairs", str(metrics["dice"]["num_pairs"])]
            + [_format_with_sd(metrics[prefix + "dice"], 100) for _, prefix in stages]
            + [_format_with_sd(metrics[prefix + "hd95_mm"]) for _, prefix in stages]
        )
        paragraphs.append(format_table(["label", "pairs", *head], rows, footer_rows=1))
    rows = [
        [title] + [_format_with_sd(metrics.get(prefix + name), digits=digits) for _, prefix in stages]
        for title, name, digits in _OTHERS
        if name in metrics and metrics[name]["num_pairs"]
    ]
    paragraphs.append(format_table(["", *(title for title, _ in stages)], rows))
    sentences = _describe_cost(summary)
    if labels and "label_interpolation" in summary:
        sentences.insert(0, f"Labels were warped by {_INTERPOLATIONS[summary['label_interpolation']]}.")
    if summary.get("failed"):
        sentences.insert(0, f"Pairs that could not be registered, and have no scores: {', '.join(summary['failed'])}.")
    if summary["num_lost"]:
        lost = f"{summary['num_lost']} structures vanished in warping: Dice 0, left out of HD95 and ASSD."
        sentences.insert(0, lost)
    return "\n\n".join([*paragraphs, "\n".join(sentences)]) + "\n"


def _describe_cost(summary: Mapping[str, Any]) -> list[str]:
    """A sentence about time and memory of the prediction, where they are recorded."""
    costs = []
    if "seconds" in summary["metrics"]:
        costs.append(f"{_format_with_sd(summary['metrics']['seconds'], digits=1)} s a pair")
    for name, memory in (("peak_memory_gb", "memory"), ("peak_gpu_memory_gb", "GPU memory")):
        if name in summary:
            costs.append(f"{summary[name]:.1f} GiB of {memory} at its peak")
    return [f"The prediction took {', '.join(costs)}."] if costs else []


def _format(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _format_with_sd(metric: Mapping[str, float | None] | None, scale: float = 1, digits: int = 2) -> str:
    """Mean and standard deviation; empty for a metric that is missing."""
    if metric is None:
        return ""
    sd = metric["sd"]
    return _format(metric["mean"], scale, digits) + (f" +- {_format(sd, scale, digits)}" if sd is not None else "")
