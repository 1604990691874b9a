"""A trained model that registers images: its folds predict in turn, and their predictions are averaged."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llmreg.arguments import check_count
from llmreg.devices import autocast, choose_device
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import BadArgument
from llmreg.geometry import warping
from llmreg.geometry.field import DisplacementField, chain_transforms, fade_outside, jacobian_determinant
from llmreg.geometry.grid import array_to_image
from llmreg.geometry.warping import nearest_velocity
from llmreg.images.fields import read_linear_transform
from llmreg.inference.case_reader import CaseReader, ImageInput, ImageLike
from llmreg.inference.models import Model, load_model, read_own_state
from llmreg.inference.registration import FADE, Registration
from llmreg.networks.factory import build_network, load_trainable_state, trainable_state
from llmreg.networks.registration_network import GridNetwork, pad_to_shape
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.preprocessing.common_frame import FramedCase
from llmreg.training.checkpoints import load_checkpoint

log = logging.getLogger(__name__)

# Voxels by which LoRA that is merged into the frozen weights may change the field.
MERGED_CHANGE = 0.01


@dataclass(frozen=True)
class RegistrationOptions:
    """What is done beyond predicting a field.

    Attributes:
        refine: steps of optimising the field for the pair at hand; 0 for none.
        diffeomorphic: replace the field by the nearest smooth one that folds nowhere and has an inverse.
        uncertainty: estimate how far the field may be off, from the spread over folds.

    Raises:
        BadArgument: the steps are no whole number from 0.
    """

    refine: int = 0
    diffeomorphic: bool = False
    uncertainty: bool = False

    def __post_init__(self) -> None:
        check_count("refine", self.refine)


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """A pair that was read and brought into the common frame."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_case: FramedCase
    moving_case: FramedCase


