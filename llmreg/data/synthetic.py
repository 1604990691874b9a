"""A small labelled dataset of synthetic subjects, each with an MR-like and a CT-like image.

The anatomy of a subject, organs in a body, is a common one that is deformed by a smooth random displacement. Both
images of a subject show the same anatomy, rendered from continuous coordinates onto each scanner's grid: spacing,
orientation and position on the table differ, so a program that confuses axes cannot register them.
"""

from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from llmreg.files import write_json, write_text
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import write_image

DEMO_ID = 999
DEMO_NAME = "Demo"
DEMO_FOLDER = f"Dataset{DEMO_ID:03d}_{DEMO_NAME}"
HELD_OUT = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Tissue:
    """An ellipsoid (mm, LPS, about the body's centre) and how it looks: MR in arbitrary units, CT in HU."""

    name: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    mr: float
    ct: float


# Tissues without a label, which show a registration how the body is turned. The torso extends beyond any field of view.
_ENDLESS = 1e6
_UNLABELLED = (
    _Tissue("fat", (0, 0, 0), (66, 52, _ENDLESS), mr=0.9, ct=-100),
    _Tissue("muscle", (0, 0, 0), (61, 47, _ENDLESS), mr=0.3, ct=10),
    _Tissue("right lung", (-31, 0, 68), (27, 34, 32), mr=0.03, ct=-800),
    _Tissue("left lung", (31, 0, 68), (27, 34, 32), mr=0.03, ct=-800),
    _Tissue("spine", (0, 34, 0), (11, 11, _ENDLESS), mr=0.08, ct=300),
)
# Label ids are 1, 2, ...; where organs overlap, the later one counts.
_ORGANS = (
    _Tissue("liver", (-28, -6, 20), (31, 27, 26), mr=0.55, ct=105),
    _Tissue("stomach", (18, -18, 14), (22, 16, 17), mr=0.1, ct=60),
    _Tissue("spleen", (40, 10, 22), (16, 19, 19), mr=0.78, ct=125),
    _Tissue("kidney_right", (-30, 16, -22), (15, 14, 21), mr=0.68, ct=160),
    _Tissue("kidney_left", (31, 16, -18), (15, 14, 21), mr=0.68, ct=160),
    _Tissue("bladder", (0, -12, -50), (21, 17, 16), mr=1.0, ct=-40),
)

# The scanners' grids along LPS and RAS axes; each image has its origin elsewhere.
_MR_GRID = Grid((64, 60, 40), (3.0, 3.0, 4.0), (0.0, 0.0, 0.0))
_CT_GRID = Grid((76, 68, 64), (2.5, 2.5, 2.5), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))

# The random displacement is defined on a coarse lattice about the body's centre; lengths in mm.
_LATTICE_STEP, _LATTICE_POINTS = 8.0, 33
_SMOOTHNESS_MM = 16.0
_DISPLACEMENT_MM = 5.0
_SHIFT_MM = 6.0
_TURN_DEGREES = 4.0


def write_demo_dataset(folder: Path, subjects: int, seed: int, held_out: int = HELD_OUT) -> Path:
    """Write the raw dataset ``Dataset999_Demo`` into ``folder``.

    Args:
        folder: where raw datasets lie (``llmreg_raw``).
        subjects: number of subjects to train on, in ``imagesTr`` and ``labelsTr``.
        seed: the same number gives the same voxels.
        held_out: number of subjects that are only in ``imagesTs`` and ``labelsTs``; ``dataset.json`` does not list
            them. ``imagesTs/pairs.csv`` pairs the MR of each with the CT of every other one.

    Returns:
        The dataset's folder.
    """
    dataset = Path(folder) / DEMO_FOLDER
    training: dict[str, list[dict[str, str]]] = {"0": [], "1": []}
    for number in range(1, subjects + held_out + 1):
        part = "Tr" if number <= subjects else "Ts"
        generator = np.random.default_rng([seed, number])
        displacement = random_displacement(generator)
        for modality in (0, 1):
            name = f"{DEMO_NAME}_{number:04d}_{modality:04d}{DEFAULT_ENDING}"
            image, labels, grid = render(displacement, modality, generator)
            write_image(array_to_image(image, grid), dataset / f"images{part}" / name)
            write_image(array_to_image(labels, grid), dataset / f"labels{part}" / name)
            if part == "Tr":
                training[str(modality)].append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    names = [f"{DEMO_NAME}_{number:04d}" for number in range(subjects + 1, subjects + held_out + 1)]
    lines = [
        f"{fixed}_0000{DEFAULT_ENDING},{moving}_0001{DEFAULT_ENDING}\n" for fixed, moving in permutations(names, 2)
    ]
    write_text(dataset / "imagesTs" / "pairs.csv", "fixed,moving\n" + "".join(lines))
    write_json(
        dataset / "dataset.json",
        {
            "name": DEMO_NAME,
            "description": "Made-up people, written by llmreg_demo",
            "modality": {"0": "MR", "1": "CT"},
            "registration_direction": {"fixed": 0, "moving": 1},
            "pairings": "inter_subject",
            "labels": {"background": 0} | {organ.name: label for label, organ in enumerate(_ORGANS, start=1)},
            "training": training,
        },
    )
    return dataset


