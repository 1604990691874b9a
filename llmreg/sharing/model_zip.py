"""A trained model as one zip file: written from a model folder, and checked in full before it becomes one again.

The file holds what prediction needs and nothing that can run: JSON, images, and tensors in safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from llmreg.engine.templates import RECORD_FILE, read_templates
from llmreg.errors import UserError
from llmreg.files import atomic_write, read_json, write_json
from llmreg.inference.models import Model, model_in
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.preprocessing.dataset_templates import EVERYONE, TEMPLATES_FOLDER, fold_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.preprocess import REFERENCE_FILE, read_reference
from llmreg.sharing.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    SharedFile,
    name_of,
    needed_layers,
    size_limit,
)
from llmreg.sharing.untrusted_zip import (
    CHUNK,
    UNREADABLE,
    Members,
    MiB,
    check_unpacked,
    checked_members,
    chunks,
    opened,
    refusal,
    shown,
)
from llmreg.training.checkpoints import State, network_tensors, read_state, write_tensors
from llmreg.version import __version__

# As all names in a checkpoint begin that are not the optimiser's.
_WEIGHTS = "network."
# Bytes of an unpacked image: in the frame at most so many for each voxel and a header, of a template with its voxels of
# 8 mm always few.
_VOXEL_BYTES, _LONGEST_HEADER = 8, MiB
_LARGEST_REFERENCE, _LARGEST_TEMPLATE = 1024 * MiB, 64 * MiB
_WORTH_A_BAR = 64 * MiB


@dataclass(frozen=True)
class Installed:
    """A model that was installed, and the manifest it came with."""

    model: Model
    manifest: Manifest


def export_model(model: Model, target: Path, overwrite: bool = False) -> Manifest:
    """Write a model's zip: plans, fingerprint, reference, templates and checkpoints without the optimiser's moments.

    The same model gives the same bytes.

    Args:
        model: from :mod:`llmreg.inference.models`; its folds are the ones that travel.
        target: the zip.
        overwrite: replace ``target``.

    Returns:
        What the zip holds.

    Raises:
        UserError: ``target`` exists or cannot be written, or the model folder's files are damaged or do not belong
            together.
    """
    if target.is_dir():
        raise UserError(f"{target} is a folder: give the name of a file, such as model.zip.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: choose another name with -o, or add --overwrite.")
    plans = read_plans(model.folder / PLANS_FILE)
    states = {path: _state(path, plans, model.configuration) for path in model.folds.values()}
    llm = needed_layers(plans, list(states.values()))
    try:
        name = name_of(plans, model.configuration)
    except ValueError as error:
        raise UserError(f"{model.folder / PLANS_FILE} gives names that cannot be shared: {error}.") from error
    read_reference(model.folder, plans)
    plain = _beside_checkpoints(model, plans)
    total = sum(path.stat().st_size for path in (*plain.values(), *states))
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="Export", disable=total < _WORTH_A_BAR)
    with (
        atomic_write(target) as temporary,
        tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as own,
        bar,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        files = {member: _add(archive, member, path, bar) for member, path in plain.items()}
        for path, state in states.items():
            weights = Path(own) / path.name
            tensors = {_WEIGHTS + key: tensor for key, tensor in network_tensors(path).items()}
            write_tensors(weights, tensors, {"state": state.model_dump_json()})
            write_json(weights.with_suffix(".json"), state.model_dump())
            bar.total += weights.stat().st_size - path.stat().st_size
            for file in (weights, weights.with_suffix(".json")):
                member = f"{path.parent.name}/{file.name}"
                files[member] = _add(archive, member, file, bar)
        manifest = Manifest(llmreg_version=__version__, name=name, llm=llm, files=files)
        write_json(Path(own) / MANIFEST_FILE, manifest.model_dump(mode="json"))
        _add(archive, MANIFEST_FILE, Path(own) / MANIFEST_FILE, bar)
    return manifest


def _state(path: Path, plans: Plans, configuration: str) -> State:
    """A checkpoint's state. Raises UserError unless the plans are its own."""
    state = read_state(path)
    if state.configuration != configuration or state.plans_digest != plans.digest(configuration):
        raise UserError(f"{path} was trained with plans other than {PLANS_FILE}: restore that file.")
    return state


