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
    change_manifest,
    members_of,
    plans,
    tree,
    update_manifest,
    zip_members,
)

from llmreg.commands import install_model
from llmreg.errors import UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.plans.plans import override
from llmreg.sharing import installing
from llmreg.sharing.exporting import NeededLayers


def add_pickle(members: Members) -> bytes:
    return zip_members(update_manifest(members | {"model.pkl": pickle.dumps(print)}))


def pickle_weights(members: Members) -> bytes:
    buffer = io.BytesIO()
    torch.save({"network.weight": torch.ones(3)}, buffer)
    return zip_members(update_manifest(members | {WEIGHTS: buffer.getvalue()}))


def add_member(name: str) -> Callable[[Members], bytes]:
    def tamper(members: Members) -> bytes:
        return zip_members(update_manifest(members | {name: b"{}"}))

    return tamper


def put_nul_in_name(members: Members) -> bytes:
    renamed = {name.replace("plans.json", "plans.json_exe"): content for name, content in members.items()}
    return zip_members(renamed).replace(b"plans.json_exe", b"plans.json\0exe")


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
    def tamper(members: Members) -> bytes:
        return zip_members(update_manifest(members | {name: b" " * (mebibytes << 20)}))

    return tamper


def bomb_that_lies(members: Members) -> bytes:
    """A member of 8 MiB has 10 bytes according to the zip's list and the manifest."""
    name = "dataset_fingerprint.json"
    manifest = update_manifest(members | {name: b" " * 10})["manifest.json"]
    content = bytearray(zip_members(members | {name: b" " * (8 << 20), "manifest.json": manifest}))
    position = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))
    struct.pack_into("<I", content, position + 24, 10)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.getinfo(name).file_size == 10
        assert len(archive.read("plans.json")) == len(members["plans.json"])
    return bytes(content)


def bomb_in_the_image(members: Members) -> bytes:
    return zip_members(
        update_manifest(members | {"reference.nii.gz": gzip.compress(bytes(70 << 20), 1)}), zipfile.ZIP_STORED
    )


def bomb_in_a_template(members: Members) -> bytes:
    template = {"templates/all/seen_0000.nii.gz": gzip.compress(bytes(70 << 20), 1)}
    return zip_members(update_manifest(members | template), zipfile.ZIP_STORED)


def other_weights(members: Members) -> bytes:
    changed = bytearray(members[WEIGHTS])
    changed[-1] ^= 1
    return zip_members(members | {WEIGHTS: bytes(changed)})


def remove_member(name: str) -> Callable[[Members], bytes]:
    return lambda members: zip_members({member: content for member, content in members.items() if member != name})


def remove_listed_member(name: str) -> Callable[[Members], bytes]:
    return lambda members: zip_members(
        update_manifest({member: content for member, content in members.items() if member != name})
    )


def add_unlisted_member(members: Members) -> bytes:
    return zip_members(members | {"fold_1/checkpoint_final.json": members[STATE]})


def rename_model(name: str) -> Callable[[Members], bytes]:
    return lambda members: zip_members(change_manifest(members, name=name))


def repeat_member(members: Members) -> bytes:
    buffer = io.BytesIO(zip_members(members))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(zipfile.ZipInfo("plans.json"), b"{}")
    return buffer.getvalue()


def encrypt(members: Members) -> bytes:
    content = bytearray(zip_members(members))
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = content.index(header)
        content[position + flags] |= 1
    return bytes(content)


def overlap_members(members: Members) -> bytes:
    """The second member's header lies in the first one's data, as in bombs that use the same bytes many times."""
    content = bytearray(zip_members(members))
    first = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", first + 4)
    struct.pack_into("<I", content, second + 42, struct.unpack_from("<I", content, first + 42)[0] + 8)
    return bytes(content)


def endless_list(members: Members) -> bytes:
    """The list of members takes 6 MiB."""
    buffer = io.BytesIO(zip_members(members))
    with zipfile.ZipFile(buffer, "a") as archive:
        for number in range(100):
            info = zipfile.ZipInfo(f"{number}")
            info.comment = b" " * 65000
            archive.writestr(info, b"")
    return buffer.getvalue()


