"""What a derived file was made of: when it changes, the file is made again."""

from __future__ import annotations

from llmreg.data.dataset import Case
from llmreg.files import image_digest

Sources = dict[str, str | list[int]]


def sources_of(case: Case) -> Sources:
    """What tells the content of a case's files from others, by their role. Raises UserError when one cannot be read."""
    files = {"image": case.image, "label": case.label, "mask": case.mask}
    found: Sources = {role: image_digest(path) for role, path in files.items() if path is not None}
    return found if case.annotated_labels is None else found | {"annotated_labels": list(case.annotated_labels)}
