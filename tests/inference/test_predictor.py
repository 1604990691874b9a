"""A predictor against its network, called by hand on the images in the frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_model_folder import PADDED, make_image, make_network, make_plans, write_model, write_pair

from llmreg.engine.refinement import refine
from llmreg.errors import BadArgument, UserError
from llmreg.geometry import warping
from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.grid import Grid, image_to_array
from llmreg.inference.case_reader import ImageInput
from llmreg.inference.models import load_model
from llmreg.inference.predictor import Ensemble, Predictor, RegistrationOptions, deviation
from llmreg.inference.registration import FADE, Registration
from llmreg.networks.registration_network import RegistrationNetwork, pad_to_shape
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import FramedCase, bring_into_frame

CPU = torch.device("cpu")
FRAME = (slice(FADE, -FADE),) * 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two folds that predict displacements."""
    return write_model(tmp_path_factory.mktemp("model"), make_plans(), ("0", "1"))


def predict(folder: Path, images: tuple[Path, Path], *folds: str, **options: bool | int) -> Registration:
    return Predictor.from_folder(folder, folds, "cpu", RegistrationOptions(**options)).predict(*images)


def frame_cases(plans: Plans, images: tuple[Path, Path]) -> list[FramedCase]:
    """The fixed and the moving image in the frame."""
    return [
        bring_into_frame(sitk.ReadImage(str(path)), plans.normalization[modality], plans, path)
        for path, modality in zip(images, (plans.fixed_modality, plans.moving_modality), strict=True)
    ]


def network_flow(plans: Plans, images: tuple[Path, Path], seed: int = 0, strength: float = 0.5) -> np.ndarray:
    """What the network of a fold predicts on the frame, (z, y, x, 3) in voxels."""
    volumes = []
    for case in frame_cases(plans, images):
        padded, crop = pad_to_shape(case.image, plans.configuration("full").padded_size[::-1])
        volumes.append(torch.from_numpy(np.ascontiguousarray(padded))[None, None])
    fixed, moving = volumes
    with torch.inference_mode():
        flow = make_network(plans, seed, strength).predict_raw(moving=moving, fixed=fixed)
    return flow[(0, slice(None), *crop)].permute(1, 2, 3, 0).numpy()


def in_voxels(registration: Registration, plans: Plans) -> np.ndarray:
    return registration.deformation.vectors[FRAME] / np.array(plans.spacing)


def test_the_network_warps_the_moving_image_onto_the_fixed_one(folder: Path, images: tuple[Path, Path]) -> None:
    plans = make_plans()
    registration = predict(folder, images, "0")
    expected = network_flow(plans, images)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(in_voxels(registration, plans), expected, atol=1e-4)
    assert not np.allclose(network_flow(plans, images[::-1]), expected, atol=0.1)
    for image, path in ((registration.warped, images[0]), (registration.moving, images[1])):
        assert Grid.from_image(image).same_as(Grid.from_image(sitk.ReadImage(str(path))))


def test_points_go_through_frame_and_field_into_the_moving_image(folder: Path, images: tuple[Path, Path]) -> None:
    registration = predict(folder, images, "0")
    frame = make_plans().frame
    # Cases are placed by the middle of their foreground, which the frame's middle corresponds to.
    index = np.array([6.0, 8.0, 5.0])
    point = frame.index_to_physical(index)
    shift = registration.deformation.vectors[FRAME][5, 8, 6]
    start = registration.fixed_transform.matrix @ point + registration.fixed_transform.translation
    end = registration.moving_transform.matrix @ (point + shift) + registration.moving_transform.translation
    np.testing.assert_allclose(registration.warp_points(start[None])[0], end, atol=1e-3)


