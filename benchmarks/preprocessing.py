"""Preprocessing: llmreg beside nnU-Net v2 on the same volumes, spacing and cores; then llmreg's memory over many cases.

Makes CT-like volumes with 13 structures (int16, .nii.gz, axes as dcm2niix writes them) in a temporary folder, or takes
CTs from --images and their label maps, of the same names, from --labels. Each program preprocesses the cases one after
the other in a process of its own, pinned to the same cores, in turns. A case's time is the best of the rounds, each of
which begins with another case, since a process's first takes longer. CPU time is printed, too: it suffers less from
whatever else the machine does. Memory includes what the programs import.

Both read the image and its label map, clip to a window, resample to the same spacing and write with blosc2. They differ
in what their users need. llmreg checks both files, finds the body, brings it into a frame that is as large as the
largest of the volumes (prealignment "centre"; linear for the image, nearest for the labels) and also writes what lies
in the field of view. nnU-Net crops away zeros and resamples the whole volume, the image with cubic splines and the
labels linearly, one after the other; it keeps places of each structure for its sampling. Its planner also offers
PyTorch's linear resampling (nnUNetPlannerResEncL_torchres): that is the third row.

The second part runs one process over --cases links to one case of the last size and prints its resident memory.

    pip install nnunetv2   (only the comparison needs it; or into another folder, and that on PYTHONPATH)
    python benchmarks/preprocessing.py [--size 512 512 300] [--volumes 2] [--cases 200] [--spacing 0.8 0.8 1]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SIZES = [[256, 256, 120], [512, 512, 300]]
# Edge lengths of the whole volume, mm; the cases' voxels differ by up to a tenth.
EXTENT = (400.0, 400.0, 300.0)
STRUCTURES = 13
WINDOW = (-160.0, 240.0)
NAMES = {"llmreg": "llmreg", "nnunet": "nnU-Net v2", "torch": "nnU-Net v2, torch resampling"}


def make_volumes(folder: Path, size: list[int], count: int) -> None:
    """An elliptic body with a rim of fat, ellipsoids in it, noise, and a table below."""
    import numpy as np
    import SimpleITK as sitk

    nx, ny, nz = size
    for number in range(count):
        rng = np.random.default_rng(number)
        spacing = np.array(EXTENT) / size * rng.uniform(0.9, 1.1, 3)
        # Places from -1 to 1 along each axis.
        z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (nz, ny, nx))
        y, x = y[:, None], x[None]
        centres = rng.uniform(-1, 1, (STRUCTURES, 3)) * (0.45, 0.3, 0.8)
        radii, hu = rng.uniform(0.08, 0.25, (STRUCTURES, 3)), rng.uniform(0, 200, STRUCTURES)
        image, label = np.empty((nz, ny, nx), np.int16), np.zeros((nz, ny, nx), np.uint8)
        for k, height in enumerate(z):
            body = (x / 0.85) ** 2 + (y / 0.6) ** 2
            values = np.where(body < 0.85, 50, np.where(body < 1, -100, -1000)).astype(np.float32)
            values[(np.abs(y - 0.68) < 0.02) & (np.abs(x) < 0.6)] = -200
            for n, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
                cx, cy, cz = (centre / radius).astype(np.float32)
                rx, ry, rz = radius.astype(np.float32)
                inside = (x / rx - cx) ** 2 + (y / ry - cy) ** 2 + (height / rz - cz) ** 2 < 1
                values[inside], label[k, inside] = hu[n], n + 1
            values += rng.standard_normal(values.shape, np.float32) * 20
            image[k] = values.clip(-1024, 3071)
        for array, kind in ((image, "images"), (label, "labels")):
            volume = sitk.GetImageFromArray(np.ascontiguousarray(array[:, ::-1]))
            volume.SetSpacing(spacing.tolist())
            volume.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
            (folder / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(volume, str(folder / kind / f"case_{number}.nii.gz"), useCompression=True)


def describe(images: Path, labels: Path, spacing: list[float], path: Path) -> None:
    """Describe the volumes to both programs, as JSON."""
    import numpy as np
    import SimpleITK as sitk

    cases, extents, ids = [], [], {0}
    for image in sorted(images.glob("*.nii.gz")):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(image))
        reader.ReadImageInformation()
        # The frame's axes are LPS, the volume's need not be.
        axes = np.abs(np.reshape(reader.GetDirection(), (3, 3))).round()
        extents.append(axes @ (np.array(reader.GetSize()) * reader.GetSpacing()))
        label = labels / image.name
        ids |= set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(label)))).tolist())
        cases.append([str(image), str(label)])
    size = (np.max(extents, axis=0) / spacing).round().astype(int).tolist()
    content = {"cases": cases, "spacing": spacing, "size": size, "ids": sorted(ids - {0})}
    path.write_text(json.dumps(content))


def peak_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def llmreg_worker(description: dict[str, Any], out: Path, cores: int) -> Callable[[int, str, str], int]:
    """What preprocesses a case with llmreg and returns how many voxels of an image it wrote."""
    import blosc2
    import SimpleITK as sitk

    from llmreg.data.dataset import Case
    from llmreg.plans.plans import parse_plans
    from llmreg.preprocessing.preprocessed_volumes import write_case

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(cores)
    blosc2.set_nthreads(cores)
    padded = [-(-n // 16) * 16 for n in description["size"]]
    tokens = [n // 16 for n in padded]
    window = {"modality": "CT", "scheme": "window", "lower": WINDOW[0], "upper": WINDOW[1]}
    configuration = {
        "downsampling": 1,
        "padded_size": padded,
        "network_shape": padded,
        "token_grid": tokens,
        "token_length": tokens[0] * tokens[1] * tokens[2],
        "memory_gb": 1,
    }
    content = {
        "dataset_name": "Benchmark",
        "plans_name": "default",
        "spacing": description["spacing"],
        "size": description["size"],
        "centre": [0, 0, 0],
        "fixed_modality": 0,
        "moving_modality": 0,
        "labels": {n: f"s{n}" for n in description["ids"]},
        "normalization": {0: window},
        # No case is the reference, which would be written twice.
        "prealignment": {"method": "centre", "reference_case": "none"},
        "configurations": {"full": configuration},
        "default_configuration": "full",
        "reasons": {},
    }
    plans = parse_plans(content, "the benchmark")

    def run(number: int, image: str, label: str) -> int:
        case = Case(f"case_{number}", f"subject_{number}", 0, Path(image), Path(label))
        write_case(case, plans, out, {})
        return blosc2.open(str(out / f"{case.name}.b2nd")).size

    return run


def nnunet_worker(description: dict[str, Any], out: Path, cores: int, pytorch: bool) -> Callable[[int, str, str], int]:
    """The same with nnU-Net, as its planner has it: cubic splines, or PyTorch's linear resampling."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(out))
    import blosc2
    import torch
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(cores)
    if pytorch:
        of_all: dict[str, Any] = {"force_separate_z": False, "memefficient_seg_resampling": False, "num_threads": cores}
        function = "resample_torch_fornnunet"
        of_data, of_seg = of_all | {"is_seg": False}, of_all | {"is_seg": True}
    else:
        of_all = {"order_z": 0, "force_separate_z": None}
        function = "resample_data_or_seg_to_shape"
        of_data, of_seg = of_all | {"is_seg": False, "order": 3}, of_all | {"is_seg": True, "order": 1}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [128, 128, 128],
        "spacing": description["spacing"][::-1],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": of_data,
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": of_seg,
        "architecture": {},
    }
    intensities = {"mean": 40.0, "std": 100.0, "percentile_00_5": WINDOW[0], "percentile_99_5": WINDOW[1]}
    content = {
        "dataset_name": "Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": configuration},
    }
    plans = PlansManager(content)
    names = {"background": 0} | {f"s{n}": n for n in description["ids"]}
    dataset = {"labels": names, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    preprocessor = DefaultPreprocessor(verbose=False)

    def run(number: int, image: str, label: str) -> int:
        target = str(out / f"case_{number}")
        preprocessor.run_case_save(target, [image], label, plans, plans.get_configuration("3d_fullres"), dataset)
        return blosc2.open(target + ".b2nd").size

    return run


def worker(program: str, description: dict[str, Any], out: Path, cores: int) -> Callable[[int, str, str], int]:
    out.mkdir(parents=True, exist_ok=True)
    return (
        llmreg_worker(description, out, cores)
        if program == "llmreg"
        else nnunet_worker(description, out, cores, program == "torch")
    )


def measure(program: str, folder: Path, cores: int, first: int) -> None:
    """Preprocess the cases in this process, another one first in each round, and print what it took as JSON."""
    description = json.loads((folder / "description.json").read_text())
    count = len(description["cases"])
    cases: list[list[float]] = [[]] * count
    with contextlib.redirect_stdout(sys.stderr):
        run = worker(program, description, folder / program, cores)
        for number in [(first + k) % count for k in range(count)]:
            wall, cpu = time.perf_counter(), time.process_time()
            voxels = run(number, *description["cases"][number])
            cases[number] = [time.perf_counter() - wall, time.process_time() - cpu, voxels]
    json.dump({"cases": cases, "peak_gb": peak_gb()}, sys.stdout)


def compare(command: list[str], folder: Path, sides: list[str], repeats: int) -> None:
    """Measure the sides in turns and print a table and the ratios."""
    measurements: dict[str, list[dict[str, Any]]] = {program: [] for program in sides}
    for round_ in range(repeats):
        for program in sides:
            words = [*command, "--measure", program, "--folder", str(folder), "--first", str(round_)]
            process = subprocess.run(words, check=True, stdout=subprocess.PIPE)
            measurements[program].append(json.loads(process.stdout))
            shutil.rmtree(folder / program)
    sys.stdout.write(f"{'':<30}{'s a case':>10}{'CPU s':>8}{'Mvoxels written/s':>19}{'peak memory (GB)':>18}\n")
    rows = {}
    for program, runs in measurements.items():
        # Best of the rounds for each case, then the mean of the cases.
        best = [
            [min(values) for values in zip(*case, strict=True)]
            for case in zip(*(r["cases"] for r in runs), strict=True)
        ]
        wall, cpu, voxels = (sum(values) / len(best) for values in zip(*best, strict=True))
        rows[program] = row = (wall, cpu, voxels / wall / 1e6, max(run["peak_gb"] for run in runs))
        sys.stdout.write(f"{NAMES[program]:<30}{row[0]:>10.2f}{row[1]:>8.2f}{row[2]:>19.1f}{row[3]:>18.2f}\n")
    for program in sides[1:]:
        wall, cpu, rate, memory = (a / b for a, b in zip(rows[program], rows["llmreg"], strict=True))
        sys.stdout.write(
            f"llmreg beside {NAMES[program]}: {wall:.1f} times faster ({cpu:.1f} by CPU time, {1 / rate:.1f} by voxels "
            f"written a second), in {1 / memory:.2f} of the memory\n"
        )
    sys.stdout.flush()


def resident_gb() -> float:
    """Resident now, where the system tells it as Linux does; else the peak so far."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return peak_gb()
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def watch_memory(folder: Path, cases: int) -> None:
    """Preprocess many cases in this process, as one worker of ``preprocess`` does, and print its memory."""
    from llmreg.workers import GB_PER_PROCESS

    description = json.loads((folder / "description.json").read_text())
    links = folder / "links"
    links.mkdir()
    run = worker("llmreg", description, folder / "many", 1)
    start, quarters = time.perf_counter(), []
    for number in range(cases):
        paths = [links / f"{kind}_{number}.nii.gz" for kind in ("image", "label")]
        for path, source in zip(paths, description["cases"][0], strict=True):
            path.symlink_to(Path(source).resolve())
        run(number, *map(str, paths))
        # What was written would only fill the disk.
        for path in (folder / "many").glob(f"case_{number}*"):
            path.unlink()
        if (number + 1) * 4 // cases > number * 4 // cases:
            quarters.append((resident_gb(), peak_gb()))
            sys.stdout.write(
                f"after {number + 1:>4} cases: {quarters[-1][0]:.3f} GB resident, {quarters[-1][1]:.3f} GB at the "
                f"peak so far, {(time.perf_counter() - start) / (number + 1):.1f} s a case\n"
            )
            sys.stdout.flush()
    growth = 1000 * (quarters[-1][1] - quarters[0][1])
    sys.stdout.write(
        f"The peak grew by {growth:.0f} MB after the first quarter; the number of processes is chosen for "
        f"{GB_PER_PROCESS} GB in each\n"
    )


def has_nnunet() -> bool:
    """Whether it can be imported, with all that it imports itself; tried in another process, which may be slow."""
    words = "import nnunetv2.preprocessing.preprocessors.default_preprocessor as _; import sys; sys.exit(0)"
    process = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    if process.returncode:
        problem = process.stderr.strip().splitlines()[-1]
        sys.stdout.write(f"nnU-Net v2 cannot be imported ({problem}): pip install nnunetv2 for the comparison.\n")
    return process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, action="append", help=f"x y z, may be repeated (default: {SIZES})")
    parser.add_argument("--volumes", type=int, default=2, help="made of each size for the comparison")
    parser.add_argument("--images", type=Path, help="a folder of .nii.gz to use instead")
    parser.add_argument("--labels", type=Path, help="a folder with their label maps")
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.5, 1.5, 1.5], help="what both resample to, mm")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of the comparison; 0 leaves it out")
    parser.add_argument("--cores", type=int, default=1, help="that each program is pinned to in the comparison")
    parser.add_argument("--cases", type=int, default=12, help="of the second part, at least 4; 0 leaves it out")
    parser.add_argument("--folder", type=Path, help="where the volumes are made (default: the temporary folder)")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=["make", "describe", "memory", *NAMES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.images is None) != (options.labels is None) or 0 < options.cases < 4:
        parser.error("--images and --labels belong together, and --cases is 0 or at least 4")
    if options.measure in NAMES and hasattr(os, "sched_setaffinity"):
        # The last ones, since those who count from the front take the first.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    match options.measure:
        case None:
            run(options)
        case "make":
            make_volumes(options.folder, options.size[0], options.volumes)
        case "describe":
            describe(options.images, options.labels, options.spacing, options.folder / "description.json")
        case "memory":
            watch_memory(options.folder, options.cases)
        case program:
            measure(program, options.folder, options.cores, options.first)


def run(options: argparse.Namespace) -> None:
    """Both parts; all that takes memory in processes of its own, since children inherit this one's peak."""
    command = [sys.executable, __file__, "--cores", str(options.cores)]
    sides = ["llmreg"]
    if options.repeats:
        if has_nnunet():
            sides = list(NAMES)
            with contextlib.suppress(PackageNotFoundError):
                sys.stdout.write(f"nnU-Net {version('nnunetv2')}, ")
        target = "x".join(f"{s:g}" for s in options.spacing)
        sys.stdout.write(f"resampled to {target} mm, {options.cores} core(s) each, best of {options.repeats} rounds\n")
    sizes = options.size or SIZES
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for size in sizes if options.images is None else [None]:
            name = "given" if size is None else "x".join(map(str, size))
            folder = Path(temporary) / name
            folder.mkdir()
            images, labels = options.images, options.labels
            if size is not None:
                words = ["--measure", "make", "--volumes", str(options.volumes), "--size", *map(str, size)]
                subprocess.run([*command, *words, "--folder", str(folder)], check=True)
                images, labels = folder / "images", folder / "labels"
            words = ["--measure", "describe", "--images", str(images), "--labels", str(labels)]
            words += ["--folder", str(folder), "--spacing", *map(str, options.spacing)]
            subprocess.run([*command, *words], check=True)
            if options.repeats:
                sys.stdout.write(f"\n{name}\n")
                sys.stdout.flush()
                compare(command, folder, sides, options.repeats)
        if options.cases:
            sys.stdout.write(f"\nllmreg over {options.cases} cases like the first of {name}, one process, one thread\n")
            sys.stdout.flush()
            words = ["--measure", "memory", "--cases", str(options.cases), "--folder", str(folder)]
            subprocess.run([*command, *words], check=True)


if __name__ == "__main__":
    main()
