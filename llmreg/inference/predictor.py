"""A trained model that registers images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmreg.data.case_images import check_mask
from llmreg.devices import choose_device
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import UserError
from llmreg.geometry import warping
from llmreg.geometry.diffeomorphism import nearest_velocity
from llmreg.geometry.field import DisplacementField, chain_transforms, fade_outside, jacobian_determinant
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, check_values, read_image, read_linear_transform, usable, voxels_in
from llmreg.inference.ensembling import Ensemble, deviation
from llmreg.inference.models import Model, model_in
from llmreg.inference.registration import FADE, Registration
from llmreg.plans.plans import PLANS_FILE, Normalization, Plans, read_plans
from llmreg.preprocessing.dataset_templates import EVERYONE, fold_set, templates_in
from llmreg.preprocessing.normalization import safe_default
from llmreg.preprocessing.padding import pad
from llmreg.preprocessing.preprocess import FramedCase, PlacementHints, bring_into_frame, read_reference

if TYPE_CHECKING:
    from llmreg.engine.refinement import Refined

log = logging.getLogger(__name__)

# Pairs share images: so many are kept, unless they have more voxels than this.
CACHED_CASES, LARGE = 4, 2**25
# A place along the body that is less certain is worth a warning.
UNCERTAIN_MM = 20.0

# A file, an image, or voxels (z, y, x) and where they lie.
ImageLike = Path | str | sitk.Image | tuple[NDArray[Any], Grid]
Cut = tuple[EllipsisType | slice, ...]


@dataclass(frozen=True)
class Options:
    """What is done beyond predicting a field.

    Attributes:
        refine: so many steps of optimising the field for the pair at hand; 0 for none.
        diffeomorphic: replace the field by the nearest smooth one that folds nowhere and has an inverse.
        uncertainty: estimate how far the field may be off, from folds or, of one fold, from samples.
    """

    refine: int = 0
    diffeomorphic: bool = False
    uncertainty: bool = False


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image to register.

    Attributes:
        image: a file, an image in memory, or an array with its grid.
        modality: name or number of its modality; the dataset's fixed or moving modality when None.
        mask: a foreground on the image's grid, above 0 where it counts, by which the image is placed and normalised
            instead of one found in it.
    """

    image: ImageLike
    modality: str | int | None = None
    mask: ImageLike | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair that was read and brought into the common frame."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_case: FramedCase
    moving_case: FramedCase


