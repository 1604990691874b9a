"""What a derived file was made of: when it changes, the file is made again."""

from __future__ import annotations

from llmreg.dataset import Case

Sources = dict[str, list[int]]


def sources_of(case: Case) -> Sources:
    """Size and time of change (ns) of a case's files, by their role."""
    files = {"image": case.image, "label": case.label, "mask": case.mask}
    found = {role: [path.stat().st_size, path.stat().st_mtime_ns] for role, path in files.items() if path is not None}
    return found if case.annotated_labels is None else found | {"annotated_labels": list(case.annotated_labels)}
