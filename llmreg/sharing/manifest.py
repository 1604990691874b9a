"""What a shared model holds: the names that its members may have, and the list of them that travels along."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llmreg.engine.templates import RECORD_FILE
from llmreg.errors import UserError
from llmreg.networks.config import LLMSettings, language_model
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.loading import find_layers
from llmreg.networks.language_models.sources import BUILT_IN, is_local
from llmreg.paths import llm_cache_folder
from llmreg.plans.plans import PLANS_FILE, Plans
from llmreg.preprocessing.dataset_templates import EVERYONE, TEMPLATES_FOLDER
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.preprocess import REFERENCE_FILE
from llmreg.sharing.untrusted_zip import MiB
from llmreg.training.checkpoints import State

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1

_FOLD = r"fold_(?:0|[1-9][0-9]{0,2}|all)"
_TEMPLATES = rf"{TEMPLATES_FOLDER}/(?:{EVERYONE}|{_FOLD})/"
_CHECKPOINT = rf"{_FOLD}/checkpoint_(?:final|best|latest)"
# A checkpoint with the 8192 channels of the largest language models has 1 GiB, the fingerprint of 200 cases half a MiB.
_LIMITS = {
    re.compile(re.escape(MANIFEST_FILE)): MiB,
    re.compile(re.escape(PLANS_FILE)): 4 * MiB,
    re.compile(re.escape(FINGERPRINT_FILE)): 32 * MiB,
    re.compile(re.escape(REFERENCE_FILE)): 1024 * MiB,
    re.compile(_TEMPLATES + re.escape(RECORD_FILE)): MiB,
    re.compile(_TEMPLATES + r"(?:template|seen)_[0-9]{4}\.nii\.gz"): 64 * MiB,
    re.compile(_CHECKPOINT + r"\.json"): MiB,
    re.compile(_CHECKPOINT + r"\.safetensors"): 4096 * MiB,
}
_WORD = r"[A-Za-z0-9]+(?:[_.-][A-Za-z0-9]+)*"
_NAME = re.compile(rf"Dataset[0-9]{{3}}_[^/\\:*?\"<>|]+(?<![. ])/{_WORD}__{_WORD}__{_WORD}")
# Of bytes in a folder's name, file systems take 255.
_LONGEST_NAME = 240


def size_limit(name: str) -> int | None:
    """The bytes that a member of a name may have at most; None where no shared model holds one."""
    return next((most for pattern, most in _LIMITS.items() if pattern.fullmatch(name)), None)


def _allowed(name: str) -> str:
    if size_limit(name) is None:
        raise ValueError("no shared model holds a file of that name")
    return name


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds control characters")
    return text


def _model_name(name: str) -> str:
    if not name.isprintable() or len(name.encode()) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError("a model is called Dataset001_Name/<network>__<plans>__<configuration>")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SharedFile(_Model):
    """A member of the zip: its bytes and their digest."""

    size: int = Field(ge=0)
    sha256: Sha256


class NeededLayers(_Model):
    """The frozen layers of a language model that a model was trained with; they are not in the zip.

    Attributes:
        source: what the plans call the language model; of a local one, its folder or file on another computer.
        layers: zero-based indices.
        weights: see :class:`llmreg.networks.config.LLMSettings`.
        sha256: digest of the layers' weights.
        revision: commit on the hub, where they are known to come from it.
    """

    source: Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
    layers: tuple[int, ...]
    weights: Literal["pretrained", "random"]
    sha256: Sha256
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")] | None


class Manifest(_Model):
    """``manifest.json``.

    Attributes:
        format_version: of the zip's layout.
        llmreg_version: that exported it.
        name: the model's folder below the results folder.
        llm: the language model's layers that it needs, or None.
        files: every other member by its name, which is also its path in the model's folder.
    """

    format_version: Literal[1] = 1
    llmreg_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
    name: Annotated[str, AfterValidator(_model_name)]
    llm: NeededLayers | None
    files: dict[Annotated[str, AfterValidator(_allowed)], SharedFile]


def name_of(plans: Plans, configuration: str) -> str:
    """Where training puts a model, below the results folder. Raises ValueError for one that cannot be shared."""
    return _model_name(f"{plans.dataset_name}/{plans.network.name}__{plans.plans_name}__{configuration}")


def needed_layers(plans: Plans, states: Sequence[State]) -> NeededLayers | None:
    """The layers that folds need, with the revision that the layer cache knows.

    Raises:
        UserError: the folds, or the plans, name different ones.
    """
    llm, sha256 = language_model(plans.network), states[0].llm_sha256
    if llm is None:
        return None
    if {state.llm_sha256 for state in states} | ({llm.sha256} - {None}) != {sha256}:
        raise UserError(
            f"The folds and the plans '{plans.plans_name}' name different layers of the language model: choose folds "
            "that were trained with the same ones (-f)."
        )
    revision = None
    with suppress(UserError):
        found = cache.find(sha256, llm_cache_folder())
        revision = None if found is None else cache.read_record(found).revision
    return NeededLayers(source=llm.source, layers=llm.layers, weights=llm.weights, sha256=sha256, revision=revision)


def missing_layers(llm: NeededLayers) -> str | None:
    """What to do to get layers; None when they are in the layer cache, or at their source on this computer."""
    folder = llm_cache_folder()
    with suppress(UserError):
        if cache.find(llm.sha256, folder) is not None or _is_near(llm.source):
            find_layers(LLMSettings(**llm.model_dump(exclude={"revision"})), folder)
            return None
    copied = (
        f"copy the folder whose name ends in _{llm.sha256[:12]} from the layer cache of the computer that exported the "
        f"model into {folder}"
    )
    if llm.weights == "random":
        return copied
    layers = f"--layers {' '.join(map(str, llm.layers))}"
    if PurePosixPath(llm.source).is_absolute() or PureWindowsPath(llm.source).is_absolute():
        name = PureWindowsPath(llm.source).name
        return f"llmreg_fetch_llm FOLDER {layers}, where FOLDER is your copy of '{name}'; or {copied}"
    _, command, hub_id = BUILT_IN.get(llm.source, ("", "", llm.source))
    if command and llm.revision is None:
        return command
    source = hub_id if llm.revision is None else f"{hub_id.partition('@')[0]}@{llm.revision}"
    return f"llmreg_fetch_llm {shlex.quote(source)} {layers}"


def _is_near(source: str) -> bool:
    """Whether a source can be read without a network."""
    return is_local(source) or (source in BUILT_IN and importlib.util.find_spec(BUILT_IN[source][0]) is not None)