class Predictor:
    """Registers pairs with the folds of a model; several folds are averaged.

    Example::

        predictor = Predictor.from_folder("results/Dataset002_BrainMRCT/llm_morph__default__half")
        found = predictor.predict("mr.nii.gz", "ct.nii.gz")
        sitk.WriteImage(found.warped, "ct_on_mr.nii.gz")

    Args:
        model: from :mod:`llmreg.inference.models`.
        device: where to compute.
        options: what is done beyond predicting.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
    """

    def __init__(self, model: Model, device: torch.device, options: Options | None = None) -> None:
        self.plans: Plans = read_plans(model.folder / PLANS_FILE)
        self.configuration = self.plans.configuration(model.configuration)
        self.device = device
        self.options = options or Options()
        self._reference = read_reference(model.folder, self.plans)
        # A single fold's own were learned without the cases that it holds out.
        own = fold_set(next(iter(model.folds))) if len(model.folds) == 1 else EVERYONE
        placed = self.plans.prealignment.method == "template"
        self._templates = templates_in(model.folder, own) if placed else {}
        self._ensemble = Ensemble(model, self.plans, device)
        self._warned: set[str] = set()
        # Folds take turns in one network.
        self._lock = Lock()
        self._framed_file = lru_cache(maxsize=CACHED_CASES)(self._read_into_frame)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        folds: Sequence[str | int] | None = None,
        device: torch.device | str | None = None,
        options: Options | None = None,
    ) -> Predictor:
        """A model folder's predictor.

        Args:
            folder: ``<results>/Dataset001_Name/<network>__<plans>__<configuration>``.
            folds: which to average; all trained ones when None.
            device: CUDA where there is one, when None.
            options: what is done beyond predicting.

        Raises:
            UserError: the folder holds no model, or not that fold, or the device cannot be used.
        """
        wanted = None if folds is None else [str(fold) for fold in folds]
        chosen = choose_device(None if device is None else str(device))
        return cls(model_in(Path(folder), wanted), chosen, options)

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
    ) -> Prepared:
        """The part of :meth:`predict` that reads images and places them; it does not need the network."""
        fixed, moving = (given if isinstance(given, ImageInput) else ImageInput(given) for given in (fixed, moving))
        # By number where nobody names a contrast: two modalities may share a name and not a window.
        fixed = replace(fixed, modality=self._known(fixed.modality, self.plans.fixed_modality))
        moving = replace(moving, modality=self._known(moving.modality, self.plans.moving_modality))
        self._warn_of_direction(fixed.modality, moving.modality)
        if initial is None:
            with ThreadPoolExecutor(2) as both:
                roles = ("The fixed image", "The moving image")
                (fixed_image, fixed_case), (moving_image, moving_case) = both.map(self._framed, (fixed, moving), roles)
        else:
            fixed_image, fixed_case = self._framed(fixed, "The fixed image")
            given = initial if isinstance(initial, sitk.Transform) else read_linear_transform(Path(initial))
            start = CaseTransform.from_sitk(chain_transforms(fixed_case.transform.to_sitk(), given), "given")
            moving_image, moving_case = self._framed(moving, "The moving image", start)
        return Prepared(fixed_image, moving_image, fixed_case, moving_case)

    def register(self, pair: Prepared) -> Registration:
        """The part of :meth:`predict` that needs the network; one pair at a time, whoever calls it."""
        with self._lock:
            return self._registered(pair)

    def _registered(self, pair: Prepared) -> Registration:
        images, back = self._tensors(pair)
        flows = [flow[back] for flow in self._ensemble.flows(images[0], images[1])]
        found = torch.stack(flows).mean(dim=0)
        spread = self._spread(pair, images, back, flows) if self.options.uncertainty else None
        velocity: Tensor | None = found if self._ensemble.velocity else None
        refined: Refined | None = None
        if self.options.refine:
            displacement = found if velocity is None else warping.exponential(found)
            refined = self._refined(pair, displacement)
            found, velocity = refined.flow, None
        if velocity is None and (self.options.diffeomorphic or self._ensemble.velocity):
            velocity = nearest_velocity(found)
        if velocity is None:
            there, near_inverse = self._faded(found), None
        else:
            # Faded before it is followed, so that nothing folds in the margin either.
            there, near_inverse = (_followed(self._faded(direction)) for direction in (velocity, -velocity))
            if (jacobian_determinant(there) <= 0).any():
                self._warn_once("A field that should not fold does in places: look at its jacobian.")
        return Registration(
            pair.fixed,
            pair.moving,
            pair.fixed_case.transform,
            pair.moving_case.transform,
            there,
            near_inverse,
            spread,
            None if refined is None else (refined.before, refined.after),
        )

    def _tensors(self, pair: Prepared) -> tuple[list[Tensor], Cut]:
        """Moving and fixed image of the network's size, and what of its fields is the frame."""
        tensors = []
        for case in (pair.moving_case, pair.fixed_case):
            padded, back = pad(case.image, self.configuration)
            tensors.append(torch.from_numpy(np.ascontiguousarray(padded))[None, None].to(self.device))
        return tensors, (..., *back)

    def _faded(self, flow: Tensor) -> DisplacementField:
        return fade_outside(DisplacementField.from_flow(flow[0].cpu().numpy(), self.plans.frame), FADE)

    def _spread(self, pair: Prepared, images: Sequence[Tensor], back: Cut, flows: Sequence[Tensor]) -> sitk.Image:
        """How far folds or samples lie apart, mm, on the frame."""
        samples = list(flows)
        if len(samples) == 1:
            samples = [flow[back] for flow in self._ensemble.samples(images[0], images[1])]
        if self._ensemble.velocity:
            samples = [warping.exponential(flow) for flow in samples]
        frame = self.plans.frame
        fields = [DisplacementField.from_flow(flow[0].cpu().numpy(), frame).vectors for flow in samples]
        return array_to_image(deviation(fields, pair.moving_case.transform.matrix), frame)

    def _refined(self, pair: Prepared, flow: Tensor) -> Refined:
        # Inside: what it needs takes seconds to import.
        from llmreg.engine.refinement import refine

        cases = pair.fixed_case, pair.moving_case
        fixed, moving = (torch.from_numpy(case.image)[None, None].to(self.device) for case in cases)
        fixed_seen, moving_seen = (torch.from_numpy(case.seen)[None].to(self.device) for case in cases)
        return refine(flow, fixed, moving, fixed_seen, moving_seen, self.plans.loss, self.options.refine)

    def _known(self, modality: str | int | None, default: int) -> str | int:
        """The number of a modality that the model was trained on; the name of another."""
        known = self.plans.normalization.items()
        if modality is None:
            return default
        if isinstance(modality, int) and modality not in self.plans.normalization:
            numbers = ", ".join(f"{n} ({own.modality})" for n, own in known)
            raise UserError(f"The model has no modality {modality}: choose among {numbers}, or give a name.")
        if isinstance(modality, int) or (modality.isdecimal() and int(modality) in self.plans.normalization):
            return int(modality)
        return next((n for n, own in known if own.modality.casefold() == modality.casefold()), modality)

    def _warn_of_direction(self, fixed: Any, moving: Any) -> None:
        plans, asked = self.plans, (fixed, moving)
        trained = {(plans.fixed_modality, plans.moving_modality)}
        if plans.training.bidirectional:
            trained.add((plans.moving_modality, plans.fixed_modality))
        # Of a contrast that nobody trained on, another warning tells.
        if asked in trained or not all(isinstance(number, int) for number in asked):
            return
        name = {number: own.modality for number, own in plans.normalization.items()}
        remedy = ", or train with --set training.bidirectional=true --as NAME" if asked[::-1] in trained else ""
        self._warn_once(
            f"The model was trained to warp {name[plans.moving_modality]} onto {name[plans.fixed_modality]}, not "
            f"{name[moving]} onto {name[fixed]}: expect less of it{remedy}."
        )

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            log.warning("%s", sentence)

    def _normalization(self, modality: str | int) -> Normalization:
        """The plan for a modality by number; the safe default for one that the model was not trained on."""
        if isinstance(modality, int):
            return self.plans.normalization[modality]
        trained = ", ".join(n.modality for n in self.plans.normalization.values())
        self._warn_once(f"The model was not trained on '{modality}' (but on {trained}): its own percentiles are used.")
        return safe_default(modality)

    def _framed(
        self, given: ImageInput, role: str, transform: CaseTransform | None = None
    ) -> tuple[sitk.Image, FramedCase]:
        """An image and the same in the frame; the last few files are kept, since pairs share them."""
        assert given.modality is not None
        read = [Path(file) for file in (given.image, given.mask) if isinstance(file, Path | str)]
        from_files = len(read) == 1 + (given.mask is not None)
        if from_files and transform is None and read[0].is_file() and not is_large(read[0]):
            kept, case = self._framed_file(tuple((file, *_stamp(file)) for file in read), given.modality)
            # A copy when it is written to, so that nobody changes what is kept.
            return sitk.Image(kept), case
        return self._bring_into_frame(given, role, transform)

    def _read_into_frame(
        self, files: tuple[tuple[Any, ...], ...], modality: str | int
    ) -> tuple[sitk.Image, FramedCase]:
        """``files``: the image and, where there is one, its mask, each with what tells a rewritten file."""
        return self._bring_into_frame(ImageInput(files[0][0], modality, *(file[0] for file in files[1:])))

    def _bring_into_frame(
        self, given: ImageInput, role: str = "", transform: CaseTransform | None = None
    ) -> tuple[sitk.Image, FramedCase]:
        modality = given.modality
        assert modality is not None
        image, name = _opened(given.image, role)
        check_values(image, name)
        foreground = None
        if given.mask is not None:
            mask, mask_name = _opened(given.mask, f"{role}'s mask")
            foreground = check_mask(mask, mask_name, image, Path(name).name)
        template = self._templates.get(modality) if isinstance(modality, int) else None
        guides = PlacementHints(self._reference, template, foreground, transform)
        framed = bring_into_frame(image, self._normalization(modality), self.plans, guides, name)
        if (framed.transform.uncertainty_mm or 0) > UNCERTAIN_MM:
            self._warn_once(
                f"The place of {name} along the body was found by its image alone and may be "
                f"{framed.transform.uncertainty_mm:.0f} mm off: look at the result, or give an initial_transform."
            )
        return image, framed


def _opened(given: ImageLike, role: str) -> tuple[sitk.Image, str]:
    """An image, and what errors call it."""
    if isinstance(given, Path | str):
        return read_image(Path(given)), str(given)
    return usable(array_to_image(*given) if isinstance(given, tuple) else given, role), role


def is_large(path: Path) -> bool:
    """Whether an image has so many voxels that few fit into memory; False when its header cannot be read."""
    try:
        return voxels_in(path) > LARGE
    except RuntimeError:
        return False  # Whoever reads it says what is wrong.


def _stamp(path: Path) -> tuple[int, ...]:
    """Empty when the file is not there."""
    if not path.is_file():
        return ()
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _followed(velocity: DisplacementField) -> DisplacementField:
    flow = warping.exponential(torch.from_numpy(velocity.to_flow())[None])
    return DisplacementField.from_flow(flow[0].numpy(), velocity.grid)
