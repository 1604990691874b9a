"""Writing a trained model into one zip file.

The file holds what prediction needs and nothing that can run: JSON, images, and tensors in safetensors.
"""

import hashlib
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmreg.engine.templates import RECORD_FILE, read_templates
from llmreg.errors import BadArgument, UserError, WouldOverwrite
from llmreg.files import atomic_write, write_json
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.inference.models import Model
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE, read_reference
from llmreg.preprocessing.dataset_alignment import ALL_CASES, TEMPLATES_FOLDER, name_template_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.sharing.manifest import (
    MANIFEST_FILE,
    WEIGHTS_PREFIX,
    Manifest,
    SharedFile,
    find_needed_layers,
    name_model,
    read_own_state,
    size_limit,
)
from llmreg.sharing.untrusted_zip import CHUNK, WORTH_A_BAR, MiB
from llmreg.training.checkpoints import read_tensors, write_tensors
from llmreg.version import __version__


def export_model(model: Model, target: Path, *, overwrite: bool = False) -> Manifest:
    """Write a model's zip: plans, fingerprint, reference, templates and checkpoints without the optimiser's moments.

    The same model gives the same bytes.

    Args:
        model: from :mod:`llmreg.inference.models`; its folds are the ones that travel.
        target: the zip.
        overwrite: replace ``target``.

    Returns:
        The list of what the zip holds.

    Raises:
        WouldOverwrite: ``target`` exists.
        UserError: ``target`` cannot be written, or the model folder's files are damaged or do not belong together.
    """
    if target.is_dir():
        raise BadArgument("output", f"{target} is a folder: give the name of a file, such as model.zip.")
    if target.exists() and not overwrite:
        raise WouldOverwrite(target)
    plans = read_plans(model.folder / PLANS_FILE)
    states = {path: read_own_state(path, plans, model.configuration) for path in model.folds.values()}
    llm = find_needed_layers(plans, list(states.values()))
    name = name_model(plans, model.configuration)
    try:
        name.check_portable()
    except ValueError as error:
        raise UserError(f"{model.folder / PLANS_FILE} gives names that cannot be shared: {error}.") from error
    read_reference(model.folder, plans)
    plain_files = _find_plain_files(model, plans)
    total = sum(path.stat().st_size for path in (*plain_files.values(), *states))
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="Export", disable=total < WORTH_A_BAR)
    with (
        atomic_write(target) as temporary,
        tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch,
        bar,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        files = {member: _add(archive, member, path, bar) for member, path in plain_files.items()}
        for path, state in states.items():
            weights = Path(scratch) / path.name
            tensors = {WEIGHTS_PREFIX + key: tensor for key, tensor in read_tensors(path).items()}
            write_tensors(weights, tensors, {"state": state.model_dump_json()})
            write_json(weights.with_suffix(".json"), state.model_dump())
            bar.total += weights.stat().st_size - path.stat().st_size
            for file in (weights, weights.with_suffix(".json")):
                member = f"{path.parent.name}/{file.name}"
                files[member] = _add(archive, member, file, bar)
        manifest = Manifest(llmreg_version=__version__, name=str(name), llm=llm, files=files)
        write_json(Path(scratch) / MANIFEST_FILE, manifest.model_dump(mode="json"))
        _add(archive, MANIFEST_FILE, Path(scratch) / MANIFEST_FILE, bar)
    return manifest


def _find_plain_files(model: Model, plans: Plans) -> dict[str, Path]:
    """The files that travel as they are, by the names of their members: all but the checkpoints."""
    names = [PLANS_FILE, REFERENCE_FILE]
    if (model.folder / FINGERPRINT_FILE).exists():
        names.append(FINGERPRINT_FILE)
    # A single fold places images by its own templates, several folds by those of all training cases.
    sets = {ALL_CASES, *map(name_template_set, model.folds)} if plans.prealignment.uses_templates else set()
    for folder in (f"{TEMPLATES_FOLDER}/{name}" for name in sorted(sets)):
        if (model.folder / folder).exists():
            modalities = read_templates(model.folder / folder)
            images = [f"{kind}_{number:04d}{DEFAULT_ENDING}" for number in modalities for kind in ("template", "seen")]
            names += [f"{folder}/{name}" for name in (RECORD_FILE, *images)]
    return {name: model.folder / name for name in names}


def _add(archive: zipfile.ZipFile, name: str, path: Path, bar: "tqdm[Any]") -> SharedFile:
    """Write a file into the zip."""
    limit, expected = size_limit(name), path.stat().st_size
    if limit is None or expected > limit:
        reason = "models have no file of that name" if limit is None else f"it has more than {limit / MiB:.0f} MiB"
        raise UserError(f"The model's {name} cannot be shared ({reason}): leave it out, or rename it.")
    # A ZipInfo has a fixed time and no trace of the computer, so that the same model gives the same bytes.
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = expected
    # Compressed weights would be 8 % smaller, and take many times as long.
    info.compress_type = zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source, archive.open(info, "w") as member:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            member.write(chunk)
            size += len(chunk)
            bar.update(len(chunk))
    return SharedFile(size=size, sha256=digest.hexdigest())