def _beside_checkpoints(model: Model, plans: Plans) -> dict[str, Path]:
    """What prediction needs beside checkpoints, and the fingerprint, by the members' names."""
    names = [PLANS_FILE, REFERENCE_FILE]
    if (model.folder / FINGERPRINT_FILE).exists():
        names.append(FINGERPRINT_FILE)
    # One fold alone is placed by its own, several by those of all.
    sets = {EVERYONE, *map(fold_set, model.folds)} if plans.prealignment.method == "template" else set()
    for below in (f"{TEMPLATES_FOLDER}/{one}" for one in sorted(sets)):
        if (model.folder / below).exists():
            modalities = read_templates(model.folder / below)
            images = [f"{kind}_{number:04d}.nii.gz" for number in modalities for kind in ("template", "seen")]
            names += [f"{below}/{name}" for name in (RECORD_FILE, *images)]
    return {name: model.folder / name for name in names}


def _add(archive: zipfile.ZipFile, name: str, path: Path, bar: tqdm[Any]) -> SharedFile:
    most, expected = size_limit(name), path.stat().st_size
    if most is None or expected > most:
        why = "models have no file of that name" if most is None else f"it has more than {most / MiB:.0f} MiB"
        raise UserError(f"The model's {name} cannot be shared ({why}): leave it out, or rename it.")
    # With the fixed time that a ZipInfo has by itself, and no trace of the computer.
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = expected
    # Weights would become 8 % smaller in many times the time.
    info.compress_type = zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source, archive.open(info, "w") as member:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            member.write(chunk)
            size += len(chunk)
            bar.update(len(chunk))
    return SharedFile(size=size, sha256=digest.hexdigest())


def install_model(archive: Path, root: Path, overwrite: bool = False) -> Installed:
    """Turn an exported zip into a model folder under its own name below ``root``.

    The zip may come from anybody. What its list of members and its manifest say is checked before anything is written;
    what is in the members, in a temporary folder beside the target, which is renamed in the end or removed.

    Args:
        archive: the zip.
        root: the results folder, or another one like it.
        overwrite: replace a model of that name, with all that its folder holds, once the new one is whole.

    Raises:
        UserError: the zip is not what :func:`export_model` writes, or the model exists or cannot be written.
    """
    with opened(archive) as content:
        members = checked_members(content, archive, size_limit)
        manifest = _read_manifest(content, members, archive)
        target = root.joinpath(*manifest.name.split("/"))
        if os.path.lexists(target) and not (overwrite and target.is_dir()):
            remedy = "remove it" if overwrite else "add --overwrite to replace it, or choose another folder with -o"
            raise UserError(f"{target} exists already: {remedy}.")
        with _beside(target, sum(file.size for file in manifest.files.values())) as own:
            _extract(content, manifest, own / "new", archive)
            _check_model(own / "new", manifest, archive)
            try:
                _put_in_place(own / "new", target, own / "old")
            except OSError as error:
                raise UserError(f"Cannot write {target}: {error.strerror}. Choose another folder with -o.") from error
    return Installed(model_in(target), manifest)


def _read_manifest(content: zipfile.ZipFile, members: Members, archive: Path) -> Manifest:
    """Raises UserError when it is missing or unknown, or does not list exactly the other members with their sizes."""
    if MANIFEST_FILE not in members:
        raise UserError(f"{archive} holds no {MANIFEST_FILE}: give a zip that llmreg_export_model wrote.")
    try:
        found = json.loads(b"".join(chunks(content, members[MANIFEST_FILE], archive)))
        version = found["format_version"]
    except UNREADABLE as error:
        raise refusal(archive, f"holds a damaged {MANIFEST_FILE}") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{archive} has a format that llmreg {__version__} does not know: install a newer llmreg.")
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        raise refusal(archive, f"holds a damaged {MANIFEST_FILE} ({_first(error)})") from error
    listed, there = manifest.files.keys(), members.keys() - {MANIFEST_FILE}
    checkpoints = {PurePosixPath(name).with_suffix("") for name in listed if name.startswith("fold_")}
    if not checkpoints:
        raise refusal(archive, "holds no checkpoint")
    for name in sorted(there ^ listed):
        raise refusal(archive, f"{'lacks' if name in listed else 'holds, beside what is listed in it,'} {name}")
    needed = {PLANS_FILE, REFERENCE_FILE, *(f"{one}{end}" for one in checkpoints for end in (".json", ".safetensors"))}
    for name in sorted(needed - listed):
        raise refusal(archive, f"lacks {name}")
    for name, file in manifest.files.items():
        if members[name].file_size != file.size:
            raise refusal(archive, f"holds a {name} of another size than it lists")
    return manifest


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}")


