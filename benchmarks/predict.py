"""llmreg_predict beside classical registration on the same pairs: seconds a pair, peak memory and Dice.

    python benchmarks/predict.py -d 2 -m results/Dataset002_BrainMRCT/llm_morph__default__half
    python benchmarks/predict.py -d 2 -m MODEL --methods llmreg ants convexadam --pairs 3

Each method runs as one command over all pairs, start-up included: ``llmreg_predict`` as users type it, the others in
one Python process that reads the images, registers them with the method's own defaults for two contrasts, and warps
the moving label maps. The pairs are validation pairs of the model's fold, which it was not trained on. Peers need
``pip install llmreg[peers]``; those that are not installed are left out.

* ants: ANTsPy's ``SyN``, affine and deformable by mutual information.
* greedy: affine by normalised mutual information, then deformable by local cross-correlation (2x2x2).
* convexadam: ConvexAdam's MIND-SSC defaults (grid spacing 6, displacement 4, 80 iterations).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg import paths
from llmreg.dataset import load_dataset
from llmreg.evaluation.metrics import dice_per_label
from llmreg.preprocessing import pipeline, splits

MODULES = {"llmreg": "llmreg", "ants": "ants", "greedy": "picsl_greedy", "convexadam": "convexAdam"}
Files = dict[str, str]


def by_ants(pair: Files, warped: str) -> None:
    import ants

    fixed, moving, label = (ants.image_read(pair[key]) for key in ("fixed", "moving", "moving_label"))
    found = ants.registration(fixed, moving, "SyN")
    ants.image_write(ants.apply_transforms(fixed, label, found["fwdtransforms"], "nearestNeighbor"), warped)


def by_greedy(pair: Files, warped: str) -> None:
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    images = f"-i {pair['fixed']} {pair['moving']}"
    greedy.execute(f"{images} -a -dof 12 -ia-identity -m NMI -n 100x50x10 -o affine", affine=None)
    greedy.execute(f"{images} -it affine -m NCC 2x2x2 -n 100x50x10 -o warp", warp=None)
    greedy.execute(f"-rf {pair['fixed']} -ri LABEL 0.2vox -rm {pair['moving_label']} {warped} -r warp affine")


def by_convexadam(pair: Files, warped: str) -> None:
    from convexAdam.convex_adam_MIND import convex_adam_pt

    from llmreg.geometry.field import warp_image
    from llmreg.geometry.formats import from_learn2reg
    from llmreg.geometry.grid import Grid

    fixed, moving = (sitk.ReadImage(pair[key], sitk.sitkFloat32) for key in ("fixed", "moving"))
    grids = Grid.from_image(fixed), Grid.from_image(moving)
    # Onto the fixed image's grid, which the method needs.
    moving = sitk.Resample(moving, fixed)
    found = convex_adam_pt(*(np.transpose(sitk.GetArrayFromImage(image)).copy() for image in (fixed, moving)))
    field = from_learn2reg(found.astype(np.float32), grids[0])
    sitk.WriteImage(warp_image(sitk.ReadImage(pair["moving_label"]), field, "nearest"), warped)


PEERS: dict[str, Callable[[Files, str], None]] = {
    "ants": by_ants, "greedy": by_greedy, "convexadam": by_convexadam,
}  # fmt: skip


def validation_pairs(dataset: str, fold: int, number: int) -> list[Files]:
    """Files of the first validation pairs of a fold."""
    raw = load_dataset(paths.find_dataset_folder(dataset, paths.raw_folder()))
    folder = pipeline.preprocessed_dataset(dataset)
    chosen = splits.read_splits(folder / pipeline.SPLITS_FILE)[fold].validation_pairs[:number]
    return [
        {
            "fixed": str(raw.case(pair.fixed).image),
            "moving": str(raw.case(pair.moving).image),
            "fixed_label": str(raw.case(pair.fixed).label),
            "moving_label": str(raw.case(pair.moving).label),
        }
        for pair in chosen
    ]


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak memory (GB) of a command."""
    watched = (
        "import json, resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(json.dumps([done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20]))"
    )
    start = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", watched, *command], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    seconds = time.perf_counter() - start
    code, memory = json.loads(said.splitlines()[-1])
    if code:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}")
    return seconds, memory