def damage_weights(part: str) -> Callable[[Members], bytes]:
    def tamper(members: Members) -> bytes:
        content = members[WEIGHTS]
        changed = {
            "header": b"\xff" * 8 + content[8:],
            "names": content[:10] + b"\0" * 20 + content[30:],
            "cut": content[:-10],
            "empty": b"",
        }[part]
        return zip_members(update_manifest(members | {WEIGHTS: changed}))

    return tamper


def change_weights(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Callable[[Members], bytes]:
    def tamper(members: Members) -> bytes:
        tensors, state = load(members[WEIGHTS]), json.loads(members[STATE])
        change(tensors, state)
        changed_weights = save(tensors, {"state": json.dumps(state)})
        return zip_members(update_manifest(members | {WEIGHTS: changed_weights, STATE: json.dumps(state).encode()}))

    return tamper


def replace_file(name: str, content: bytes) -> Callable[[Members], bytes]:
    return lambda members: zip_members(update_manifest(members | {name: content}))


def other_plans(*changes: str) -> Callable[[Members], bytes]:
    def tamper(members: Members) -> bytes:
        changed_plans = override(plans(), list(changes), "default").model_dump_json().encode()
        return zip_members(update_manifest(members | {"plans.json": changed_plans}))

    return tamper


def huge_frame(members: Members) -> bytes:
    """Plans, and a checkpoint of theirs, whose frame has 10^15 voxels."""
    sides = {key: [100_000] * 3 for key in ("padded_size", "network_shape")}
    tokens = {"token_grid": [6250] * 3, "token_length": 6250**3}
    changes = [f"configurations.full.{key}={json.dumps(value)}" for key, value in (sides | tokens).items()]
    huge_plans = override(
        plans(), ["size=[100000,100000,100000]", f'network.llm.sha256="{SHA256}"', *changes], "default"
    )
    state = json.loads(members[STATE]) | {"plans_digest": huge_plans.digest("full")}
    return zip_members(
        update_manifest(
            members
            | {
                "plans.json": huge_plans.model_dump_json().encode(),
                WEIGHTS: save(load(members[WEIGHTS]), {"state": json.dumps(state)}),
                STATE: json.dumps(state).encode(),
            }
        )
    )


def tamper_manifest(**changes: Any) -> Callable[[Members], bytes]:
    return lambda members: zip_members(change_manifest(members, **changes))


def other_layers(members: Members) -> bytes:
    llm = json.loads(members["manifest.json"])["llm"]
    return zip_members(change_manifest(members, llm=llm | {"source": "evil/model"}))


DEEP = b"[" * 200_000 + b"]" * 200_000


HOSTILE: dict[str, tuple[Callable[[Members], bytes], str]] = {
    "pickle": (add_pickle, "'model.pkl', which no shared model"),
    "pickle called safetensors": (pickle_weights, f"{WEIGHTS} that cannot be used"),
    "parent": (add_member("../evil.json"), "'../evil.json', which no shared model"),
    "parent below": (add_member("fold_0/../../evil.json"), "which no shared model"),
    "absolute": (add_member("/tmp/evil.json"), "'/tmp/evil.json', which no shared model"),
    "drive": (add_member("C:/evil.json"), "which no shared model"),
    "windows": (add_member("C:\\evil.json"), "which no shared model"),
    "windows parent": (add_member("..\\evil.json"), "which no shared model"),
    "backslash": (add_member("fold_1\\checkpoint_final.json"), "which no shared model"),
    "newline": (add_member("plans.json\n"), "which no shared model"),
    "NUL": (put_nul_in_name, "'plans.json\\x00exe', which no shared model"),
    "terminal": (add_member("\x1b[2J.json"), "'\\x1b[2J.json', which no shared model"),
    "capitals": (add_member("PLANS.json"), "which no shared model"),
    "folder": (add_member("fold_1/"), "which no shared model"),
    "other fold": (add_member("fold_00/checkpoint_final.json"), "which no shared model"),
    "language model": (add_member("llm/layers.safetensors"), "which no shared model"),
    "link": (link, "plans.json as a link"),
    "bomb": (bomb("reference.nii.gz", 30), "reference.nii.gz, which unpacks to 30.0 MiB"),
    "small bomb": (bomb("fold_0/checkpoint_final.json", 2), "unpacks to 2.0 MiB"),
    "large state": (
        lambda members: zip_members(update_manifest(members | {STATE: b" " * (2 << 20)}), zipfile.ZIP_STORED),
        "unpacks to 2.0 MiB",
    ),
    "bomb that lies": (bomb_that_lies, "not a whole zip"),
    "bomb in the image": (bomb_in_the_image, "reference.nii.gz that cannot be used (it unpacks to more than 1 MiB)"),
    "bomb in a template": (bomb_in_a_template, "seen_0000.nii.gz that cannot be used (it unpacks to more than 64 MiB)"),
    "hash": (other_weights, f"another {WEIGHTS} than it lists (sha256)"),
    "missing": (remove_member(STATE), f"lacks {STATE}"),
    "no manifest": (remove_member("manifest.json"), "no manifest.json"),
    "no plans": (remove_listed_member("plans.json"), "lacks plans.json"),
    "no state": (remove_listed_member(STATE), f"lacks {STATE}"),
    "no weights": (remove_listed_member(WEIGHTS), f"lacks {WEIGHTS}"),
    "no fold": (
        lambda members: zip_members(
            update_manifest({name: members[name] for name in members if "fold_0/c" not in name})
        ),
        "no checkpoint",
    ),
    "other size": (
        lambda members: zip_members(members | {STATE: members[STATE] + b" "}),
        "json of another size than it",
    ),
    "no reference": (remove_listed_member("reference.nii.gz"), "lacks reference.nii.gz"),
    "no template": (remove_listed_member("templates/all/seen_0001.nii.gz"), "templates/all/templates.json that cannot"),
    "unlisted": (add_unlisted_member, "beside what is listed in it, fold_1/checkpoint_final.json"),
    "truncated": (lambda members: zip_members(members)[:-30], "not a whole zip"),
    "half": (lambda members: zip_members(members)[: len(zip_members(members)) // 2], "not a whole zip"),
    "text": (lambda members: b"no zip at all", "not a whole zip"),
    "empty": (lambda members: b"", "not a whole zip"),
    "empty zip": (lambda members: zip_members({}), "no manifest.json"),
    "outside": (rename_model("Dataset001_X/../../evil"), "damaged manifest.json (name"),
    "further outside": (rename_model("Dataset001_X/../../../llm_morph__a__full"), "damaged manifest.json (name"),
    "dots": (rename_model("Dataset001_../llm_morph__default__full"), "damaged manifest.json (name"),
    "absolute name": (rename_model("/tmp/Dataset001_X/llm_morph__default__full"), "damaged manifest.json (name"),
    "windows name": (rename_model("Dataset001_X\\..\\evil/llm_morph__default__full"), "damaged manifest.json (name"),
    "terminal name": (rename_model("Dataset001_\x1b[2J/llm_morph__default__full"), "damaged manifest.json (name"),
    "long name": (rename_model(f"Dataset001_{'X' * 300}/llm_morph__default__full"), "damaged manifest.json (name"),
    "name of another": (
        rename_model("Dataset003_C/llm_morph__default__full"),
        "plans.json that cannot be used (it is not",
    ),
    "twice": (repeat_member, "plans.json twice"),
    "encrypted": (encrypt, "holds plans.json encrypted"),
    "bzip2": (lambda members: zip_members(members, zipfile.ZIP_BZIP2), "in a compression"),
    "lzma": (lambda members: zip_members(members, zipfile.ZIP_LZMA), "in a compression"),
    "overlapping": (overlap_members, "inside another member"),
    "endless list": (endless_list, "list of its members is too long"),
    "damaged header": (damage_weights("header"), f"{WEIGHTS} that cannot be used"),
    "damaged names": (damage_weights("names"), f"{WEIGHTS} that cannot be used"),
    "cut weights": (damage_weights("cut"), f"{WEIGHTS} that cannot be used"),
    "empty weights": (damage_weights("empty"), f"{WEIGHTS} that cannot be used"),
    "moments": (
        change_weights(lambda tensors, state: tensors.update({"optimizer.step.weight": torch.ones(1)})),
        "more than weights",
    ),
    "other plans' weights": (change_weights(lambda tensors, state: state.update(plans_digest="0")), "plans other than"),
    "other layers' weights": (
        change_weights(lambda tensors, state: state.update(llm_sha256="f" * 64)),
        "different layers",
    ),
    "mistyped state": (change_weights(lambda tensors, state: state.update(epochs="many")), "epochs"),
    "deep state": (replace_file(STATE, DEEP), f"{STATE} that cannot be used"),
    "half a state": (
        replace_file(STATE, b'{"epochs": 1}'),
        f"{STATE} that cannot be used (plans_digest: Field required)",
    ),
    "other state": (
        lambda members: replace_file(STATE, members[STATE].replace(b'"epoch": 3', b'"epoch": 4'))(members),
        f"{STATE} that cannot be used (it is not that of the tensors",
    ),
    "deep manifest": (lambda members: zip_members(members | {"manifest.json": DEEP}), "damaged manifest.json"),
    "list as manifest": (lambda members: zip_members(members | {"manifest.json": b"[]"}), "damaged manifest.json"),
    "long number": (replace_file("plans.json", b"9" * 10_000), "plans.json that cannot be used"),
    "no JSON": (replace_file("plans.json", b"{"), "plans.json that cannot be used"),
    "no text": (replace_file("dataset_fingerprint.json", b"\xff\xfe"), "dataset_fingerprint.json that cannot be used"),
    "unknown key": (replace_file("plans.json", b'{"__reduce__": 1}'), "plans.json that cannot be used"),
    "mended plans": (other_plans("loss.smoothness=0.5"), f"{WEIGHTS} that cannot be used (was trained with"),
    "huge frame": (huge_frame, "reference.nii.gz that cannot be used (does not lie in the plans' frame)"),
    "no image": (replace_file("reference.nii.gz", gzip.compress(b"no image")), "reference.nii.gz that cannot be used"),
    "no gzip": (replace_file("reference.nii.gz", b"no image"), "reference.nii.gz that cannot be used"),
    "newer": (tamper_manifest(format_version=2), "install a newer llmreg"),
    "newer version": (
        lambda members: replace_file("plans.json", b'{"key": 1}')(change_manifest(members, llmreg_version="9.1")),
        ": install llmreg 9.1",
    ),
    "terminal version": (tamper_manifest(llmreg_version="\x1b[2J"), "damaged manifest.json (llmreg_version"),
    "unknown entry": (tamper_manifest(run="rm"), "damaged manifest.json (run"),
    "other layers": (other_layers, "other layers of a language model"),
    "no layers": (tamper_manifest(llm=None), "other layers of a language model"),
    "listed outside": (
        tamper_manifest(files={"../evil.json": {"size": 1, "sha256": SHA256}}),
        "damaged manifest.json (files.../evil.json",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_hostile_or_damaged_leaves_a_sentence_and_nothing_else(
    kind: str, good_zip: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper, message = HOSTILE[kind]
    (tmp_path / "model.zip").write_bytes(tamper(members_of(good_zip)))
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'model.zip'}")
    assert message in error
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["bomb", "bomb in the image", "bomb in a template", "endless list", "bomb that lies"])
def test_bombs_do_not_fill_the_memory(kind: str, good_zip: bytes, target: Path, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(HOSTILE[kind][0](members_of(good_zip)))
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
    cache_folder = cache.find(stored.sha256, tmp_path / "cache")
    assert cache_folder is not None
    (cache_folder / "layers.safetensors").write_bytes(save({"1.weight": torch.zeros(4)}))
    assert not installing.has_layers(llm)
