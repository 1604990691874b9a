"""Turning a zip of a shared model into a model folder. The zip is checked in full before it becomes one."""

import hashlib
import importlib.util
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from llmreg.engine.templates import TEMPLATES_FILE, read_templates
from llmreg.errors import BadModelZip, NotWritable, UnreadableFile, UserError, WouldOverwrite
from llmreg.files import read_json, report_unwritable
from llmreg.inference.models import Model, load_model, read_own_state
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import find_layers
from llmreg.networks.language_models.reading import BUILT_IN, is_local
from llmreg.paths import ModelName, llm_cache_folder
from llmreg.plans.plans import PLANS_FILE, read_plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE, read_reference
from llmreg.preprocessing.dataset_alignment import TEMPLATES_FOLDER
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.settings import first_problem
from llmreg.sharing.exporting import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    NeededLayers,
    find_needed_layers,
    name_model,
    size_limit,
)
from llmreg.sharing.untrusted_zip import (
    CHUNK,
    WORTH_A_BAR,
    MiB,
    check_members,
    check_unpacked_size,
    open_zip,
    read_chunks,
    to_printable_line,
)
from llmreg.training.checkpoints import WEIGHTS_PREFIX, TrainingState
from llmreg.version import __version__

# An unpacked image has at most this number of bytes for each voxel of the frame, and a header. A template has few
# voxels.
_VOXEL_BYTES, _LONGEST_HEADER = 8, MiB
_LARGEST_REFERENCE, _LARGEST_TEMPLATE = 1024 * MiB, 64 * MiB


def install_model(archive: Path, root: Path, *, overwrite: bool = False) -> tuple[Model, Manifest]:
    """Turn an exported zip into a model folder under its own name below ``root``.

    The zip may come from anybody. Its list of members and its manifest are checked before anything is written; the
    members' content is checked in a temporary folder beside the target, which is renamed in the end or removed.

    Args:
        archive: the zip.
        root: the results folder, or another one like it.
        overwrite: replace a model of that name, with all that its folder holds, once the new one is complete.

    Returns:
        The installed model, and the manifest it came with.

    Raises:
        BadModelZip: the zip is not as :func:`llmreg.sharing.exporting.export_model` writes it.
        WouldOverwrite: the model exists.
        NotWritable: it cannot be written.
    """
    with open_zip(archive) as content:
        members = check_members(content, archive, size_limit)
        manifest = _read_manifest(content, members, archive)
        target = ModelName.parse(manifest.name).below(root)
        if os.path.lexists(target):
            if not overwrite:
                raise WouldOverwrite(target)
            if not target.is_dir():
                raise UserError(f"{target} exists already and is no folder: remove it.")
        with _open_scratch_folder(target, sum(file.size for file in manifest.files.values())) as scratch:
            _extract(content, manifest, scratch / "new", archive)
            _check_model(scratch / "new", manifest, archive)
            with report_unwritable(target):
                _put_in_place(scratch / "new", target, scratch / "old")
    return load_model(target), manifest


def has_layers(llm: NeededLayers) -> bool:
    """Whether layers are in the layer cache, or can be read from their source without a network."""
    folder = llm_cache_folder()
    is_installed = llm.source in BUILT_IN and importlib.util.find_spec(BUILT_IN[llm.source][0]) is not None
    with suppress(UserError):
        if cache.find(llm.sha256, folder) is not None or is_local(llm.source) or is_installed:
            find_layers(LLMSettings(**llm.model_dump(exclude={"revision"})), folder)
            return True
    return False


def _read_manifest(content: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], archive: Path) -> Manifest:
    """Read the manifest.

    Raises:
        BadModelZip: it is missing or unknown, or does not list exactly the other members with their sizes.
    """
    if MANIFEST_FILE not in members:
        raise BadModelZip(archive, f"holds no {MANIFEST_FILE}", "give a zip that an exported model is in")
    try:
        parsed = json.loads(b"".join(read_chunks(content, members[MANIFEST_FILE], archive)))
        if parsed["format_version"] != FORMAT_VERSION:
            problem = f"has a format that llmreg {__version__} does not know"
            raise BadModelZip(archive, problem, "install a newer llmreg")
        manifest = Manifest.model_validate(parsed)
    except ValidationError as error:
        problem = f"holds a damaged {MANIFEST_FILE} ({to_printable_line(first_problem(error))})"
        raise BadModelZip(archive, problem) from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadModelZip(archive, f"holds a damaged {MANIFEST_FILE}") from error
    listed, present = manifest.files.keys(), members.keys() - {MANIFEST_FILE}
    checkpoints = {PurePosixPath(name).with_suffix("") for name in listed if "/checkpoint_" in name}
    if not checkpoints:
        raise BadModelZip(archive, "holds no checkpoint")
    needed = {f"{checkpoint}{suffix}" for checkpoint in checkpoints for suffix in (".json", ".safetensors")}
    for name in sorted(present - listed):
        raise BadModelZip(archive, f"holds, beside what is listed in it, {name}")
    for name in sorted((listed | needed | {PLANS_FILE, REFERENCE_FILE}) - (present & listed)):
        raise BadModelZip(archive, f"lacks {name}")
    for name, file in manifest.files.items():
        if members[name].file_size != file.size:
            raise BadModelZip(archive, f"holds a {name} of another size than it lists")
    return manifest


