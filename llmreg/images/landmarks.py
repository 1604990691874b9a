"""Landmarks from and to files: tables (.csv), and 3D Slicer's .fcsv and .mrk.json."""

import copy
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from llmreg.errors import BadTable, MissingFile
from llmreg.files import read_json, write_json, write_text
from llmreg.geometry.grid import Grid, lps_to_ras, ras_to_lps
from llmreg.geometry.points import Points

Convention = Literal["lps", "ras", "voxel"]

LANDMARK_ENDINGS = (".csv", ".fcsv", ".mrk.json")
_AXES = ("x", "y", "z")
# The coordinate systems in Slicer's files; older versions number them.
_SLICER_SYSTEMS: dict[str, Convention] = {"lps": "lps", "ras": "ras", "1": "lps", "0": "ras"}


@dataclass(frozen=True)
class LandmarkTable:
    """The content of a table beside its coordinates, so that it can be written again with others.

    Attributes:
        convention: in which coordinates the file has them.
        preamble: lines before the table.
        header: the names of the columns, None where the file has none.
        rows: the cells as text.
        columns: which columns are x, y and z.
        delimiter: the character between cells.
    """

    convention: Convention
    preamble: tuple[str, ...]
    header: tuple[str, ...] | None
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[int, ...] = (0, 1, 2)
    delimiter: str = ","


def read_landmarks(
    path: Path, convention: Convention = "lps", grid: Grid | None = None
) -> tuple[LandmarkTable | dict[str, Any], Points]:
    """Landmarks of a .csv file, or of 3D Slicer's .fcsv and .mrk.json.

    A table whose first line has names needs the columns x, y and z among others; one without has three columns of
    numbers (as Learn2Reg's keypoints), and may have text beside them.

    Args:
        path: the file.
        convention: ``lps`` or ``ras`` (mm), or ``voxel`` (indices along the image's axes, from 0). Slicer's files say
            themselves which it is.
        grid: of the image whose voxels ``voxel`` counts.

    Returns:
        What :func:`write_landmarks` needs to write the file again (the content of a .mrk.json file), and the landmarks
        (N, 3), LPS mm.

    Raises:
        MissingFile: there is no such file.
        BadTable: the file holds no landmarks, or counts voxels and ``grid`` is None.
    """
    path = Path(path)
    if path.name.endswith(".mrk.json"):
        return _read_markups(path)
    table = _read_table(path, convention)
    coordinates = np.empty((len(table.rows), 3))
    for number, row in enumerate(table.rows):
        if len(row) <= max(table.columns):
            raise BadTable(path, f"has {len(row)} cells in point {number + 1}", "x, y and z are needed")
        for axis, column in enumerate(table.columns):
            value = _to_number(row[column])
            if value is None or not np.isfinite(value):
                raise BadTable(path, f"has {_AXES[axis]} = '{row[column]}' in point {number + 1}", "write a number")
            coordinates[number, axis] = value
    if table.convention == "voxel":
        if grid is None:
            raise BadTable(path, "holds voxels of an image that was not given", "give that image")
        return table, grid.index_to_physical(coordinates)
    return table, coordinates if table.convention == "lps" else ras_to_lps(coordinates)


def write_landmarks(
    table: LandmarkTable | dict[str, Any], points: ArrayLike, path: Path, grid: Grid | None = None
) -> None:
    """Write a file like the one that was read, with other coordinates.

    Args:
        table: of :func:`read_landmarks`.
        points: (N, 3), LPS mm, in the file's order.
        path: the file to write.
        grid: of the image whose voxels are counted, where the file has voxels.

    Raises:
        NotWritable: the file cannot be written.
        ValueError: the number of points is not the file's, or the grid is needed and missing.
    """
    points, path = np.asarray(points, dtype=float).reshape(-1, 3), Path(path)
    if len(points) != len(table.rows if isinstance(table, LandmarkTable) else list(_list_defined_points(table, path))):
        raise ValueError(f"{len(points)} points for a table of another length")
    if isinstance(table, dict):
        content = copy.deepcopy(table)
        for (control_point, convention), point in zip(_list_defined_points(content, path), points, strict=True):
            value = point if convention == "lps" else lps_to_ras(point)
            control_point["position"] = value.round(6).tolist()
        write_json(path, content)
        return
    if table.convention == "voxel":
        if grid is None:
            raise ValueError("landmarks in voxels need the grid of the image")
        points = grid.physical_to_index(points)
    elif table.convention == "ras":
        points = lps_to_ras(points)
    text = io.StringIO(newline="")
    text.writelines(line + "\n" for line in table.preamble)
    writer = csv.writer(text, delimiter=table.delimiter, lineterminator="\n")
    if table.header is not None:
        writer.writerow(table.header)
    for row, point in zip(table.rows, points, strict=True):
        values = dict(zip(table.columns, point, strict=True))
        writer.writerow([f"{values[k]:.6f}" if k in values else cell for k, cell in enumerate(row)])
    write_text(path, text.getvalue())