def mean_dice(pairs: Sequence[Files], warped: Sequence[Path | str]) -> float:
    found = []
    for pair, path in zip(pairs, warped, strict=True):
        fixed, moving = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(p))).astype(np.int64) for p in (pair["fixed_label"], path)
        )
        before = sitk.GetArrayFromImage(sitk.ReadImage(pair["moving_label"])).astype(np.int64)
        ids = [int(k) for k in np.unique(fixed) if k]
        found.append(np.nanmean(list(dice_per_label(moving, fixed, ids, unwarped=before).values())))
    return 100 * float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="2")
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-f", "--fold", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--methods", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument(
        "--llmreg", nargs="*", default=[""], help="further flags of llmreg_predict, a row for each text"
    )
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        method, folder = options.run.split(":", 1)
        for number, pair in enumerate(json.loads(Path(folder, "pairs.json").read_text())):
            PEERS[method](pair, str(Path(folder, f"{number}.nii.gz")))
        return
    if options.model is None:
        parser.error("-m is needed: a trained model folder")
    pairs = validation_pairs(options.dataset, options.fold, options.pairs)
    sys.stdout.write(f"{len(pairs)} validation pairs, {os.cpu_count()} cores\n")
    sys.stdout.write(f"{'':<40}{'s a pair':>10}{'ratio':>8}{'peak GB':>10}{'Dice %':>9}\n")
    first: float | None = None
    with tempfile.TemporaryDirectory() as work:
        unmoved = [Path(work, f"unmoved_{number}.nii.gz") for number in range(len(pairs))]
        for pair, path in zip(pairs, unmoved, strict=True):
            label, fixed = (sitk.ReadImage(pair[key]) for key in ("moving_label", "fixed_label"))
            sitk.WriteImage(sitk.Resample(label, fixed, sitk.Transform(), sitk.sitkNearestNeighbor), str(path))
        sys.stdout.write(f"{'as they lie':<40}{'':>28}{mean_dice(pairs, unmoved):>9.1f}\n")
        runs = [("llmreg", extra) for extra in options.llmreg] if "llmreg" in options.methods else []
        runs += [(method, "") for method in options.methods if method != "llmreg"]
        for number, (method, extra) in enumerate(runs):
            name = f"{method} {extra}".strip()
            if find_spec(MODULES[method]) is None:
                sys.stdout.write(f"{name:<40}  is not installed\n")
                continue
            folder = Path(work, str(number))
            folder.mkdir()
            if method == "llmreg":
                with (folder / "pairs.csv").open("w", newline="") as table:
                    writer = csv.DictWriter(table, pairs[0])
                    writer.writeheader()
                    writer.writerows(pairs)
                command = [
                    sys.executable,
                    "-m",
                    "llmreg.commands.predict",
                    "-i",
                    str(folder),
                    "-o",
                    str(folder / "out"),
                ]
                command += ["-m", str(options.model), "-f", str(options.fold), "--save", "field", "warped", "labels"]
                command += extra.split()
            else:
                (folder / "pairs.json").write_text(json.dumps(pairs))
                command = [sys.executable, __file__, "--run", f"{method}:{folder}"]
            seconds, memory = measured(command)
            if method == "llmreg":
                rows = json.loads((folder / "out" / "predict.json").read_text())["pairs"]
                warped: list[Path] = [folder / "out" / row["labels"] for row in rows]
            else:
                warped = [folder / f"{index}.nii.gz" for index in range(len(pairs))]
            each = seconds / len(pairs)
            first = first or each
            dice = mean_dice(pairs, warped)
            sys.stdout.write(f"{name:<40}{each:>10.1f}{each / first:>8.2f}{memory:>10.2f}{dice:>9.1f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