@contextmanager
def _open_scratch_folder(target: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside ``target``, with room for ``size`` bytes; folders above it are removed on failure."""
    missing = [folder for folder in target.parents if not os.path.exists(folder)]
    try:
        with report_unwritable(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
            scratch = tempfile.TemporaryDirectory(prefix=".installing-", dir=target.parent, ignore_cleanup_errors=True)
        with scratch as name:
            if size > free:
                raise NotWritable(target, f"it needs {size / MiB:.0f} MiB, but its disk has {free / MiB:.0f} MiB left")
            yield Path(name)
    finally:
        # Folders that hold a model by now stay, since they are not empty.
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _extract(content: zipfile.ZipFile, manifest: Manifest, folder: Path, archive: Path) -> None:
    """Write the members into a folder. Raises BadModelZip for bytes other than those that the manifest lists."""
    for name, expected in manifest.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        chunks = read_chunks(content, content.getinfo(name), archive)
        bar = tqdm(
            chunks, f"Install {name}", math.ceil(expected.size / CHUNK), unit="MiB", disable=expected.size < WORTH_A_BAR
        )
        digest = hashlib.sha256()
        with path.open("xb") as file:
            for chunk in bar:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if (path.stat().st_size, digest.hexdigest()) != (expected.size, expected.sha256):
            raise BadModelZip(archive, f"holds another {name} than it lists (sha256)")


def _check_model(folder: Path, manifest: Manifest, archive: Path) -> None:
    """Check that every file of an extracted model can be read and that they belong together.

    Raises:
        BadModelZip: a file cannot be used.
    """

    @contextmanager
    def checking(member: str) -> Iterator[Path]:
        try:
            yield folder / member
        # What reads a hostile or damaged file may raise anything.
        except Exception as error:
            problem = f"holds a {member} that cannot be used ({_describe(error, folder, member)})"
            remedy = f"install llmreg {manifest.llmreg_version}, which exported it, or get it again"
            is_ours = manifest.llmreg_version == __version__
            raise BadModelZip(archive, problem, None if is_ours else remedy) from error

    names = manifest.files.keys()
    name = ModelName.parse(manifest.name)
    with checking(PLANS_FILE) as path:
        plans = read_plans(path)
        if name_model(plans, name.configuration) != name or name.configuration not in plans.configurations:
            raise ValueError(f"it is not that of {manifest.name}")
    if FINGERPRINT_FILE in names:
        with checking(FINGERPRINT_FILE) as path:
            read_json(path)
    states: list[TrainingState] = []
    for weights in sorted(member for member in names if member.endswith(".safetensors")):
        with checking(weights) as path:
            states.append(read_own_state(path, plans, name.configuration))
            with safe_open(path, framework="pt") as tensors:
                if not all(key.startswith(WEIGHTS_PREFIX) for key in tensors.keys()):  # noqa: SIM118
                    raise ValueError("it holds more than weights")
        with checking(weights.removesuffix(".safetensors") + ".json") as path:
            if TrainingState.model_validate(read_json(path)) != states[-1]:
                raise ValueError("it is not that of the tensors beside it")
    with checking(MANIFEST_FILE):
        needed = find_needed_layers(plans, states)
        # Only the exporter knows the revision of the layers.
        if needed is not None and manifest.llm is not None:
            needed = needed.model_copy(update={"revision": manifest.llm.revision})
        if needed != manifest.llm:
            raise ValueError("it names other layers of a language model than the plans")
    with checking(REFERENCE_FILE) as path:
        check_unpacked_size(path, min(_VOXEL_BYTES * math.prod(plans.size) + _LONGEST_HEADER, _LARGEST_REFERENCE))
        read_reference(folder, plans)
    templates = sorted(member for member in names if member.startswith(TEMPLATES_FOLDER))
    for member in (member for member in templates if not member.endswith(".json")):
        with checking(member) as path:
            check_unpacked_size(path, _LARGEST_TEMPLATE)
    for template_set in sorted({str(PurePosixPath(member).parent) for member in templates}):
        with checking(f"{template_set}/{TEMPLATES_FILE}") as path:
            read_templates(path.parent)


def _describe(error: Exception, folder: Path, member: str) -> str:
    """What is wrong with a member, in a line without paths of the temporary folder."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    if isinstance(cause, ValidationError):
        return to_printable_line(first_problem(cause))
    if isinstance(cause, (ValueError, SafetensorError)):
        return to_printable_line(str(cause))
    # The remedies of this package's errors are for the exporter, not for the owner of a stranger's zip.
    shortened = str(error).rpartition(": ")[0] or str(error)
    sentence = f"{error.path} {error.problem}" if isinstance(error, UnreadableFile) else shortened
    return to_printable_line(sentence.replace(f"{folder}{os.sep}", "").removeprefix(f"{member} "))


def _put_in_place(source: Path, target: Path, backup: Path) -> None:
    """Rename ``source`` to ``target``. An existing target moves to ``backup``, and back when that fails."""
    try:
        if target.exists():
            target.rename(backup)
        source.rename(target)
    except BaseException:
        if backup.exists() and not target.exists():
            backup.rename(target)
        raise
