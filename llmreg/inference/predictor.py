"""A trained model that registers images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from llmreg.devices import autocast
from llmreg.errors import UserError
from llmreg.geometry.field import DisplacementField, chained, fade_outside, mean_field, volume_of, warp_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import check_values, read_image, read_linear_transform
from llmreg.inference.models import Model
from llmreg.network.factory import build_network, trainable_state
from llmreg.network.flow import predict_flow
from llmreg.network.llm.layer import merge_lora
from llmreg.preprocessing.cases import read_mask
from llmreg.preprocessing.normalization import safe_default
from llmreg.preprocessing.padding import pad
from llmreg.preprocessing.placement import EVERYONE, fold_set, templates_in
from llmreg.preprocessing.plans import PLANS_FILE, Normalization, Plans, read_plans
from llmreg.preprocessing.prealignment import CaseTransform
from llmreg.preprocessing.preprocess import FramedCase, Guides, bring_into_frame, read_reference
from llmreg.training import checkpoint

log = logging.getLogger(__name__)

# Voxels of the frame over which the network's displacement fades outside it.
FADE = 10
CACHED_CASES = 8
# A place along the body that is less certain is worth a warning.
UNCERTAIN_MM = 20.0
# Voxels by which LoRA that is merged into the frozen weights may change the field.
MERGED_CHANGE = 0.01


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    Attributes:
        field: from fixed to moving, on the fixed image's own grid; the pre-alignment is part of it.
        prealignment: the affine part, fixed points -> moving points.
        warped: the moving image on the fixed image's grid (0 where the field looks outside it).
        seen: 1 where the field looks into the moving image's field of view, else 0; on the fixed image's grid.
        fixed_transform: how the fixed case was placed in the common frame.
        moving_transform: the same for the moving case.
    """

    field: DisplacementField
    prealignment: sitk.Transform
    warped: sitk.Image
    seen: sitk.Image
    fixed_transform: CaseTransform
    moving_transform: CaseTransform


@dataclass(frozen=True)
class ImageInput:
    """An image to register.

    Attributes:
        path: its file.
        modality: name or number of its modality; the dataset's fixed or moving modality when None.
        mask: file of a foreground on the image's grid, above 0 where it counts, by which the image is placed and
            normalised instead of one found in it.
    """

    path: Path
    modality: str | int | None = None
    mask: Path | None = None