def test_folds_are_averaged(folder: Path, images: tuple[Path, Path]) -> None:
    single = [predict(folder, images, fold).deformation.vectors for fold in ("0", "1")]
    ensemble = predict(folder, images, "0", "1").deformation.vectors
    assert not np.allclose(single[0], single[1], atol=0.5)
    np.testing.assert_allclose(ensemble, np.mean(single, axis=0), atol=1e-4)


def test_velocities_are_averaged_and_followed_both_ways(tmp_path: Path, images: tuple[Path, Path]) -> None:
    plans = make_plans("velocity")
    folder = write_model(tmp_path, plans, ("0", "1"), strength=0.2)
    registration = predict(folder, images, "0", "1")
    velocity = np.mean([network_flow(plans, images, seed, 0.2) for seed in (0, 1)], axis=0)
    flow = warping.exponential(torch.from_numpy(velocity).permute(3, 0, 1, 2)[None])
    expected = flow[0].permute(1, 2, 3, 0).numpy()
    # Near the frame's border, the velocity that fades outside it is followed further than the frame shows.
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(in_voxels(registration, plans)[inner], expected[inner], atol=0.05)
    assert jacobian_determinant(registration.deformation).min() > 0
    points = registration.warp_points(registration.fixed_transform.translation[None])
    back = registration.inverse().warp_points(points)
    np.testing.assert_allclose(back, registration.fixed_transform.translation[None], atol=0.1)


def test_the_uncertainty_is_the_spread_over_folds_in_the_moving_image(folder: Path, images: tuple[Path, Path]) -> None:
    """The moving image is twice as large as the fixed one, so that the same displacements are twice as long in it."""
    initial = sitk.AffineTransform(3)
    initial.Scale(2.0)
    predictor = Predictor.from_folder(folder, None, "cpu", RegistrationOptions(uncertainty=True))
    registration = predictor.predict(*images, initial)
    single = [
        Predictor.from_folder(folder, [fold], "cpu").predict(*images, initial).deformation.vectors[FRAME]
        for fold in ("0", "1")
    ]
    expected = 2 * np.linalg.norm(single[0] - single[1], axis=-1) / np.sqrt(2)
    assert registration.spread is not None
    np.testing.assert_allclose(image_to_array(registration.spread), expected, rtol=1e-3, atol=1e-3)


def test_the_uncertainty_of_one_fold_is_refused(folder: Path) -> None:
    with pytest.raises(BadArgument, match="fold 1 is alone") as refusal:
        Predictor.from_folder(folder, ["1"], "cpu", RegistrationOptions(uncertainty=True))
    assert refusal.value.argument == "folds"


def test_a_given_start_leads_from_the_fixed_to_the_moving_image(tmp_path: Path, images: tuple[Path, Path]) -> None:
    folder = write_model(tmp_path, make_plans(), strength=0.0)
    initial = sitk.Euler3DTransform((5.0, -8.0, 11.0), 0.1, 0.05, -0.1, (-24.0, 10.0, 28.0))
    sitk.WriteTransform(initial, str(tmp_path / "initial.tfm"))
    for start in (initial, tmp_path / "initial.tfm"):
        registration = Predictor.from_folder(folder, device="cpu").predict(*images, start)
        point = (7.0, -6.0, 13.0)
        assert registration.moving_transform.stage == "given"
        np.testing.assert_allclose(
            registration.transform.TransformPoint(point), initial.TransformPoint(point), atol=1e-3
        )
        for image, path in zip((registration.fixed, registration.moving), images, strict=True):
            np.testing.assert_array_equal(image_to_array(image), image_to_array(sitk.ReadImage(str(path))))


