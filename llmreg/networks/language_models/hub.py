"""A Hugging Face model on the hub, read in ranges."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from huggingface_hub import HfApi, get_session, hf_hub_url

# HTTPError is that of the HTTP library that huggingface_hub has, which differs between its versions.
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from numpy.typing import NDArray
from typing_extensions import override

from llmreg.errors import UserError
from llmreg.networks.language_models.reading import Files

_TIMEOUT_S = 60.0
_PARTIAL_CONTENT = 206


class HubFiles(Files):
    """The files of ``<owner>/<name>`` or ``<owner>/<name>@<revision>``; the revision is fixed when this is made.

    Tokens and endpoint are huggingface_hub's own (``hf auth login``, ``HF_TOKEN``, ``HF_ENDPOINT``).

    Raises:
        UserError: the hub cannot be reached, or the model is unknown, gated or private.
    """

    def __init__(self, identifier: str) -> None:
        self._repository, _, revision = identifier.partition("@")
        self._endpoint = os.environ.get("HF_ENDPOINT")
        self.where = f"{self._endpoint or 'https://huggingface.co'}/{identifier}"
        with self._explain_errors():
            info = HfApi(endpoint=self._endpoint).model_info(self._repository, revision=revision or None)
        self.revision: str | None = info.sha
        self._names = {file.rfilename for file in info.siblings or ()}

    @override
    def names(self) -> set[str]:
        return self._names

    @override
    def json(self, name: str) -> dict[str, Any]:
        with self._explain_errors():
            response = get_session().get(
                self._url(name), headers=build_hf_headers(), timeout=_TIMEOUT_S, follow_redirects=True
            )
            hf_raise_for_status(response)
        content: dict[str, Any] = json.loads(response.content)
        return content

    @override
    def read(self, name: str, start: int, count: int) -> NDArray[np.uint8]:
        values = np.empty(count, np.uint8)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{start + count - 1}"}
        with (
            self._explain_errors(),
            get_session().stream(
                "GET", self._url(name), headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
            ) as response,
        ):
            hf_raise_for_status(response)
            if response.status_code != _PARTIAL_CONTENT:
                raise UserError(
                    f"{self.where}: the server sends whole files only; download the model and name its folder."
                )
            done = 0
            for part in response.iter_raw():
                values[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
        if done != count:
            raise OSError(f"{name} ends too early")
        return values

    def _url(self, name: str) -> str:
        return hf_hub_url(self._repository, name, revision=self.revision, endpoint=self._endpoint)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except GatedRepoError as error:
            raise UserError(
                f"{self.where} is gated: accept its terms on that page, then log in with 'hf auth login'."
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{self.where} does not exist or is private: check the name, or 'hf auth login'."
            ) from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.where} cannot be read ({first}): check the connection, or name a folder or file on disk."
            ) from error