def _to_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise MissingFile(path, "check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(path, f"cannot be read as text ({error})", "save it as a UTF-8 table") from error


def _read_table(path: Path, convention: Convention) -> LandmarkTable:
    lines = _read_lines(path)
    # Comments stand at the top: further down, a # may begin a name.
    preamble = tuple(itertools.takewhile(lambda line: line.startswith("#"), lines))
    lines = lines[len(preamble) :]
    delimiter = next((mark for mark in (",", ";", "\t") if lines and mark in lines[0]), ",")
    rows = [tuple(row) for row in csv.reader(lines, delimiter=delimiter)]
    header = None
    if path.suffix == ".fcsv":
        settings = dict(re.findall(r"^[# ]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", "\n".join(preamble), re.MULTILINE))
        convention = _get_convention(settings.get("CoordinateSystem", "RAS"), path)
        names = tuple(name.strip() for name in settings.get("columns", "id,x,y,z").split(","))
    elif rows and sum(_to_number(cell) is not None for cell in rows[0]) < 3:
        header, *rows = rows
        names = tuple(name.strip().casefold() for name in header)
    else:
        names = _name_columns(rows[0] if rows else (), path)
    if not rows:
        raise BadTable(path, "lists no point", "write a line x,y,z for each")
    if any(names.count(axis) != 1 for axis in _AXES):
        raise BadTable(path, "has no columns x, y and z between commas", "name them in its first line")
    columns = tuple(names.index(axis) for axis in _AXES)
    return LandmarkTable(convention, preamble, header, tuple(rows), columns, delimiter)


def _name_columns(row: Sequence[str], path: Path) -> tuple[str, ...]:
    """The names of the columns of a table without a header: three columns hold numbers."""
    numbers = [k for k, cell in enumerate(row) if _to_number(cell) is not None]
    if len(numbers) > 3:
        raise BadTable(
            path,
            f"has {len(numbers)} columns of numbers and does not say which are x, y and z",
            "name the columns in its first line",
        )
    return tuple(_AXES[numbers.index(k)] if k in numbers else "" for k in range(len(row)))


def _get_convention(system: Any, path: Path) -> Convention:
    convention = _SLICER_SYSTEMS.get(str(system).casefold())
    if convention is None:
        raise BadTable(path, f"is in the coordinate system '{system}'", "save it in LPS or RAS")
    return convention


def _list_defined_points(content: dict[str, Any], path: Path) -> Iterator[tuple[dict[str, Any], Convention]]:
    """The control points in a .mrk.json file's content that have a position, each with its coordinate system."""
    for markup in content["markups"]:
        convention = _get_convention(markup.get("coordinateSystem", "LPS"), path)
        for control_point in markup["controlPoints"]:
            if control_point.get("positionStatus", "defined") == "defined":
                yield control_point, convention


def _read_markups(path: Path) -> tuple[dict[str, Any], Points]:
    content = read_json(path)
    points = []
    try:
        for control_point, convention in _list_defined_points(content, path):
            point = np.array(control_point["position"], dtype=float).reshape(3)
            points.append(point if convention == "lps" else ras_to_lps(point))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadTable(path, "is no markups file of 3D Slicer", "save the landmarks anew, or as .csv") from error
    if not points or not np.isfinite(points).all():
        raise BadTable(path, "lists no point with three numbers", "place one, and save the landmarks anew")
    return content, np.array(points)
