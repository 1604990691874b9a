"""The registry of networks, a network that another package registers, and estimates of memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from llmreg.devices import Machine
from llmreg.errors import UnknownName, UserError
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.network_registry import (
    DEFAULT_NETWORK,
    NETWORKS,
    AnyNetworkSettings,
    StepSize,
    default_settings,
    network_settings,
    plugin_of,
    step_seconds,
    training_memory_gb,
)

GRID = (64, 64, 64)
PROCESSOR = Machine("cpu", 64, 2, True)


class Holder(BaseModel):
    network: AnyNetworkSettings


def test_settings_are_those_of_the_network_they_name() -> None:
    for name, plugin in NETWORKS.parts.items():
        settings = default_settings(name)
        assert type(settings) is plugin.settings_type
        assert plugin_of(settings) is plugin
        content = Holder(network=settings).model_dump(mode="json")
        assert content["network"]["name"] == name
        assert Holder.model_validate(content).network == settings


def test_settings_without_a_name_are_those_of_the_default_network() -> None:
    assert Holder.model_validate({"network": {"width": 8}}).network == network_settings(DEFAULT_NETWORK, width=8)
    assert Holder.model_validate({"network": {}}).network == network_settings(DEFAULT_NETWORK)


def test_only_settings_of_unnamed_networks_leave_their_name_to_the_default() -> None:
    """Digests leave defaults out, and must tell networks apart."""
    for name in NETWORKS.names:
        content = network_settings(name).model_dump(exclude_defaults=True)
        assert content == ({} if name == DEFAULT_NETWORK else {"name": name})


@pytest.mark.parametrize(
    ("content", "key", "part"),
    [
        ({"name": "unet"}, ("network",), "dual_pyramid"),
        ({"widht": 4}, ("network", "widht"), "not permitted"),
        ({"name": "transmorph", "stages": 5}, ("network", "stages"), "3 or 4"),
        ({"llm": {"layers": [-1]}}, ("network", "llm", "layers"), "counted from 0"),
        ({"llm": {"calibrate": True}}, ("network", "llm", "calibrate"), "removed"),
        (3, ("network",), "keys and values"),
    ],
)
def test_wrong_settings_are_refused_with_the_path_of_the_key(content: Any, key: tuple[str, ...], part: str) -> None:
    with pytest.raises(ValidationError) as error:
        Holder.model_validate({"network": content})
    problem = error.value.errors()[0]
    assert problem["loc"] == key
    assert part in problem["msg"]


def test_an_unknown_network_has_no_settings() -> None:
    with pytest.raises(UnknownName) as error:
        network_settings("unet")
    assert error.value.known == NETWORKS.names


def test_plans_of_earlier_versions_say_that_layers_are_not_calibrated() -> None:
    assert LLMSettings.model_validate({"calibrate": False}) == LLMSettings()


@pytest.mark.parametrize("name", NETWORKS.names)
def test_estimates_grow_with_what_a_step_has_to_do(name: str) -> None:
    settings = default_settings(name)

    def size(shape: tuple[int, int, int] = GRID, **changes: Any) -> StepSize:
        return StepSize(shape, math.prod(shape), PROCESSOR, **changes)

    memory = training_memory_gb(settings, size())
    assert 0.5 < memory < 4
    assert training_memory_gb(settings, size((64, 64, 128))) > memory
    assert training_memory_gb(settings, size(pairs=2)) > memory
    assert training_memory_gb(settings, size(loss_gb=1.0)) == pytest.approx(memory + math.prod(GRID) / 1e6)
    assert training_memory_gb(settings, size(recompute=True)) <= memory
    seconds = step_seconds(settings, size())
    assert 0.1 < seconds < 60
    assert step_seconds(settings, size((64, 64, 128))) == pytest.approx(2 * seconds, rel=0.01)
    assert step_seconds(settings, size(recompute=True)) >= seconds
    for smaller in plugin_of(settings).narrower(settings):
        assert training_memory_gb(smaller, size()) < memory


@pytest.mark.parametrize("name", NETWORKS.names)
def test_shapes_must_be_multiples_of_the_stride(name: str) -> None:
    settings = default_settings(name)
    plugin = plugin_of(settings)
    stride = plugin.stride(settings)
    shape = (2 * stride, 3 * stride, stride)
    tokens = plugin.token_grid(settings, shape) or (1, 1, 1)
    assert plugin.shape_problem(settings, shape, tokens) is None
    if stride > 1:
        assert plugin.shape_problem(settings, (2 * stride + 1, *shape[1:]), tokens)
    if plugin.token_grid(settings, shape) is not None:
        assert plugin.shape_problem(settings, shape, (1, 1, 1))


def test_ablations_change_the_plans_of_the_network_that_has_them() -> None:
    settings = default_settings()
    plugin = plugin_of(settings)
    for name in plugin.applicable_ablations(settings):
        assert all(change.startswith("network.") for change in plugin.ablation(settings, name).changes)
    assert "no-cost-volume" in plugin.applicable_ablations(settings)
    assert "no-cost-volume" not in plugin.applicable_ablations(network_settings(DEFAULT_NETWORK))
    assert plugin.ablation(settings, "layers-3-4").changes == ("network.llm.layers=[3,4]",)
    with pytest.raises(UserError):
        plugin_of(default_settings("voxelmorph")).ablation(default_settings("voxelmorph"), "vit")


def test_names_and_summaries_are_known_without_torch() -> None:
    code = (
        "import sys; from llmreg.networks.network_registry import NETWORKS, all_ablations; "
        "print(len(NETWORKS.names), len(all_ablations()) > 0, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == [str(len(NETWORKS.names)), "True", "False"]


# A network as another package would bring it: one convolution and a field head.
TOY = """
from typing import Literal

