"""Which pairs of a folder count as predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmreg.errors import OtherPredictions
from llmreg.inference.pair_inputs import PairInput
from llmreg.inference.resume import describe_sources, find_pending, is_current, make_record, remove_prediction
from llmreg.predictions import FailedPair, PredictedPair, Provenance, record_path, write_record

PROVENANCE = Provenance(model="m", folds=["0"], options={"refine": 0}, format="itk")
OUTCOME = PredictedPair(pair_id="p", fixed="f", moving="m", field="disp.nii.gz")


@pytest.fixture
def pair(tmp_path: Path) -> PairInput:
    """A pair that is predicted in ``tmp_path``."""
    for name in ("f.nii.gz", "m.nii.gz", "disp.nii.gz"):
        (tmp_path / name).write_bytes(name.encode())
    pair = PairInput("p", "f_m", tmp_path / "f.nii.gz", tmp_path / "m.nii.gz", 0)
    write_record(tmp_path, "f_m", make_record(pair, OUTCOME, PROVENANCE, {"peak_memory_gb": 1.0}))
    return pair


def test_a_predicted_pair_is_not_pending(pair: PairInput, tmp_path: Path) -> None:
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == []


def test_pairs_without_record_or_output_and_failed_ones_are_pending(pair: PairInput, tmp_path: Path) -> None:
    other = replace(pair, name="other")
    assert find_pending([pair, other], tmp_path, PROVENANCE, ["field"]) == [other]
    assert find_pending([pair], tmp_path, PROVENANCE, ["field", "warped"]) == [pair]
    (tmp_path / "disp.nii.gz").unlink()
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == [pair]
    write_record(tmp_path, "f_m", make_record(pair, FailedPair(pair_id="p", failed="broken"), PROVENANCE, {}))
    assert find_pending([pair], tmp_path, PROVENANCE, []) == [pair]


def test_changed_images_and_modalities_are_pending(pair: PairInput, tmp_path: Path) -> None:
    other = replace(pair, fixed_modality=1)
    assert find_pending([other], tmp_path, PROVENANCE, ["field"]) == [other]
    swapped = replace(pair, fixed=pair.moving, moving=pair.fixed)
    assert find_pending([swapped], tmp_path, PROVENANCE, ["field"]) == [swapped]
    pair.moving.write_bytes(b"other")
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == [pair]


def test_touched_images_are_not(pair: PairInput, tmp_path: Path) -> None:
    pair.fixed.touch()
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == []


def test_predictions_of_another_model_are_neither_resumed_nor_counted(pair: PairInput, tmp_path: Path) -> None:
    other = PROVENANCE.model_copy(update={"checkpoints": ["x"]})
    with pytest.raises(OtherPredictions, match="checkpoints"):
        find_pending([pair], tmp_path, other, ["field"])
    record = make_record(pair, OUTCOME, other, {})
    assert not is_current(pair, record, tmp_path, PROVENANCE, ["field"])
    assert is_current(pair, record, tmp_path, other, ["field"])


def test_sources_are_paths_with_digests_and_text(pair: PairInput) -> None:
    sources = describe_sources(pair)
    assert sources["fixed"].startswith(f"{pair.fixed} ")
    assert sources["fixed"].split()[1] != sources["moving"].split()[1]
    assert (sources["pair_id"], sources["fixed_modality"], sources["fixed_mask"]) == ("p", "0", "None")


def test_removing_leaves_nothing_of_the_pair(pair: PairInput, tmp_path: Path) -> None:
    (tmp_path / ".partial-abcdefgh-disp_f_m.nii.gz").touch()
    remove_prediction(pair, tmp_path, "itk")
    assert not record_path(tmp_path, "f_m").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["f.nii.gz", "m.nii.gz"]