@contextmanager
def _beside(target: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside ``target`` with room for ``size`` bytes; folders that it needed go again on failure."""
    try:
        missing = [folder for folder in target.parents if not folder.exists()]
        there = next(folder for folder in target.parents if folder not in missing)
        free = shutil.disk_usage(there).free
        if size > free:
            raise UserError(
                f"The model needs {size / MiB:.0f} MiB, but the disk of {there} has {free / MiB:.0f} MiB left: free "
                "some, or choose another folder with -o."
            )
    except OSError as error:
        raise UserError(f"Cannot use {target}: {error.strerror}. Choose another folder with -o.") from error
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            own = tempfile.TemporaryDirectory(prefix=".installing-", dir=target.parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise UserError(f"Cannot write {target}: {error.strerror}. Choose another folder with -o.") from error
        with own as name:
            yield Path(name)
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _extract(content: zipfile.ZipFile, manifest: Manifest, folder: Path, archive: Path) -> None:
    total = sum(file.size for file in manifest.files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="Install", disable=total < _WORTH_A_BAR) as bar:
        for name, expected in manifest.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, size = hashlib.sha256(), 0
            with path.open("xb") as file:
                for chunk in chunks(content, content.getinfo(name), archive):
                    digest.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
                    bar.update(len(chunk))
                file.flush()
                os.fsync(file.fileno())
            if (size, digest.hexdigest()) != (expected.size, expected.sha256):
                raise refusal(archive, f"holds another {name} than it lists (sha256)")


def _check_model(folder: Path, manifest: Manifest, archive: Path) -> None:
    """Raises UserError unless every file of an extracted model can be read and they belong together."""

    @contextmanager
    def readable(member: str) -> Iterator[Path]:
        try:
            yield folder / member
        except (UserError, *UNREADABLE) as error:
            cause = error.__cause__ if isinstance(error, UserError) else error
            if isinstance(cause, ValidationError):
                reason = _first(cause)
            elif isinstance(cause, (ValueError, SafetensorError)):
                reason = shown(str(cause))
            else:
                # A sentence of ours, up to its remedy.
                own = str(error).rpartition(": ")[0] or str(error)
                reason = shown(own.replace(f"{folder}{os.sep}", "").removeprefix(f"{member} "))
            problem = f"holds a {member} that cannot be used ({reason})"
            exporter = manifest.llmreg_version
            if exporter != __version__:
                raise UserError(
                    f"{archive} {problem}: install llmreg {exporter}, which exported it, or get it again."
                ) from error
            raise refusal(archive, problem) from error

    names = manifest.files.keys()
    configuration = manifest.name.rpartition("__")[2]
    with readable(PLANS_FILE) as path:
        plans = read_plans(path)
        if name_of(plans, configuration) != manifest.name or configuration not in plans.configurations:
            raise ValueError(f"it is not that of {manifest.name}")
    if FINGERPRINT_FILE in names:
        with readable(FINGERPRINT_FILE) as path:
            read_json(path)
    states = []
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        with readable(name) as path:
            states.append(_state(path, plans, configuration))
            with safe_open(path, framework="pt") as tensors:
                if not all(key.startswith(_WEIGHTS) for key in tensors.keys()):  # noqa: SIM118
                    raise ValueError("it holds more than weights")
        with readable(name.removesuffix(".safetensors") + ".json") as path:
            if State.model_validate(read_json(path)) != states[-1]:
                raise ValueError("it is not that of the tensors beside it")
    with readable(MANIFEST_FILE):
        needed, given = needed_layers(plans, states), manifest.llm
        # Which revision they are of, only the exporter knows.
        if needed is not None and given is not None:
            needed = needed.model_copy(update={"revision": given.revision})
        if needed != given:
            raise ValueError("it names other layers of a language model than the plans")
    with readable(REFERENCE_FILE) as path:
        check_unpacked(path, min(_VOXEL_BYTES * math.prod(plans.size) + _LONGEST_HEADER, _LARGEST_REFERENCE))
        read_reference(folder, plans)
    templates = sorted(name for name in names if name.startswith(TEMPLATES_FOLDER))
    for name in templates:
        if not name.endswith(".json"):
            with readable(name) as path:
                check_unpacked(path, _LARGEST_TEMPLATE)
    for below in sorted({str(PurePosixPath(name).parent) for name in templates}):
        with readable(f"{below}/{RECORD_FILE}") as path:
            read_templates(path.parent)


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    """Rename ``new`` to ``target``; what is there moves to ``old``, and back when that fails."""
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