def random_displacement(generator: np.random.Generator) -> Array:
    """Draw a subject's displacement (mm, LPS components) on the lattice, as an array (3, z, y, x)."""
    noise = generator.standard_normal((3, *[_LATTICE_POINTS] * 3))
    smooth = np.stack(
        [ndimage.gaussian_filter(component, _SMOOTHNESS_MM / _LATTICE_STEP, mode="wrap") for component in noise]
    )
    # The mean is removed: it would only shift the whole body.
    smooth -= smooth.mean(axis=(1, 2, 3), keepdims=True)
    return smooth * (_DISPLACEMENT_MM / smooth.std())


def render(
    displacement: Array, modality: int, generator: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Grid]:
    """Render an image of a subject in a random pose on the scanner's table.

    Args:
        displacement: the subject's, from :func:`random_displacement`.
        modality: 0 is MR-like, 1 is CT-like.
        generator: of the pose and the noise.

    Returns:
        The image and its labels (z, y, x), and their grid.
    """
    grid = (_MR_GRID, _CT_GRID)[modality]
    centre = np.round(generator.uniform(-5, 5, 3), 2)
    grid = replace(grid, origin=tuple((centre - grid.centre).tolist()))
    labels, tissue = _render_anatomy(_body_coordinates(grid, generator), displacement)
    image = _render_mr(tissue, grid, generator) if modality == 0 else _render_ct(tissue, grid, generator)
    return image, labels, grid


def _body_coordinates(grid: Grid, generator: np.random.Generator) -> Array:
    """Undo the pose: the coordinates of each voxel in the body, (z, y, x, 3), mm."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(generator.uniform(-_TURN_DEGREES, _TURN_DEGREES, 3))):
        plane = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        rotation = rotation @ turn
    return (grid.physical_points() - generator.uniform(-_SHIFT_MM, _SHIFT_MM, 3)) @ rotation.T


def _render_anatomy(body: Array, displacement: Array) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Labels, and tissues as indices into air, the unlabelled tissues and the organs; both (z, y, x)."""
    lattice = np.moveaxis(body, -1, 0)[::-1] / _LATTICE_STEP + (_LATTICE_POINTS - 1) / 2
    common = body + np.stack(
        [ndimage.map_coordinates(component, lattice, order=1, mode="nearest") for component in displacement], axis=-1
    )
    tissue = np.zeros(body.shape[:3], np.intp)
    for index, ellipsoid in enumerate((*_UNLABELLED, *_ORGANS), start=1):
        inside = (((common - ellipsoid.centre) / ellipsoid.radii) ** 2).sum(axis=-1) < 1
        tissue[inside & (tissue > 0) if index > 1 else inside] = index
    return np.maximum(tissue - len(_UNLABELLED), 0).astype(np.uint8), tissue


def _render_mr(tissue: NDArray[np.intp], grid: Grid, generator: np.random.Generator) -> NDArray[np.int16]:
    """Render tissues with a smooth bias field and Rician noise; the unit differs from scan to scan."""
    brightness = np.array([0.0, *(kind.mr for kind in (*_UNLABELLED, *_ORGANS))])
    clean = ndimage.gaussian_filter(brightness[tissue] + 0.03 * _texture(grid, 6.0, generator), 0.4)
    clean *= np.exp(0.2 * _texture(grid, 50.0, generator))
    real, imaginary = generator.normal(0, 0.03, (2, *grid.shape))
    gain = generator.uniform(400, 900)
    return np.round(gain * np.hypot(clean + real, imaginary)).astype(np.int16)


def _render_ct(tissue: NDArray[np.intp], grid: Grid, generator: np.random.Generator) -> NDArray[np.int16]:
    """Render tissues in Hounsfield units with the grainy noise of reconstruction."""
    attenuation = np.array([-1000.0, *(kind.ct for kind in (*_UNLABELLED, *_ORGANS))])
    clean = ndimage.gaussian_filter(attenuation[tissue], 0.5)
    noise = 10 * _texture(grid, 2.0, generator) + 6 * _texture(grid, 6.0, generator)
    return np.round(np.clip(clean + noise, -1024, 3071)).astype(np.int16)


def _texture(grid: Grid, scale_mm: float, generator: np.random.Generator) -> Array:
    """Gaussian noise (z, y, x) of standard deviation 1, smooth over ``scale_mm``."""
    sigma = scale_mm / np.asarray(grid.spacing)[::-1]
    smooth = ndimage.gaussian_filter(generator.standard_normal(grid.shape), sigma, mode="wrap")
    return smooth / smooth.std()
