"""Landmarks: their files, and where transforms take them."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from llmreg.errors import UserError
from llmreg.files import read_json, write_json, write_text
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import lps_to_ras, ras_to_lps

Convention = Literal["lps", "ras", "voxel"]
CONVENTIONS: tuple[Convention, ...] = ("lps", "ras", "voxel")
Points = NDArray[np.float64]

SLICER = ".mrk.json"
_AXES = ("x", "y", "z")
# Of Slicer's files, whose older versions number the coordinate systems.
_SLICER_SYSTEMS: dict[str, Convention] = {"lps": "lps", "ras": "ras", "1": "lps", "0": "ras"}
# An inverse is found when it leads back to within this part of a voxel.
_CLOSE = 1e-3
_ITERATIONS = 50
# From so many points on, torch saves more time than its import takes.
_MANY = 2**17
_SAMPLES = 20


@dataclass(frozen=True)
class Table:
    """What a file says beside coordinates, so that it can be written again with others.

    Attributes:
        convention: in which coordinates the file has them.
        preamble: lines before the table.
        header: the names of the columns, None where the file has none.
        rows: the cells as text.
        columns: which columns are x, y and z.
        delimiter: what stands between cells.
    """

    convention: Convention
    preamble: tuple[str, ...]
    header: tuple[str, ...] | None
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[int, ...] = (0, 1, 2)
    delimiter: str = ","


@dataclass(frozen=True)
class Markups:
    """A file of 3D Slicer (.mrk.json), and where in it the points are: (markup, control point)."""

    content: dict[str, Any]
    places: tuple[tuple[int, int], ...]


def read_points(path: Path, convention: Convention = "lps", grid: Grid | None = None) -> tuple[Table | Markups, Points]:
    """Landmarks of a .csv, or of 3D Slicer's .fcsv and .mrk.json.

    A table with a first line of names has columns x, y and z among others; one without has three columns of numbers
    (as Learn2Reg's keypoints), and may have text beside them.

    Args:
        path: the file.
        convention: ``lps`` or ``ras`` (mm), or ``voxel`` (indices along the image's axes, from 0). Slicer's files say
            which it is themselves.
        grid: of the image whose voxels ``voxel`` counts.

    Returns:
        What :func:`write_points` needs to write the file again, and the points (N, 3), LPS mm.

    Raises:
        UserError: the file is missing or holds no such table.
    """
    path = Path(path)
    if path.name.endswith(SLICER):
        return _read_markups(path)
    table = _read_table(path, convention)
    found = np.empty((len(table.rows), 3))
    for number, row in enumerate(table.rows):
        for axis, column in enumerate(table.columns):
            value = _number(row[column])
            if value is None or not np.isfinite(value):
                raise UserError(f"{path}: point {number + 1} has {_AXES[axis]} = '{row[column]}': write a number.")
            found[number, axis] = value
    return table, _to_lps(found, table.convention, grid, path)


def write_points(table: Table | Markups, points: ArrayLike, path: Path, grid: Grid | None = None) -> None:
    """Write a file like that which was read, with other coordinates.

    Args:
        table: of :func:`read_points`.
        points: (N, 3), LPS mm, in the file's order.
        path: where to.
        grid: of the image whose voxels are counted, where the file has voxels.

    Raises:
        UserError: the file cannot be written.
        ValueError: there are more or fewer points than the file has.
    """
    new, path = np.asarray(points, dtype=float).reshape(-1, 3), Path(path)
    if len(new) != len(table.places if isinstance(table, Markups) else table.rows):
        raise ValueError(f"{len(new)} points for a table of another length")
    if isinstance(table, Markups):
        content = copy.deepcopy(table.content)
        for (markup, place), point in zip(table.places, new, strict=True):
            convention = _system(content["markups"][markup])
            value = point if convention == "lps" else lps_to_ras(point)
            content["markups"][markup]["controlPoints"][place]["position"] = value.round(6).tolist()
        write_json(path, content)
        return
    if table.convention == "voxel":
        if grid is None:
            raise ValueError("voxels are those of a grid")
        new = grid.physical_to_index(new)
    elif table.convention == "ras":
        new = lps_to_ras(new)
    text = io.StringIO(newline="")
    text.writelines(line + "\n" for line in table.preamble)
    writer = csv.writer(text, delimiter=table.delimiter, lineterminator="\n")
    if table.header is not None:
        writer.writerow(table.header)
    for row, point in zip(table.rows, new, strict=True):
        cells = list(row)
        for column, value in zip(table.columns, point, strict=True):
            cells[column] = f"{value:.6f}"
        writer.writerow(cells)
    write_text(path, text.getvalue())


def transform_points(points: ArrayLike, transform: sitk.Transform | DisplacementField) -> Points:
    """Points (N, 3), LPS mm, to where the transform takes them: with a field, from the fixed to the moving image.

    Outside its grid a field leaves points where they are, as ITK has it.
    """
    given = np.asarray(points, dtype=float).reshape(-1, 3)
    if isinstance(transform, DisplacementField):
        # As in ITK, the vectors of the edge go on for half a voxel.
        index = transform.grid.physical_to_index(given)
        return given + _vectors_at(index, transform) * transform.grid.contains(given)[:, None]
    if transform.IsLinear():
        matrix, offset = _affine(transform)
        return given @ matrix.T + offset
    return np.array([transform.TransformPoint(point) for point in given.tolist()]).reshape(-1, 3)


def inverse_transform_points(points: ArrayLike, field: DisplacementField) -> Points:
    """Points (N, 3), LPS mm, of the moving image to the fixed one: x with x + u(x) = p, found for each point itself.

    Outside the field's grid its affine part goes on from the edge. Where the field folds, the point found may lead back
    elsewhere: compare with :func:`transform_points`.
    """
    # In voxels of the field's grid, x, y, z.
    wanted = field.grid.physical_to_index(points).reshape(-1, 3)
    to_voxels = np.linalg.inv(field.grid.matrix).T
    last = np.asarray(field.grid.size) - 1
    matrix, offset = _affine_part(field)
    back = np.linalg.inv(matrix).T

    def miss(at: Points, target: Points) -> Points:
        inside = np.clip(at, 0, last)
        return inside + _vectors_at(inside, field) @ to_voxels + (at - inside) @ matrix.T - target

    found = (wanted - offset) @ back
    off = miss(found, wanted)
    step = np.ones(len(found))
    active = np.arange(len(found))
    for _ in range(_ITERATIONS):
        active = active[np.abs(off[active]).max(axis=1) > _CLOSE]
        if active.size == 0:
            break
        tried = found[active] - step[active, None] * (off[active] @ back)
        now = miss(tried, wanted[active])
        better = (now**2).sum(axis=1) < (off[active] ** 2).sum(axis=1)
        found[active[better]], off[active[better]] = tried[better], now[better]
        # Where the field varies strongly, whole steps lead away.
        step[active[~better]] /= 2
    return field.grid.index_to_physical(found)


def _vectors_at(index: Points, field: DisplacementField) -> Points:
    """The field's vectors (N, 3) at voxel indices (x, y, z), linearly interpolated; outside, those of its edge."""
    if len(index) < _MANY:
        places = index[:, ::-1].T
        return np.stack(
            [map_coordinates(field.vectors[..., k], places, float, order=1, mode="nearest") for k in range(3)], axis=1
        )
    import torch
    from torch.nn.functional import grid_sample

    place = torch.from_numpy((index * (2 / np.maximum(np.asarray(field.grid.size) - 1, 1)) - 1).astype(np.float32))
    vectors = torch.from_numpy(field.vectors).permute(3, 0, 1, 2)[None]
    found = grid_sample(vectors, place.view(1, 1, 1, -1, 3), padding_mode="border", align_corners=True)
    return found[0, :, 0, 0].T.numpy().astype(np.float64)


def _affine(transform: sitk.Transform) -> tuple[Points, Points]:
    """Matrix and offset of a linear transform."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    ends = np.array([transform.TransformPoint(axis) for axis in np.eye(3).tolist()])
    return (ends - offset).T, offset


def _affine_part(field: DisplacementField) -> tuple[Points, Points]:
    """The affine mapping (matrix, offset) of voxel indices nearest to what the field does to them."""
    steps = tuple(slice(None, None, max(1, n // _SAMPLES)) for n in field.grid.shape)
    z, y, x = np.meshgrid(*[np.arange(n)[step] for n, step in zip(field.grid.shape, steps, strict=True)], indexing="ij")
    index = np.stack((x, y, z), axis=-1).reshape(-1, 3).astype(float)
    ends = index + field.vectors[steps].reshape(-1, 3) @ np.linalg.inv(field.grid.matrix).T
    middle = index.mean(axis=0)
    matrix = np.linalg.lstsq(index - middle, ends - ends.mean(axis=0), rcond=None)[0].T
    if np.linalg.det(matrix) <= 0:
        matrix = np.eye(3)
    return matrix, ends.mean(axis=0) - matrix @ middle


def _to_lps(points: Points, convention: Convention, grid: Grid | None, path: Path) -> Points:
    if convention == "voxel":
        if grid is None:
            raise UserError(f"{path} counts voxels, but of which image: give the image.")
        return grid.index_to_physical(points)
    return points if convention == "lps" else ras_to_lps(points)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The points {path} do not exist: check the name.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): save it as a UTF-8 table.") from error


def _read_table(path: Path, convention: Convention) -> Table:
    lines = [line for line in _text_of(path).splitlines() if line.strip()]
    # Comments stand at the top: further down, a # may begin a name.
    preamble = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    lines = lines[len(preamble) :]
    header = None
    if path.suffix == ".fcsv":
        told = dict(part for line in preamble if len(part := [t.strip() for t in line.strip("# ").split("=", 1)]) == 2)
        convention = _slicer_convention(told.get("CoordinateSystem", "RAS"), path)
        names = tuple(name.strip() for name in told.get("columns", "id,x,y,z").split(","))
    elif not lines:
        raise UserError(f"{path} lists no point: write a line x,y,z for each.")
    delimiter = next((mark for mark in (",", ";", "\t") if lines and mark in lines[0]), ",")
    rows = [tuple(row) for row in csv.reader(lines, delimiter=delimiter)]
    if path.suffix != ".fcsv":
        if sum(_number(cell) is not None for cell in rows[0]) < 3:
            header, names = rows[0], tuple(name.strip().casefold() for name in rows[0])
            rows = rows[1:]
        else:
            names = _names_of(rows[0], path)
    if any(names.count(axis) != 1 for axis in _AXES):
        raise UserError(f"{path} has no columns x, y and z between commas: name them in its first line.")
    columns = tuple(names.index(axis) for axis in _AXES)
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(columns):
            raise UserError(f"{path}: point {number} has {len(row)} cells, but x, y and z are needed.")
    if not rows:
        raise UserError(f"{path} lists no point: write a line x,y,z for each.")
    return Table(convention, tuple(preamble), header, tuple(rows), columns, delimiter)


def _names_of(row: Sequence[str], path: Path) -> tuple[str, ...]:
    """The columns of a table without a header: three of numbers."""
    numbers = [k for k, cell in enumerate(row) if _number(cell) is not None]
    if len(numbers) > 3:
        raise UserError(
            f"{path} has {len(numbers)} columns of numbers and does not say which are x, y and z: name the columns in "
            "its first line."
        )
    return tuple(_AXES[numbers.index(k)] if k in numbers else "" for k in range(len(row)))


def _slicer_convention(system: str, path: Path) -> Convention:
    found = _SLICER_SYSTEMS.get(system.casefold())
    if found is None:
        raise UserError(f"{path} is in the coordinate system '{system}': save it in LPS or RAS.")
    return found


def _system(markup: dict[str, Any]) -> str:
    return str(markup.get("coordinateSystem", "LPS")).casefold()


def _read_markups(path: Path) -> tuple[Markups, Points]:
    content = read_json(path)
    places, points = [], []
    try:
        for number, markup in enumerate(content["markups"]):
            convention = _slicer_convention(_system(markup), path)
            for place, point in enumerate(markup["controlPoints"]):
                if point.get("positionStatus", "defined") != "defined":
                    continue
                position = np.array(point["position"], dtype=float).reshape(3)
                points.append(position if convention == "lps" else ras_to_lps(position))
                places.append((number, place))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no markups file of 3D Slicer: save the landmarks anew, or as .csv.") from error
    if not points or not np.isfinite(points).all():
        raise UserError(f"{path} lists no point with three numbers: place one, and save the landmarks anew.")
    return Markups(content, tuple(places)), np.array(points)
