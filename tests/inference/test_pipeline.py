"""Pairs in the pipeline, with a predictor that records what is asked of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_model_folder import make_image

from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import BadImage
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.inference.pair_inputs import PairInput
from llmreg.inference.pipeline import OutputOptions, measure, register_all
from llmreg.inference.registration import FADE, Registration
from llmreg.predictions import FailedPair, PredictedPair

GRID = Grid.from_centre((6, 7, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
FRAME = Grid.from_centre((26, 27, 28), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


class RecordingPredictor:
    """Registers nothing; fails for a pair whose fixed image is called ``bad``."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def record(self, step: str, name: str) -> None:
        with self.lock:
            self.events.append((step, name))

    def prepare(self, fixed: Any, moving: Any, initial: Any) -> Any:
        self.record("prepare", fixed.image.name)
        self.inputs = fixed, moving, initial
        if fixed.image.name == "bad":
            raise BadImage(fixed.image, "is broken")
        return SimpleNamespace(fixed=fixed, moving=moving, initial=initial)

    def register(self, pair: Any) -> Registration:
        self.record("register", pair.fixed.image.name)
        placements = [CaseTransform(np.eye(3), np.full(3, shift), stage) for shift, stage in ((0.0, "f"), (1.0, "m"))]
        vectors = np.zeros((*FRAME.shape, 3), np.float32)
        vectors[..., 0] = 2.0
        return Registration(make_image(GRID, 0), make_image(GRID, 1), *placements, DisplacementField(vectors, FRAME))


def make_pair(name: str) -> PairInput:
    return PairInput(
        f"id {name}", f"{name}_m", Path(name), Path(f"{name}_moving"), 0, 1, moving_points=Path("points.csv")
    )


def run(predictor: RecordingPredictor, folder: Path, *names: str, **options: Any) -> list[PredictedPair | FailedPair]:
    pairs = [make_pair(name) for name in names]
    results = list(register_all(predictor, pairs, folder, OutputOptions(**options)))  # type: ignore[arg-type]
    assert [pair for pair, _ in results] == pairs
    return [outcome for _, outcome in results]


def test_pairs_come_in_order_with_their_files_and_figures(tmp_path: Path) -> None:
    predictor = RecordingPredictor()
    outcomes = run(predictor, tmp_path, *"abcde", outputs=("field", "prealignment"))
    for name, outcome in zip("abcde", outcomes, strict=True):
        assert isinstance(outcome, PredictedPair)
        assert (outcome.pair_id, outcome.fixed, outcome.moving) == (f"id {name}", name, f"{name}_moving")
        assert outcome.fixed_path == str(Path(name).absolute())
        assert outcome.moving_path == str(Path(f"{name}_moving").absolute())
        assert (outcome.fixed_points, outcome.moving_points) == (None, str(Path("points.csv").absolute()))
        assert outcome.fixed_transform is not None
        assert outcome.moving_transform is not None
        assert (outcome.fixed_transform.stage, outcome.moving_transform.stage) == ("f", "m")
        assert (outcome.mean_mm, outcome.largest_mm, outcome.folding_percent) == (2.0, 2.0, 0.0)
        assert sorted(path.name for path in tmp_path.glob(f"*_{name}_m.*")) == [
            f"disp_{name}_m.nii.gz",
            f"prealign_{name}_m.tfm",
        ]
        assert "warped" not in outcome.to_json()
    assert [name for step, name in predictor.events if step == "register"] == list("abcde")


def test_the_predictor_gets_each_images_own_modality_and_mask(tmp_path: Path) -> None:
    predictor = RecordingPredictor()
    pair = PairInput("p", "f_m", Path("f"), Path("m"), 0, 1, fixed_mask=Path("fm"), moving_mask=Path("mm"))
    pair = replace(pair, initial_transform=Path("start.tfm"))
    list(register_all(predictor, [pair], tmp_path, OutputOptions(("prealignment",))))  # type: ignore[arg-type]
    fixed, moving, initial = predictor.inputs
    assert (fixed.image, fixed.modality, fixed.mask) == (Path("f"), 0, Path("fm"))
    assert (moving.image, moving.modality, moving.mask) == (Path("m"), 1, Path("mm"))
    assert initial == Path("start.tfm")


def test_a_pair_that_fails_is_an_outcome(tmp_path: Path) -> None:
    good, bad, last = run(RecordingPredictor(), tmp_path, "a", "bad", "c", outputs=("field",))
    assert isinstance(good, PredictedPair)
    assert isinstance(last, PredictedPair)
    assert isinstance(bad, FailedPair)
    assert (bad.pair_id, bad.fixed, bad.moving) == ("id bad", "bad", "bad_moving")
    assert "is broken" in bad.failed


def test_a_full_disk_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    predictor = RecordingPredictor()
    monkeypatch.setattr(Registration, "save", fail)
    with pytest.raises(OSError, match="No space"):
        run(predictor, tmp_path, *"abcdefgh")
    # At most the pairs in flight were begun.
    assert len({name for _, name in predictor.events}) <= 4


def test_a_large_pair_is_worked_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a large pair, no pair is read before the previous one is written."""
    predictor = RecordingPredictor()
    save = Registration.save

    def record_save(registration: Registration, folder: Path, name: str, *more: Any) -> dict[str, str]:
        files = save(registration, folder, name, *more)
        predictor.record("written", name.removesuffix("_m"))
        return files

    monkeypatch.setattr(Registration, "save", record_save)
    monkeypatch.setattr("llmreg.inference.pipeline.is_large", lambda path: path.name.startswith("c"))
    run(predictor, tmp_path, *"abcd", outputs=("field",))
    steps = [event for event in predictor.events if event[0] != "register"]
    assert sorted(steps[:4]) == [("prepare", "a"), ("prepare", "b"), ("written", "a"), ("written", "b")]
    assert steps[4:] == [("prepare", "c"), ("written", "c"), ("prepare", "d"), ("written", "d")]


PLAIN_FRAME = Grid.from_centre((8, 9, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
PADDED_FRAME = Grid.from_centre((8 + 2 * FADE, 9 + 2 * FADE, 10 + 2 * FADE), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


def test_figures_are_of_the_frame_alone() -> None:
    vectors = np.zeros((*PADDED_FRAME.shape, 3), np.float32)
    vectors[...] = (3.0, 4.0, 0.0)
    vectors[FADE + 4, FADE + 4, FADE + 4] = (3.0, 4.0, 12.0)
    # Outside the frame the vectors are longer and fold.
    vectors[0] = (0.0, 0.0, 100.0)
    place = CaseTransform(np.eye(3), np.zeros(3), "centre")
    spread = array_to_image(np.full(PLAIN_FRAME.shape, 1.234, np.float32), PLAIN_FRAME)
    image = make_image(PLAIN_FRAME, 0)
    field = DisplacementField(vectors, PADDED_FRAME)
    figures = measure(Registration(image, image, place, place, field, spread=spread, refined=(2.0, 1.0)))
    voxels = PLAIN_FRAME.shape[0] * PLAIN_FRAME.shape[1] * PLAIN_FRAME.shape[2]
    assert figures["mean_mm"] == pytest.approx((5 * (voxels - 1) + 13) / voxels, abs=0.01)
    assert figures["largest_mm"] == 13
    assert figures["folding_percent"] == pytest.approx(100 / voxels, abs=1e-4)
    assert figures["refined"] == {"before": 2.0, "after": 1.0}
    assert figures["uncertainty_mm"] == 1.23
    assert measure(Registration(image, image, place, place, field)).keys() == {
        "mean_mm",
        "largest_mm",
        "folding_percent",
    }
