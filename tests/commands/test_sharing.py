"""A trained model, exported and installed elsewhere, predicts the same field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from safetensors.torch import load_file
from tiny_study import NAME, model

from llmreg.commands import export_model, install_model, predict


def test_an_installed_model_predicts_the_same_bit_by_bit(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "model.zip"
    # Other tests train further folds of the model.
    model_options = ["-m", str(model(environment)), "-f", "0"]
    assert export_model.main([*model_options, "-o", str(shared)]) == 0
    latest = model(environment) / "fold_0" / "checkpoint_latest.safetensors"
    assert shared.stat().st_size < 0.6 * latest.stat().st_size
    cases = sorted((environment / "raw" / NAME / "imagesTs").glob("*"))[:2]
    (tmp_path / "in").mkdir()
    for case in cases:
        (tmp_path / "in" / case.name).symlink_to(case)
    arguments = ["-i", str(tmp_path / "in"), "--device", "cpu", "-o"]
    assert predict.main([*arguments, str(tmp_path / "there"), *model_options]) == 0
    monkeypatch.setenv("llmreg_results", str(tmp_path / "results"))
    capsys.readouterr()
    assert install_model.main([str(shared)]) == 0
    printed = capsys.readouterr().out
    installed = tmp_path / "results" / NAME / model(environment).name
    assert f"-m {installed}" in printed
    assert "are here" in printed
    weights = load_file(installed / "fold_0" / "checkpoint_final.safetensors")
    assert not [name for name in weights if "base_layer" in name or not name.startswith("network.")]
    # The only model there is.
    assert predict.main([*arguments, str(tmp_path / "here")]) == 0
    (field,) = (path.name for path in (tmp_path / "there").glob("disp_*"))
    before, after = (sitk.ReadImage(str(tmp_path / place / field)) for place in ("there", "here"))
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(image) for image in (before, after)))
    assert np.abs(sitk.GetArrayFromImage(before)).max() > 0
    assert before.GetOrigin() == after.GetOrigin()