def test_refinement_moves_the_moving_image(tmp_path: Path) -> None:
    """The moving image is the fixed one two voxels further along x, which the network does not see."""
    plans = make_plans(method="identity")
    folder = write_model(tmp_path, plans, strength=0.0)
    fixed = make_image(plans.frame, 3)
    moving = sitk.Image(fixed)
    moving.SetOrigin(np.add(fixed.GetOrigin(), (4.0, 0.0, 0.0)).tolist())
    options = RegistrationOptions(refine=15)
    moving_input = ImageInput(moving, modality="MR")
    registration = Predictor.from_folder(folder, None, CPU, options).predict(
        ImageInput(fixed, modality="MR"), moving_input
    )
    assert registration.refined is not None
    assert registration.refined[1] < registration.refined[0]
    shift = registration.deformation.vectors[FRAME][4:8, 6:10, 5:9].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(shift, (4.0, 0.0, 0.0), atol=1.5)


def test_refinement_knows_what_each_image_shows(folder: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    plans = make_plans()
    sitk.WriteImage(sitk.ReadImage(str(images[1]))[:, :9], str(tmp_path / "half.nii.gz"))
    images = (images[0], tmp_path / "half.nii.gz")
    fixed, moving = frame_cases(plans, images)
    assert (fixed.seen != moving.seen).any()
    flow = torch.from_numpy(network_flow(plans, images)).permute(3, 0, 1, 2)[None].contiguous()
    tensors = [torch.from_numpy(case.image)[None, None] for case in (fixed, moving)]
    tensors += [torch.from_numpy(case.seen)[None] for case in (fixed, moving)]
    expected = refine(flow, *tensors, plans.loss, 8)
    registration = predict(folder, images, "0", refine=8)
    assert registration.refined == pytest.approx((expected.before, expected.after), rel=1e-4)
    refined = expected.flow[0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_allclose(in_voxels(registration, plans), refined, atol=1e-2)


def test_a_diffeomorphic_field_is_near_the_free_one_and_folds_nowhere(folder: Path, images: tuple[Path, Path]) -> None:
    free, smooth = (predict(folder, images, "0", diffeomorphic=diffeomorphic) for diffeomorphic in (False, True))
    assert jacobian_determinant(smooth.deformation).min() > 0
    distances = np.linalg.norm(free.deformation.vectors - smooth.deformation.vectors, axis=-1)
    assert distances.mean() < 0.3 * np.linalg.norm(free.deformation.vectors, axis=-1).mean()


def test_modalities_are_resolved_and_warned_of(
    folder: Path, images: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Predictor.from_folder(folder, ["0"], "cpu")
    expected = predictor.predict(*images).field.vectors
    for fixed, moving in (("mr", "CT"), ("0", "1"), (0, 1)):
        registration = predictor.predict(ImageInput(images[0], fixed), ImageInput(images[1], moving))
        np.testing.assert_array_equal(registration.field.vectors, expected)
    assert not caplog.text
    predictor.predict(ImageInput(images[0], 1), ImageInput(images[1], 0))
    assert caplog.text.count("trained to warp CT onto MR, not MR onto CT") == 1
    predictor.predict(ImageInput(images[0], "PET"), images[1])
    predictor.predict(ImageInput(images[0], "PET"), images[1])
    assert caplog.text.count("not trained on 'PET'") == 1
    with pytest.raises(UserError, match="no modality 5"):
        predictor.predict(ImageInput(images[0], 5), images[1])


def test_a_bidirectional_model_takes_both_directions(
    tmp_path: Path, images: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path, make_plans(bidirectional=True))
    Predictor.from_folder(folder, device="cpu").predict(ImageInput(images[1], 1), ImageInput(images[0], 0))
    assert not caplog.text


def test_checkpoints_of_other_plans_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, make_plans())
    other_folder = write_model(tmp_path / "other", make_plans("velocity"))
    (folder / "plans.json").write_bytes((other_folder / "plans.json").read_bytes())
    with pytest.raises(UserError, match=r"checkpoint_final\.safetensors was trained with plans other"):
        Predictor.from_folder(folder, device="cpu")


NETWORK_SHAPE = PADDED[::-1]


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, *NETWORK_SHAPE, generator=generator), torch.rand(1, 1, *NETWORK_SHAPE, generator=generator)


def test_each_fold_predicts_with_its_own_weights_time_and_again(tmp_path: Path) -> None:
    plans = make_plans()
    ensemble = Ensemble(load_model(write_model(tmp_path, plans, ("0", "1"))), plans, CPU)
    moving, fixed = random_pair()
    with torch.inference_mode():
        expected = [make_network(plans, seed).predict_raw(moving, fixed) for seed in (0, 1)]
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    for _ in range(2):
        for flow, expected_flow in zip(ensemble.flows(moving, fixed), expected, strict=True):
            torch.testing.assert_close(flow, expected_flow, atol=1e-5, rtol=1e-4)
    assert not ensemble.predicts_velocity


LIMIT = 2**-7


def predict_with_lora(tmp_path: Path, change: float, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The flow along x of a network of zeros, in which merging LoRA adds ``change`` voxels, exactly, everywhere."""

    def merge_lora(network: Any) -> Callable[[], None]:
        bias = network.head.bias.detach()
        bias[0] += change
        return lambda: bias[0].sub_(change)

    monkeypatch.setattr(RegistrationNetwork, "merge_lora", merge_lora)
    monkeypatch.setattr("llmreg.inference.predictor.MERGED_CHANGE", LIMIT)
    plans = make_plans()
    (flow,) = Ensemble(load_model(write_model(tmp_path, plans, strength=0.0)), plans, CPU).flows(*random_pair())
    return flow[:, 0]


@pytest.mark.parametrize("change", [0.0, LIMIT / 2, -LIMIT / 2])
def test_lora_is_merged_where_that_changes_the_field_by_less_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    assert predict_with_lora(tmp_path, change, monkeypatch).unique().tolist() == [change]


@pytest.mark.parametrize("change", [LIMIT, 2 * LIMIT, -2 * LIMIT])
def test_lora_is_taken_out_again_where_it_changes_the_field_by_the_limit_or_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    assert predict_with_lora(tmp_path, change, monkeypatch).unique().tolist() == [0.0]


def test_lora_is_judged_on_one_pair_whose_images_keep_their_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's flow depends on both images, and differs by far more than the limit when they are exchanged."""
    merges = []
    monkeypatch.setattr(RegistrationNetwork, "merge_lora", lambda network: merges.append(network) or bool)
    plans = make_plans()
    Ensemble(load_model(write_model(tmp_path, plans)), plans, CPU)
    # It is merged once to be judged, and once more to stay.
    assert len(merges) == 2


def test_no_lora_is_merged_where_folds_share_the_frozen_weights_or_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = make_plans()
    folder = write_model(tmp_path, plans, ("0", "1"))
    monkeypatch.setattr(RegistrationNetwork, "merge_lora", lambda network: pytest.fail("LoRA was merged"))
    Ensemble(load_model(folder), plans, CPU)
    Ensemble(load_model(folder, ["0"]), plans, CPU, merge_lora=False)


def test_the_images_keep_their_roles(tmp_path: Path) -> None:
    plans = make_plans()
    ensemble = Ensemble(load_model(write_model(tmp_path, plans)), plans, CPU)
    moving, fixed = random_pair()
    (flow,), (swapped,) = (list(ensemble.flows(*pair)) for pair in ((moving, fixed), (fixed, moving)))
    assert not torch.allclose(flow, swapped, atol=0.1)


def test_the_deviation_is_measured_after_the_transform() -> None:
    rng = np.random.default_rng(0)
    flows = [rng.normal(size=(3, 4, 5, 3)).astype(np.float32) for _ in range(3)]
    matrix = np.array([[2.0, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    mapped = np.einsum("ij,fzyxj->fzyxi", matrix, np.stack(flows))
    expected = np.sqrt(mapped.var(axis=0, ddof=1).sum(axis=-1))
    np.testing.assert_allclose(deviation(flows, matrix), expected, rtol=1e-5)
