"""A trained model in one zip file: the list of what the file holds, and writing it.

The file holds what prediction needs and nothing that can run: JSON, images, and tensors in safetensors.
"""

import hashlib
import re
import stat
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from tqdm import tqdm

from llmreg.engine.templates import TEMPLATES_FILE, read_templates
from llmreg.errors import BadArgument, UserError
from llmreg.files import atomic_write, check_outputs, write_json
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.inference.models import Model, read_own_state
from llmreg.networks.language_models import cache
from llmreg.networks.network_registry import plugin_of
from llmreg.paths import ModelName, fold_folder, llm_cache_folder
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE, read_reference
from llmreg.preprocessing.dataset_alignment import ALL_CASES, TEMPLATES_FOLDER, name_template_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.settings import Settings
from llmreg.sharing.untrusted_zip import CHUNK, WORTH_A_BAR, MiB
from llmreg.training.checkpoints import WEIGHTS_PREFIX, TrainingState, read_tensors, write_tensors
from llmreg.version import __version__

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1

_FOLD = fold_folder(Path(), "(?:0|[1-9][0-9]{0,2}|all)").name
_TEMPLATES = rf"{TEMPLATES_FOLDER}/(?:{ALL_CASES}|{_FOLD})/"
_CHECKPOINT = rf"{_FOLD}/checkpoint_(?:final|best|latest)"
# A checkpoint with the 8192 channels of the largest language models has 1 GiB, the fingerprint of 200 cases half a MiB.
_LIMITS = {
    re.compile(re.escape(MANIFEST_FILE)): MiB,
    re.compile(re.escape(PLANS_FILE)): 4 * MiB,
    re.compile(re.escape(FINGERPRINT_FILE)): 32 * MiB,
    re.compile(re.escape(REFERENCE_FILE)): 1024 * MiB,
    re.compile(_TEMPLATES + re.escape(TEMPLATES_FILE)): MiB,
    re.compile(_TEMPLATES + r"(?:template|seen)_[0-9]{4}" + re.escape(DEFAULT_ENDING)): 64 * MiB,
    re.compile(_CHECKPOINT + r"\.json"): MiB,
    re.compile(_CHECKPOINT + r"\.safetensors"): 4096 * MiB,
}


def size_limit(name: str) -> int | None:
    """The most bytes that a member of a name may have; None where no shared model holds one."""
    return next((limit for pattern, limit in _LIMITS.items() if pattern.fullmatch(name)), None)


def _check_member(name: str) -> str:
    if size_limit(name) is None:
        raise ValueError("no shared model holds a file of that name")
    return name


def _check_model_name(name: str) -> str:
    ModelName.parse(name).check_portable()
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SharedFile(Settings):
    """A member of the zip: its bytes and their digest."""

    size: int = Field(ge=0)
    sha256: Sha256


class NeededLayers(Settings):
    """The frozen layers of a language model that a model was trained with; they are not in the zip.

    Attributes:
        source: the language model's name in the plans; of a local one, its folder or file on another computer.
        layers: zero-based indices.
        weights: see :class:`llmreg.networks.language_models.llm_settings.LLMSettings`.
        sha256: digest of the layers' weights.
        revision: commit on the hub, where the layers are known to come from it.
    """

    # Printable characters alone: messages show it.
    source: str = Field(max_length=1000, pattern=r"^( |[^\p{C}\p{Z}])*$")
    layers: tuple[int, ...]
    weights: Literal["pretrained", "random"]
    sha256: Sha256
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")] | None


class Manifest(Settings):
    """``manifest.json``.

    Attributes:
        format_version: of the zip's layout.
        llmreg_version: version that exported it.
        name: the model's folder below the results folder, see :class:`llmreg.paths.ModelName`.
        llm: the language model's layers that it needs, or None.
        files: every other member by its name, which is also its path in the model's folder.
    """

    format_version: Literal[1] = 1
    llmreg_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
    name: Annotated[str, AfterValidator(_check_model_name)]
    llm: NeededLayers | None
    files: dict[Annotated[str, AfterValidator(_check_member)], SharedFile]


def name_model(plans: Plans, configuration: str) -> ModelName:
    """The name that training gives to the model of these plans."""
    return ModelName(plans.dataset_name, plans.network.name, plans.plans_name, configuration)