class Predictor:
    """Registers pairs with the folds of a model; several folds are averaged.

    Args:
        model: from :mod:`llmreg.inference.models`.
        device: where to compute.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.plans: Plans = read_plans(model.folder / PLANS_FILE)
        self.configuration = self.plans.configuration(model.configuration)
        self.device = device
        self._reference = read_reference(model.folder, self.plans)
        # A single fold's own were learned without the cases that it holds out.
        own = fold_set(next(iter(model.folds))) if len(model.folds) == 1 else EVERYONE
        placed = self.plans.prealignment.method == "template"
        self._templates = templates_in(model.folder, own) if placed else {}
        self.network = build_network(self.plans.network, self.configuration.network_shape[::-1], device).eval()
        self._states: list[dict[str, Tensor]] = []
        for path in model.folds.values():
            state = checkpoint.load(path, self.network)
            if state.plans_digest != self.plans.digest(model.configuration):
                raise UserError(f"{path} was trained with plans other than {PLANS_FILE} beside it: restore that file.")
            self._states.append({k: v.detach().clone() for k, v in trainable_state(self.network).items()})
        # Folds share the frozen weights, so that only those of a single one can take its LoRA in.
        llm = self.plans.network.llm
        self._may_merge = len(self._states) == 1 and self.plans.network.blocks == "llm" and llm.lora is not None
        self._warned: set[str] = set()
        self._framed = lru_cache(maxsize=CACHED_CASES)(self._bring_into_frame)

    def predict(self, fixed: ImageInput, moving: ImageInput, initial: Path | None = None) -> Registration:
        """Register two image files.

        Args:
            fixed: the image that defines the output grid.
            moving: the image that is warped.
            initial: file of a linear ITK transform, fixed points -> moving points, that the registration starts from
                instead of its own pre-alignment.

        Raises:
            UserError: an image, a mask or the transform cannot be used.
        """
        # By number where nobody names a contrast: two modalities may share a name and not a window.
        fixed = replace(fixed, modality=self._known(fixed.modality, self.plans.fixed_modality))
        moving = replace(moving, modality=self._known(moving.modality, self.plans.moving_modality))
        self._warn_of_direction(fixed.modality, moving.modality)
        if initial is None:
            with ThreadPoolExecutor(2) as both:
                (fixed_image, fixed_case), (moving_image, moving_case) = both.map(self._framed, (fixed, moving))
        else:
            fixed_image, fixed_case = self._framed(fixed)
            start = chained(fixed_case.transform.to_sitk(), read_linear_transform(initial))
            moving_image, moving_case = self._bring_into_frame(moving, CaseTransform.from_sitk(start, "given"))
        to_frame = fixed_case.transform.to_sitk().GetInverse()
        inner = fade_outside(self.frame_field(fixed_case, moving_case), FADE)
        from_frame = moving_case.transform.to_sitk()
        whole = chained(to_frame, inner.to_transform(), from_frame)
        field = DisplacementField.from_transform(whole, Grid.from_image(fixed_image))
        prealignment = CaseTransform.from_sitk(chained(to_frame, from_frame), "prealignment").to_sitk()
        return Registration(
            field,
            prealignment,
            warp_image(moving_image, field),
            warp_image(volume_of(Grid.from_image(moving_image)), field, "nearest"),
            fixed_case.transform,
            moving_case.transform,
        )

    def _known(self, modality: str | int | None, default: int) -> str | int:
        """The number of a modality that the model was trained on; the name of another."""
        known = self.plans.normalization.items()
        if modality is None:
            return default
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

    def frame_field(self, fixed: FramedCase, moving: FramedCase) -> DisplacementField:
        """The network's displacement on the common frame, averaged over folds."""
        tensors = []
        back: tuple[slice, ...] = ()
        for case in (moving, fixed):
            padded, back = pad(case.image, self.configuration)
            tensors.append(torch.from_numpy(np.ascontiguousarray(padded))[None, None].to(self.device))
        fields = []
        for state in self._states:
            if len(self._states) > 1:
                own = trainable_state(self.network)
                with torch.no_grad():
                    for name, value in state.items():
                        own[name].copy_(value)
            cut = self._flow(tensors).cpu().numpy()[(slice(None), *back)]
            fields.append(DisplacementField.from_flow(cut, self.plans.frame))
        return mean_field(fields)

    def _flow(self, images: Sequence[Tensor]) -> Tensor:
        """The network's displacement of (moving, fixed), (3, z, y, x) in voxels of the padded frame."""
        with torch.inference_mode(), autocast(self.device, self.plans.training.autocast):
            _, flow = predict_flow(self.network, images[0], images[1], self.configuration.downsampling)
            if self._may_merge:
                # Rounded to the frozen weights' type, the sum may say less than its parts: the first pair tells.
                self._may_merge = False
                restore = merge_lora(self.network)
                _, merged = predict_flow(self.network, images[0], images[1], self.configuration.downsampling)
                change = float((merged - flow).abs().max())
                log.debug("Merging LoRA changes the field by %.4f voxels at most", change)
                if change < MERGED_CHANGE:
                    flow = merged
                else:
                    restore()
        return flow[0]

    def normalization(self, modality: str | int) -> Normalization:
        """The plan for a modality by number; the safe default for one that the model was not trained on."""
        if isinstance(modality, int):
            return self.plans.normalization[modality]
        trained = ", ".join(n.modality for n in self.plans.normalization.values())
        self._warn_once(f"The model was not trained on '{modality}' (but on {trained}): its own percentiles are used.")
        return safe_default(modality)

    def _bring_into_frame(
        self, given: ImageInput, transform: CaseTransform | None = None
    ) -> tuple[sitk.Image, FramedCase]:
        image = read_image(given.path)
        check_values(image, given.path)
        assert given.modality is not None
        template = self._templates.get(given.modality) if isinstance(given.modality, int) else None
        mask = None if given.mask is None else read_mask(given.mask, image, given.path)
        guides = Guides(self._reference, template, mask, transform)
        framed = bring_into_frame(image, self.normalization(given.modality), self.plans, guides, given.path)
        if (framed.transform.uncertainty_mm or 0) > UNCERTAIN_MM:
            self._warn_once(
                f"The place of {given.path} along the body was found by its image alone and may be "
                f"{framed.transform.uncertainty_mm:.0f} mm off: look at the result, or give an initial_transform."
            )
        return image, framed