class Ensemble:
    """A model's folds, which share one network and its frozen weights.

    Args:
        model: from :mod:`llmreg.inference.models`.
        plans: its plans.
        device: where to compute.
        merge_lora: whether LoRA of a single fold is merged into the frozen weights, which is faster, where that changes
            the field of a made-up pair by less than :data:`MERGED_CHANGE` voxels.

    Attributes:
        predicts_velocity: whether the flows are velocities and not displacements.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
    """

    def __init__(self, model: Model, plans: Plans, device: torch.device, *, merge_lora: bool = True) -> None:
        configuration = plans.configuration(model.configuration)
        self._autocast, self._device = plans.training.autocast, device
        network = build_network(plans.network, configuration.network_shape[::-1], device)
        self._network = GridNetwork(network, configuration.downsampling).eval()
        self.predicts_velocity = network.predicts_velocity
        self._states: list[dict[str, Tensor]] = []
        for path in model.folds.values():
            read_own_state(path, plans, model.configuration)
            load_checkpoint(path, network)
            self._states.append({name: value.clone() for name, value in trainable_state(network).items()})
        # Several folds share the frozen weights, which can hold the LoRA of one alone.
        if merge_lora and len(self._states) == 1:
            self._merge_lora()

    def flows(self, moving: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """The prediction of each fold for a pair.

        Args:
            moving: (1, 1, z, y, x), of the configuration's padded size.
            fixed: the same.

        Yields:
            (1, 3, z, y, x), voxels, channels (x, y, z): displacements or velocities.
        """
        for state in self._states:
            if len(self._states) > 1:
                load_trainable_state(self._network.network, state)
            yield self._flow(moving, fixed)

    def _flow(self, moving: Tensor, fixed: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self._device, self._autocast):
            return self._network.predict_raw(moving, fixed)

    def _merge_lora(self) -> None:
        """Merge LoRA into the frozen weights, unless rounding the sum to their type changes the field too much."""
        undo = self._network.network.merge_lora()
        if undo is None:
            return
        # Two smooth random images (1, 1, z, y, x) with values from 0 to 1, always the same ones.
        shape, generator = self._network.shape, torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 1, *(-(-size // 8) for size in shape), generator=generator)
        moving, fixed = functional.interpolate(coarse, size=tuple(shape), mode="trilinear").to(self._device).split(1)
        merged = self._flow(moving, fixed)
        undo()
        if float((merged - self._flow(moving, fixed)).abs().max()) < MERGED_CHANGE:
            self._network.network.merge_lora()


def deviation(flows: Sequence[NDArray[np.float32]], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Root of the mean squared distance of displacements from their mean, (z, y, x), mm.

    Args:
        flows: vectors (z, y, x, 3), mm, two or more.
        matrix: (3, 3), what happens to them afterwards.
    """
    mean = np.mean(flows, axis=0)
    away = [(flow - mean) @ matrix.T.astype(np.float32) for flow in flows]
    squares = sum((vectors**2).sum(axis=-1) for vectors in away)
    return np.sqrt(squares / (len(flows) - 1)).astype(np.float32)


class Predictor:
    """Registers pairs with the folds of a model; several folds are averaged.

    Example::

        predictor = Predictor.from_folder("results/Dataset002_BrainMRCT/llm_morph__default__half")
        registration = predictor.predict("mr.nii.gz", "ct.nii.gz")
        sitk.WriteImage(registration.warped, "ct_on_mr.nii.gz")

    Args:
        model: from :mod:`llmreg.inference.models`.
        device: where to compute.
        options: what is done beyond predicting.
        merge_lora: add LoRA to the frozen weights of a single fold where that hardly changes its field.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
        BadArgument: the uncertainty of a single fold is asked for.
    """

    def __init__(
        self, model: Model, device: torch.device, options: RegistrationOptions | None = None, *, merge_lora: bool = True
    ) -> None:
        self.options = options or RegistrationOptions()
        if self.options.uncertainty and len(model.folds) == 1:
            raise BadArgument(
                "folds",
                f"The uncertainty is the spread over folds, and fold {next(iter(model.folds))} is alone: use several "
                "folds, or leave the uncertainty out.",
            )
        self.plans: Plans = read_plans(model.folder / PLANS_FILE)
        self.configuration = self.plans.configuration(model.configuration)
        self.device = device
        # A sentence is told once.
        self._warn_once = cache(partial(log.warning, "%s"))
        self._cases = CaseReader(model, self.plans, self._warn_once)
        self._ensemble = Ensemble(model, self.plans, device, merge_lora=merge_lora)
        # Folds take turns in one network.
        self._lock = Lock()

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        folds: Sequence[str | int] | None = None,
        device: torch.device | str | None = None,
        options: RegistrationOptions | None = None,
        *,
        merge_lora: bool = True,
    ) -> Self:
        """Load the model of a folder.

        Args:
            folder: ``<results>/Dataset001_Name/<network>__<plans>__<configuration>``.
            folds: which to average; all trained ones when None.
            device: CUDA where there is one, when None.
            options: what is done beyond predicting.
            merge_lora: as for the class.

        Raises:
            UserError: the folder holds no model, or not that fold, or the device cannot be used.
        """
        return cls(load_model(Path(folder), folds), choose_device(device), options, merge_lora=merge_lora)

    def predict(
        self,
        fixed: ImageInput | ImageLike,
        moving: ImageInput | ImageLike,
        initial: sitk.Transform | Path | str | None = None,
    ) -> Registration:
        """Register two images.

        Args:
            fixed: the image that defines the output grid.
            moving: the image that is warped.
            initial: linear transform, fixed points -> moving points, or its file, that the registration starts from
                instead of its own pre-alignment.

        Raises:
            UserError: an image, a mask or the transform cannot be used.
        """
        return self.register(self.prepare(fixed, moving, initial))

    def prepare(
        self,
        fixed: ImageInput | ImageLike,
        moving: ImageInput | ImageLike,
        initial: sitk.Transform | Path | str | None = None,
    ) -> PreparedPair:
        """Do the part of :meth:`predict` that reads images and places them; it does not need the network."""
        fixed = self._cases.complete(fixed, self.plans.fixed_modality)
        moving = self._cases.complete(moving, self.plans.moving_modality)
        self._warn_of_direction(fixed.modality, moving.modality)
        roles = ("The fixed image", "The moving image")
        if initial is None:
            with ThreadPoolExecutor(2) as pool:
                (fixed_image, fixed_case), (moving_image, moving_case) = pool.map(
                    self._cases.read, (fixed, moving), roles
                )
        else:
            fixed_image, fixed_case = self._cases.read(fixed, roles[0])
            affine = initial if isinstance(initial, sitk.Transform) else read_linear_transform(Path(initial))
            # The user knows how the images lie to each other, so that the fixed image's place gives the moving one's.
            placement = CaseTransform.from_sitk(chain_transforms(fixed_case.transform.to_sitk(), affine), "given")
            moving_image, moving_case = self._cases.read(moving, roles[1], placement)
        return PreparedPair(fixed_image, moving_image, fixed_case, moving_case)

    def register(self, pair: PreparedPair) -> Registration:
        """Do the part of :meth:`predict` that needs the network, at which threads that call it take turns."""
        moving, crop = self._to_tensor(pair.moving_case)
        fixed, _ = self._to_tensor(pair.fixed_case)
        with self._lock:
            flows = [flow[crop] for flow in self._ensemble.flows(moving, fixed)]
        spread = self._measure_spread(flows, pair.moving_case.transform) if self.options.uncertainty else None
        flow, is_velocity = torch.stack(flows).mean(dim=0), self._ensemble.predicts_velocity
        objective = None
        if self.options.refine:
            flow, objective = self._refine(pair, warping.exponential(flow) if is_velocity else flow)
        if is_velocity or self.options.diffeomorphic:
            velocity = flow if is_velocity and not self.options.refine else nearest_velocity(flow)
            # The velocity is faded before it is integrated, so that nothing folds in the margin either.
            forward, inverse_guess = (_integrate(self._to_faded_field(part)) for part in (velocity, -velocity))
            if (jacobian_determinant(forward) <= 0).any():
                self._warn_once("A field that should not fold does in places: look at its jacobian.")
        else:
            forward, inverse_guess = self._to_faded_field(flow), None
        return Registration(
            fixed=pair.fixed,
            moving=pair.moving,
            fixed_transform=pair.fixed_case.transform,
            moving_transform=pair.moving_case.transform,
            deformation=forward,
            inverse_guess=inverse_guess,
            spread=spread,
            refined=objective,
        )

    def _to_tensor(self, case: FramedCase) -> tuple[Tensor, tuple[slice, ...]]:
        """A case as (1, 1, z, y, x) of the network's size, and what cuts the frame out of a flow on it."""
        padded, crop = pad_to_shape(case.image, self.configuration.padded_size[::-1])
        return torch.from_numpy(np.ascontiguousarray(padded))[None, None].to(self.device), (
            slice(None),
            slice(None),
            *crop,
        )

    def _to_faded_field(self, flow: Tensor) -> DisplacementField:
        """A flow (1, 3, z, y, x) as a field in mm on the frame and a margin in which it fades to zero."""
        return fade_outside(DisplacementField.from_flow(flow[0].cpu().numpy(), self.plans.frame), FADE)

    def _measure_spread(self, flows: Sequence[Tensor], placement: CaseTransform) -> sitk.Image:
        """Standard deviation of the displacement over folds, mm in the moving image's space, on the frame."""
        frame = self.plans.frame
        displacements = [warping.exponential(flow) for flow in flows] if self._ensemble.predicts_velocity else flows
        fields = [DisplacementField.from_flow(flow[0].cpu().numpy(), frame).vectors for flow in displacements]
        return array_to_image(deviation(fields, placement.matrix), frame)

    def _refine(self, pair: PreparedPair, flow: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """The refined displacement, and the objective before and after."""
        # Imported here, since its dependencies take seconds to import.
        from llmreg.engine.refinement import refine

        cases = pair.fixed_case, pair.moving_case
        fixed, moving = (torch.from_numpy(case.image)[None, None].to(self.device) for case in cases)
        fixed_seen, moving_seen = (torch.from_numpy(case.seen)[None].to(self.device) for case in cases)
        refined = refine(flow, fixed, moving, fixed_seen, moving_seen, self.plans.loss, self.options.refine)
        return refined.flow, (refined.before, refined.after)

    def _warn_of_direction(self, fixed: str | int | None, moving: str | int | None) -> None:
        """Warn when modalities of the model are registered in a direction that it was not trained for."""
        plans, direction = self.plans, (fixed, moving)
        modalities = (plans.fixed_modality, plans.moving_modality)
        trained = {modalities, modalities[::-1]} if plans.training.bidirectional else {modalities}
        # The case reader warns of a contrast that the model was not trained on.
        if direction in trained or not all(isinstance(modality, int) for modality in direction):
            return
        name: dict[str | int | None, str] = {number: m.modality for number, m in plans.normalization.items()}
        remedy = ", or train with training.bidirectional" if direction[::-1] in trained else ""
        self._warn_once(
            f"The model was trained to warp {name[plans.moving_modality]} onto {name[plans.fixed_modality]}, not "
            f"{name[moving]} onto {name[fixed]}: expect less of it{remedy}."
        )


def _integrate(velocity: DisplacementField) -> DisplacementField:
    """The displacement that follows a stationary velocity."""
    flow = warping.exponential(torch.from_numpy(velocity.to_flow())[None])
    return DisplacementField.from_flow(flow[0].numpy(), velocity.grid)


# The name of the options in version 0.1.
Options = RegistrationOptions