from llmreg.networks.network_registry import NetworkPlugin, NetworkSettings, StepCost, register


class ToySettings(NetworkSettings):
    name: Literal["toy"]
    width: int = 4


class ToyPlugin(NetworkPlugin[ToySettings]):
    name = "toy"
    title = "Toy"
    summary = "a single convolution"
    settings_type = ToySettings

    def build(self, settings, shape, device):
        from toy_network.network import Toy

        return Toy(settings, shape)

    def step_cost(self, settings, size):
        return StepCost(trained_parameters=1e3, activations_gb=0.1 * size.megavoxels, core_seconds=size.megavoxels)

    def stride(self, settings):
        return 6


register(ToyPlugin())
"""
TOY_NETWORK = """
import torch
from torch import nn

from llmreg.networks.layers import ConvBlock, FieldHead
from llmreg.networks.registration_network import RegistrationNetwork


class Toy(RegistrationNetwork):
    def __init__(self, settings, shape):
        super().__init__(shape, settings.field)
        self.conv = ConvBlock(2, settings.width, "none")
        self.head = FieldHead(settings.width)

    def predict(self, moving, fixed):
        return self.head(self.conv(moving, fixed))
"""
# Plans, two steps of training, a checkpoint, and prediction, all by the functions that the commands call.
TRAIN_AND_PREDICT = """
import json, sys
from pathlib import Path

import torch

from llmreg.devices import Machine
from llmreg.inference.predictor import Ensemble
from llmreg.inference.models import Model
from llmreg.networks.factory import build_network
from llmreg.networks.network_registry import NETWORKS, network_settings
from llmreg.networks.registration_network import GridNetwork
from llmreg.plans.plans import parse_plans
from llmreg.preprocessing.planning.sizes import Budget
from llmreg.preprocessing.planning.sizes import plan_configuration
from llmreg.training.checkpoints import TrainingState, checkpoint_path, save_checkpoint
from llmreg.training.step import Learner

content = json.loads(sys.argv[1])
settings = network_settings("toy", width=2)
configuration = plan_configuration((20, 17, 24), 2, settings, Budget(Machine("cpu", 8, 1, False)))
content |= {"network": settings.model_dump(mode="json"), "size": [20, 17, 24]}
content["configurations"] = {"half": configuration.model_dump(mode="json")}
plans = parse_plans(content, "the plans")
device, folder = torch.device("cpu"), Path(sys.argv[2])
network = build_network(plans.network, configuration.network_shape[::-1], device)
model = GridNetwork(network, configuration.downsampling)
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
images = torch.rand(2, 1, 1, *model.shape)
batch = {"moving": images[0], "fixed": images[1], "labels": torch.tensor([1])}
for role in ("moving", "fixed"):
    batch[f"{role}_labels"] = (batch[role][:, 0] > 0.5).to(torch.uint8)
    batch[f"{role}_seen"] = torch.ones_like(batch[f"{role}_labels"])
learner = Learner(model, optimizer, device, plans.loss, plans.training)
before = [parameter.clone() for parameter in network.parameters()]
for _ in range(2):
    learner.step(iter([batch]), 0.01)
