"""The files of a Hugging Face model, in a folder on this computer or on the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, get_session, hf_hub_url

# HTTPError is that of the HTTP library that huggingface_hub has, which differs between its versions.
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from numpy.typing import NDArray

from llmreg.errors import BadLanguageModel

_TIMEOUT_S, _PARTIAL_CONTENT = 60.0, 206


class LocalFiles:
    """The files of a model in a folder, which have no revision.

    Attributes:
        where: what messages call the model.
        names: the names of all files.
    """

    revision: str | None = None

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder
        self.names = {path.name for path in folder.iterdir()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """Bytes of a file, all of them without a count. Raises OSError when it ends too early."""
        size = (self._folder / name).stat().st_size
        count = size if count is None else count
        if start + count > size:
            raise OSError(f"{name} ends too early")
        # Mapped, so that pages are read when they are used, and processes share them. Copy-on-write, because torch
        # needs a writable array.
        return np.memmap(self._folder / name, np.uint8, mode="c", offset=start, shape=(count,))


class HubFiles:
    """The files of a model on the hub, ``<owner>/<name>`` or ``<owner>/<name>@<revision>``, read in ranges.

    The revision is fixed when this is made. Tokens and endpoint are huggingface_hub's own (``hf auth login``,
    ``HF_TOKEN``, ``HF_ENDPOINT``).

    Attributes:
        where: what messages call the model.
        revision: its commit.
        names: the names of all files.

    Raises:
        BadLanguageModel: the hub cannot be reached, or the model is unknown, gated or private.
    """

    def __init__(self, identifier: str) -> None:
        self._repository, _, revision = identifier.partition("@")
        self._endpoint = os.environ.get("HF_ENDPOINT")
        self.where = f"{self._endpoint or 'https://huggingface.co'}/{identifier}"
        with self._explain_errors():
            info = HfApi(endpoint=self._endpoint).model_info(self._repository, revision=revision or None)
        self.revision: str | None = info.sha
        self.names = {file.rfilename for file in info.siblings or ()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """Bytes of a file, as of a folder."""
        part = {} if count is None else {"Range": f"bytes={start}-{start + count - 1}"}
        with (
            self._explain_errors(),
            get_session().stream(
                "GET",
                hf_hub_url(self._repository, name, revision=self.revision, endpoint=self._endpoint),
                headers=build_hf_headers() | part,
                timeout=_TIMEOUT_S,
                follow_redirects=True,
            ) as response,
        ):
            hf_raise_for_status(response)
            if count is not None and response.status_code != _PARTIAL_CONTENT:
                raise BadLanguageModel(
                    self.where,
                    "cannot be read in parts, since its server sends whole files only",
                    "download the model and name its folder",
                )
            # A copy, because torch needs a writable array.
            content = np.array(np.frombuffer(response.read(), np.uint8))
        if count is not None and len(content) != count:
            raise OSError(f"{name} ends too early")
        return content

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except GatedRepoError as error:
            raise BadLanguageModel(
                self.where, "is gated", "accept its terms on that page, then log in with 'hf auth login'"
            ) from error
        except RepositoryNotFoundError as error:
            raise BadLanguageModel(
                self.where, "does not exist or is private", "check the name, or log in with 'hf auth login'"
            ) from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadLanguageModel(
                self.where, f"cannot be read ({first})", "check the connection, or name a folder or file on disk"
            ) from error
