"""Exporting a model: which files travel."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from tiny_study import check_refusal
from torch import nn
from zipped_models import (
    NAME,
    SHA256,
    WEIGHTS,
    members_of,
    plans,
    tree,
)

from llmreg.commands import export_model
from llmreg.engine.templates import read_templates
from llmreg.inference.models import load_model
from llmreg.plans.plans import override, write_plans
from llmreg.preprocessing.common_frame import read_reference
from llmreg.sharing import exporting, installing
from llmreg.training import checkpoints


def test_a_model_travels_whole_and_lean(folder: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    exporting.export_model(load_model(folder), out)
    members = members_of(out.read_bytes())
    template_sets = [f"templates/{name}" for name in ("all", "fold_0", "fold_1")]
    images = [f"{kind}_{m:04d}.nii.gz" for kind in ("seen", "template") for m in (0, 1)]
    assert sorted(members) == sorted(
        ["manifest.json", "plans.json", "dataset_fingerprint.json", "reference.nii.gz"]
        + [f"{template_set}/{name}" for template_set in template_sets for name in ("templates.json", *images)]
        + [f"fold_{fold}/checkpoint_final.{end}" for fold in (0, 1) for end in ("json", "safetensors")]
    )
    manifest = json.loads(members["manifest.json"])
    assert manifest["name"] == NAME
    assert manifest["llm"] == {
        "source": "/elsewhere/language model",
        "layers": [1, 2],
        "weights": "pretrained",
        "sha256": SHA256,
        "revision": None,
    }
    assert manifest["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
        if name != "manifest.json"
    }
    # Nothing tells where the model lay.
    assert not [name for name, content in members.items() if str(folder.parents[2]).encode() in content]
    installed, _ = installing.install_model(out, target)
    assert installed.folder == target / NAME
    assert list(installed.folds) == ["0", "1"]
    assert tree(target / NAME) == {
        name: members.get(name)
        for name in {*members, "fold_0", "fold_1", "templates", *template_sets} - {"manifest.json"}
    }
    assert (target / NAME / "plans.json").read_bytes() == (folder / "plans.json").read_bytes()
    for fold in ("fold_0", "fold_1"):
        before, after = (load_file(place / fold / "checkpoint_final.safetensors") for place in (folder, target / NAME))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert read_templates(target / NAME / "templates" / fold).keys() == {0, 1}
    read_reference(target / NAME, plans())


def test_the_optimisers_moments_stay_at_home(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/fold_0/checkpoint_final.safetensors").unlink()
    out = tmp_path / "model.zip"
    exporting.export_model(load_model(tmp_path / "model", ["0"]), out)
    members = members_of(out.read_bytes())
    before = load_file(folder / "fold_0/checkpoint_latest.safetensors")
    after = load(members["fold_0/checkpoint_latest.safetensors"])
    assert {name for name in before if name.startswith("network.")} == after.keys()
    assert len(before) == 4 * len(after)
    assert all(torch.equal(after[key], before[key]) for key in after)


def test_only_what_the_chosen_folds_use_travels(good_zip: bytes) -> None:
    names = members_of(good_zip)
    assert not [name for name in names if "fold_1" in name]
    assert "templates/all/templates.json" in names
    assert "templates/fold_0/templates.json" in names


def test_the_same_model_gives_the_same_bytes(folder: Path, good_zip: bytes, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    exporting.export_model(load_model(tmp_path / "elsewhere", ["0"]), tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == good_zip
    # An installed model can be exported again.
    installing.install_model(tmp_path / "model.zip", tmp_path / "results")
    exporting.export_model(load_model(tmp_path / "results" / NAME), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == good_zip


@pytest.mark.parametrize("broken", ["plans", "weights", "reference", "templates", "layers"])
def test_a_folder_that_would_not_predict_is_not_exported(
    folder: Path, tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    if broken == "plans":
        write_plans(model / "plans.json", override(plans(), ["loss.smoothness=0.5"], "default"))
    elif broken == "weights":
        (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-1])
    elif broken == "reference":
        (model / "reference.nii.gz").unlink()
    elif broken == "templates":
        (model / "templates/fold_0/seen_0001.nii.gz").unlink()
    else:
        state = checkpoints.read_state(model / WEIGHTS).model_copy(update={"llm_sha256": "f" * 64})
        checkpoints.save_checkpoint(model / "fold_0", "final", state, nn.Conv3d(4, 8, 3))
    before = tree(tmp_path)
    assert export_model.main(["-m", str(model), "-o", str(tmp_path / "model.zip")]) == 2
    messages = {
        "plans": "other than plans.json",
        "weights": "damaged",
        "reference": "reference.nii.gz",
        "templates": "seen_0001",
        "layers": "different layers",
    }
    check_refusal(capsys, messages[broken])
    assert tree(tmp_path) == before


def test_the_limits_leave_room_for_real_models() -> None:
    for name, size in {
        "fold_all/checkpoint_final.safetensors": 1.2e9,
        "reference.nii.gz": 3e8,
        "plans.json": 1e5,
        "dataset_fingerprint.json": 1e7,
        "templates/fold_4/template_0001.nii.gz": 1e6,
    }.items():
        limit = exporting.size_limit(name)
        assert limit is not None
        assert limit > size
    assert exporting.size_limit("manifest.json\n") is None
