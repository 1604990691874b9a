"""Installing a model: a hostile or damaged zip leaves nothing behind but a sentence."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from zipped_models import (
    NAME,
    SHA256,
    STATE,
    WEIGHTS,
    Members,
    listed,
    members_of,
    plans,
    tree,
    with_manifest,
    zipped,
)

from llmreg.commands import install_model
from llmreg.errors import UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.plans.plans import override
from llmreg.sharing import installing
from llmreg.sharing.exporting import NeededLayers


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
            installing.install_model(tmp_path / "model.zip", target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_caches_and_sources_that_hold_the_layers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "cache"))
    tensors = {(1, "weight"): StoredTensor(torch.arange(4.0))}
    stored = StoredLayers("owner/name", "abc123", {}, (1,), "huggingface", tensors)
    llm = NeededLayers(source="owner/name", layers=(1,), weights="pretrained", sha256=stored.sha256, revision="abc123")
    assert not installing.has_layers(llm)
    cache.write(stored, tmp_path / "cache")
    assert installing.has_layers(llm)
    cached = cache.find(stored.sha256, tmp_path / "cache")
    assert cached is not None
    (cached / "layers.safetensors").write_bytes(save({"1.weight": torch.zeros(4)}))
    assert not installing.has_layers(llm)
