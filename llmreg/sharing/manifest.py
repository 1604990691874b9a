"""The list of files that travels with a shared model, and the names and sizes that they may have."""

import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llmreg.engine.templates import RECORD_FILE
from llmreg.errors import UserError
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.loading import find_layers
from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.language_models.sources import BUILT_IN, is_local
from llmreg.networks.registry import plugin_of
from llmreg.paths import ModelName, llm_cache_folder
from llmreg.plans.plans import PLANS_FILE, Plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE
from llmreg.preprocessing.dataset_alignment import ALL_CASES, TEMPLATES_FOLDER
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.sharing.untrusted_zip import MiB
from llmreg.training.checkpoints import TrainingState, read_state

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
# Prefix of the network's weights in a checkpoint. The optimiser's tensors, which do not travel, have another.
WEIGHTS_PREFIX = "network."

_FOLD = r"fold_(?:0|[1-9][0-9]{0,2}|all)"
_TEMPLATES = rf"{TEMPLATES_FOLDER}/(?:{ALL_CASES}|{_FOLD})/"
_CHECKPOINT = rf"{_FOLD}/checkpoint_(?:final|best|latest)"
# A checkpoint with the 8192 channels of the largest language models has 1 GiB, the fingerprint of 200 cases half a MiB.
_LIMITS = {
    re.compile(re.escape(MANIFEST_FILE)): MiB,
    re.compile(re.escape(PLANS_FILE)): 4 * MiB,
    re.compile(re.escape(FINGERPRINT_FILE)): 32 * MiB,
    re.compile(re.escape(REFERENCE_FILE)): 1024 * MiB,
    re.compile(_TEMPLATES + re.escape(RECORD_FILE)): MiB,
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


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds control characters")
    return text


def _check_model_name(name: str) -> str:
    ModelName.parse(name).check_portable()
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
        source: the language model's name in the plans; of a local one, its folder or file on another computer.
        layers: zero-based indices.
        weights: see :class:`llmreg.networks.language_models.settings.LLMSettings`.
        sha256: digest of the layers' weights.
        revision: commit on the hub, where the layers are known to come from it.
    """

    source: Annotated[str, Field(max_length=1000), AfterValidator(_check_printable)]
    layers: tuple[int, ...]
    weights: Literal["pretrained", "random"]
    sha256: Sha256
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")] | None


class Manifest(_Model):
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


def read_own_state(checkpoint: Path, plans: Plans, configuration: str) -> TrainingState:
    """Read the state of a checkpoint. Raises UserError unless it was trained with these plans."""
    state = read_state(checkpoint)
    if state.configuration != configuration or state.plans_digest != plans.digest(configuration):
        raise UserError(f"{checkpoint} was trained with plans other than {PLANS_FILE}: restore that file.")
    return state


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
        revision = None if cached is None else cache.read_record(cached).revision
    return NeededLayers(source=llm.source, layers=llm.layers, weights=llm.weights, sha256=sha256, revision=revision)


def has_layers(llm: NeededLayers) -> bool:
    """Whether layers are in the layer cache, or can be read from their source without a network."""
    folder = llm_cache_folder()
    is_installed = llm.source in BUILT_IN and importlib.util.find_spec(BUILT_IN[llm.source][0]) is not None
    with suppress(UserError):
        if cache.find(llm.sha256, folder) is not None or is_local(llm.source) or is_installed:
            find_layers(LLMSettings(**llm.model_dump(exclude={"revision"})), folder)
            return True
    return False