def find_needed_layers(plans: Plans, states: Sequence[TrainingState]) -> NeededLayers | None:
    """The language model's layers that folds need, with the revision that the layer cache records.

    Raises:
        UserError: the folds, or the plans, name different layers.
    """
    llm, sha256 = plugin_of(plans.network).language_model(plans.network), states[0].llm_sha256
    if llm is None:
        return None
    if {state.llm_sha256 for state in states} | ({llm.sha256} - {None}) != {sha256}:
        raise UserError(
            f"The folds and the plans '{plans.plans_name}' name different layers of the language model: choose folds "
            "that were trained with the same ones."
        )
    revision = None
    with suppress(UserError):
        cached = cache.find(sha256, llm_cache_folder())
        revision = None if cached is None else cache.read_layers_record(cached).revision
    return NeededLayers(source=llm.source, layers=llm.layers, weights=llm.weights, sha256=sha256, revision=revision)


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
        WouldReplaceInput: it is a checkpoint of the model.
        UserError: ``target`` cannot be written, or the model folder's files are damaged or do not belong together.
    """
    if target.is_dir():
        raise BadArgument("output", f"{target} is a folder: give the name of a file, such as model.zip.")
    check_outputs([target], model.folds.values(), overwrite=overwrite)
    plans = read_plans(model.folder / PLANS_FILE)
    states = {path: read_own_state(path, plans, model.configuration) for path in model.folds.values()}
    name = name_model(plans, model.configuration)
    try:
        name.check_portable()
    except ValueError as error:
        raise UserError(f"{model.folder / PLANS_FILE} gives names that cannot be shared: {error}.") from error
    llm = find_needed_layers(plans, list(states.values()))
    read_reference(model.folder, plans)
    sources = _find_plain_files(model, plans)
    with (
        atomic_write(target) as temporary,
        tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        for path, state in states.items():
            weights = Path(scratch) / path.parent.name / path.name
            tensors = {WEIGHTS_PREFIX + key: tensor for key, tensor in read_tensors(path).items()}
            write_tensors(weights, tensors, {"state": state.model_dump_json()})
            write_json(weights.with_suffix(".json"), state.model_dump())
            sources |= {f"{path.parent.name}/{file.name}": file for file in (weights, weights.with_suffix(".json"))}
        files = {member: _add(archive, member, path) for member, path in sources.items()}
        manifest = Manifest(llmreg_version=__version__, name=str(name), llm=llm, files=files)
        write_json(Path(scratch) / MANIFEST_FILE, manifest.model_dump(mode="json"))
        _add(archive, MANIFEST_FILE, Path(scratch) / MANIFEST_FILE)
    return manifest


def _find_plain_files(model: Model, plans: Plans) -> dict[str, Path]:
    """The files that travel as they are, by the names of their members: all but the checkpoints."""
    names = [PLANS_FILE, REFERENCE_FILE]
    names += [FINGERPRINT_FILE] if (model.folder / FINGERPRINT_FILE).exists() else []
    # A single fold places images by its own templates, several folds by those of all training cases.
    sets = {ALL_CASES, *map(name_template_set, model.folds)} if plans.prealignment.uses_templates else set()
    for folder in (f"{TEMPLATES_FOLDER}/{name}" for name in sorted(sets)):
        if (model.folder / folder).exists():
            names.append(f"{folder}/{TEMPLATES_FILE}")
            names += [
                f"{folder}/{kind}_{number:04d}{DEFAULT_ENDING}"
                for number in read_templates(model.folder / folder)
                for kind in ("template", "seen")
            ]
    return {name: model.folder / name for name in names}


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> SharedFile:
    limit, size = size_limit(name), path.stat().st_size
    if limit is None or size > limit:
        reason = "models have no file of that name" if limit is None else f"it has more than {limit / MiB:.0f} MiB"
        raise UserError(f"The model's {name} cannot be shared ({reason}): leave it out, or rename it.")
    # A ZipInfo has a fixed time and no trace of the computer, so that the same model gives the same bytes.
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    # Compressed weights would be 8 % smaller, and take many times as long.
    info.compress_type = zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", size, desc=f"Export {name}", disable=size < WORTH_A_BAR) as source,
        archive.open(info, "w") as member,
    ):
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            member.write(chunk)
    return SharedFile(size=size, sha256=digest.hexdigest())