assert not any(torch.equal(*pair) for pair in zip(before, network.parameters()))
state = TrainingState(plans_digest=plans.digest("half"), llm_sha256="", configuration="half", fold="0", epochs=1)
save_checkpoint(folder, "final", state, network)
ensemble = Ensemble(Model(folder, "half", {"0": checkpoint_path(folder, "final")}), plans, device)
(flow,) = ensemble.flows(*images)
torch.testing.assert_close(flow, model.eval()(*images).full)
print(json.dumps({"names": NETWORKS.names, "padded": configuration.padded_size, "shape": list(flow.shape[2:])}))
"""
PLANS = {
    "dataset_name": "Dataset001_Toy",
    "plans_name": "default",
    "spacing": [2, 2, 2],
    "centre": [0, 0, 0],
    "fixed_modality": 0,
    "moving_modality": 1,
    "labels": {"1": "blob"},
    "normalization": {},
    "prealignment": {"method": "identity", "reference_case": "Toy_0001_0000"},
    "default_configuration": "half",
    "training": {"autocast": "none"},
    "reasons": {},
}


def install(folder: Path, name: str, plugin: str, network: str = "") -> None:
    """Write a package with an entry point, as pip would install it."""
    package, info = folder / name, folder / f"{name}-1.0.dist-info"
    for created in (package, info):
        created.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(plugin)
    (package / "network.py").write_text(network)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llmreg.networks]\n{name} = {name}.plugin\n")


def run_beside(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that sees the packages of a folder."""
    path = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, check=False)


def test_a_network_of_another_package_is_planned_trained_and_predicts(tmp_path: Path) -> None:
    install(tmp_path, "toy_network", TOY, TOY_NETWORK)
    process = run_beside(tmp_path, TRAIN_AND_PREDICT, json.dumps(PLANS), str(tmp_path / "model"))
    assert process.returncode == 0, process.stderr
    content = json.loads(process.stdout)
    assert sorted(content["names"]) == sorted([*NETWORKS.names, "toy"])
    # Multiples of twice the stride of 6.
    assert content["padded"] == [24, 24, 24]
    assert content["shape"] == [24, 24, 24]


def test_a_broken_package_is_one_warning(tmp_path: Path) -> None:
    install(tmp_path, "broken_network", "raise RuntimeError('half installed')\n")
    code = "from llmreg.networks.network_registry import NETWORKS; print(*NETWORKS.names)"
    process = run_beside(tmp_path, code)
    assert sorted(process.stdout.split()) == sorted(NETWORKS.names)
    assert len(process.stderr.splitlines()) == 1
    assert "broken_network" in process.stderr


# Network, changes of its settings, gradient checkpointing, size of the grid along each axis, peaks in float32 and
# bfloat16 (None: not measured).
MEASURED: list[tuple[str, dict[str, Any], bool, int, tuple[float | None, float]]] = [
    ("voxelmorph", {}, False, 64, (0.76, 0.77)),
    ("voxelmorph", {}, False, 96, (1.80, 1.40)),
    ("voxelmorph", {"size": "small"}, False, 96, (1.57, 1.47)),
    ("transmorph", {}, False, 64, (2.03, 1.81)),
    ("transmorph", {}, False, 96, (2.93, 2.55)),
    ("transmorph", {"stages": 3}, False, 64, (1.44, 1.25)),
    ("transmorph", {"stages": 3}, False, 96, (None, 2.05)),
    ("mambamorph", {}, False, 96, (3.62, 2.83)),
    ("mambamorph", {}, True, 96, (2.93, 2.16)),
    ("mambamorph", {"features": False}, False, 96, (2.68, 2.41)),
    ("dual_pyramid", {}, False, 96, (1.63, 1.51)),
    ("dual_pyramid", {"width": 16}, False, 64, (None, 0.93)),
    ("dual_pyramid", {"width": 16}, False, 96, (2.29, 1.92)),
]


@pytest.mark.parametrize(("name", "changes", "recompute", "edge", "peaks"), MEASURED)
def test_memory_is_estimated_as_measured(
    name: str, changes: dict[str, Any], recompute: bool, edge: int, peaks: tuple[float | None, float]
) -> None:
    settings = network_settings(name, **changes)
    for bfloat16, peak in enumerate(peaks):
        if peak is not None:
            size = StepSize((edge,) * 3, edge**3, Machine("cpu", 64, 2, bool(bfloat16)), recompute)
            assert training_memory_gb(settings, size) == pytest.approx(peak, rel=0.2)


def test_trained_layers_of_a_vision_transformer_are_counted() -> None:
    """With tokens of 4,096 channels, two trained layers and their Adam states take 6 GiB."""
    size = StepSize((96, 80, 96), 96 * 80 * 96, Machine("cpu", 64, 2, True))
    measured = 10.18
    settings = network_settings("llm_morph", blocks="vit", token_width=4096, cost_volume=1)
    assert training_memory_gb(settings, size) == pytest.approx(measured, rel=0.15)
    adapters = network_settings("llm_morph", blocks="adapters", token_width=4096, cost_volume=1)
    assert training_memory_gb(settings, size) - training_memory_gb(adapters, size) == pytest.approx(6.0, abs=0.1)
