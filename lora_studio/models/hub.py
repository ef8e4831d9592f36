"""Fetches model folders from the Hugging Face Hub; the one place that knows the Hub's exceptions.

Only weights in safetensors, JSON and tokenizer files are asked for: nothing that could run code
when it is read. Torch is not imported here.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from lora_studio.errors import ModelError

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with a stage (`download`, `convert`), what is done and the total.

Calls never overlap, but may come from another thread than the caller's.
"""
IN_BYTES = frozenset(("download", "tool", "copy", "save", "gguf", "zip", "upload"))
"""Stages that are told in bytes."""

WEIGHTS = ("*.safetensors",)
DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "README.md")
# Subfolders hold ONNX and original checkpoints; `consolidated` is Mistral's second copy.
IGNORED = ("*/*", "consolidated*")
ANSWER_WITHIN_S = 5.0
ABANDONED_S = 3600.0
"""A file to which a download added nothing for so long is nobody's."""


def silent(stage: str, done: int, total: int) -> None:
    """Take a progress report and do nothing with it."""


def answers(repository: str) -> bool:
    """Say whether the Hub answers, within a few seconds, that it has this public repository."""
    try:
        huggingface_hub.HfApi().model_info(repository, timeout=ANSWER_WITHIN_S, token=False)
    except (httpx2.HTTPError, hub_errors.OfflineModeIsEnabled) as error:
        logger.info("The Hub does not answer for %s: %s", repository, type(error).__name__)
        return False
    return True


def file_sizes(repository: str, *, token: str | Literal[False] | None = None) -> dict[str, int]:
    """Return the bytes of a repository's files by their names; none where the Hub is out of reach.

    Raises:
        ModelError: If the Hub refuses.
    """
    refuse_malformed(token)
    with translated(repository):
        try:
            info = huggingface_hub.HfApi().model_info(
                repository, timeout=ANSWER_WITHIN_S, token=token, files_metadata=True
            )
        except (httpx2.TransportError, hub_errors.OfflineModeIsEnabled):
            return {}
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def fetch(
    repository: str,
    *,
    token: str | Literal[False] | None = None,
    weights: bool = True,
    offline: bool = False,
    into: Path | None = None,
    names: Sequence[str] = (),
    on_progress: OnProgress = silent,
) -> Path:
    """Return a local folder with the repository's files, downloading what is not there yet.

    Args:
        repository: `owner/name`.
        token: For gated repositories; None takes this machine's, if any; False takes none.
        weights: False leaves the weights out: enough to inspect the model.
        offline: Take what an earlier download left, without asking the Hub.
        into: The folder to fill; None is the cache that all Hugging Face tools share.
        names: The files to fetch, instead of those of a model.
        on_progress: Told the bytes done and the bytes known of so far.

    Raises:
        ModelError: Whatever the Hub or the disk says, as `translate` puts it.
    """
    refuse_malformed(token)
    with translated(repository):
        _drop_abandoned(repository)
        is_local = offline or not _has_safetensors(repository, token)
        folder = huggingface_hub.snapshot_download(
            repository,
            token=token,
            local_dir=into,
            local_files_only=is_local,
            allow_patterns=list(names) or [*DESCRIPTION, *(WEIGHTS if weights else ())],
            ignore_patterns=list(IGNORED),
            tqdm_class=_reporter(on_progress),
        )
    return Path(folder)


def refuse_malformed(token: str | Literal[False] | None) -> None:
    """Refuse what cannot be a token.

    Raises:
        ModelError: Without the token.
    """
    if token and not re.fullmatch(r"[!-~]+", token):
        # Such a token would be quoted in full by the HTTP library's own exception.
        raise ModelError("model.token_malformed")


def _drop_abandoned(repository: str) -> None:
    """Remove what downloads left half written that were ended by force; none goes on with it."""
    name = repo_folder_name(repo_id=repository, repo_type="model")
    for file in Path(constants.HF_HUB_CACHE, name, "blobs").glob("*.incomplete"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()


def _has_safetensors(repository: str, token: str | Literal[False] | None) -> bool:
    """Return False if the Hub cannot be reached; refuse a repository without safetensors."""
    try:
        info = huggingface_hub.HfApi().model_info(repository, timeout=ANSWER_WITHIN_S, token=token)
    except (httpx2.TransportError, hub_errors.OfflineModeIsEnabled) as error:
        logger.info("The Hub cannot be reached (%s); looking in the cache", type(error).__name__)
        return False
    names = [file.rfilename for file in info.siblings or ()]
    if not any("/" not in name and name.endswith(".safetensors") for name in names):
        raise ModelError("model.no_safetensors", source=repository)
    return True


def _reporter(on_progress: OnProgress) -> type[Any]:
    """Return a progress bar class that shows nothing and passes the bytes on."""

    class Reporter(tqdm):
        def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
            # Of the three bars of a download, this one counts bytes written to disk.
            self.counts_bytes = name == "huggingface_hub.snapshot_download"
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            with self.get_lock():
                self.n += n or 0
                if self.counts_bytes:
                    on_progress("download", int(self.n), int(max(self.total or 0, self.n)))

    return Reporter


@contextmanager
def translated(source: str) -> Iterator[None]:
    """Turn the Hub's and the disk's exceptions inside the block into ModelError."""
    try:
        yield
    except (
        httpx2.HTTPError,
        OSError,
        hub_errors.EntryNotFoundError,
        hub_errors.HFValidationError,
        hub_errors.RevisionResolutionError,
        hub_errors.XetDownloadError,
    ) as error:
        raise translate(error, source) from error


def translate(error: BaseException, source: str) -> ModelError:
    """Return the sentence for an exception of the Hub's library, the network or the disk.

    A token never gets into it: only the source's name and the kind of failure do.
    """
    cause = error.__cause__
    if isinstance(error, hub_errors.LocalEntryNotFoundError) and isinstance(
        cause, hub_errors.HfHubHTTPError
    ):
        return translate(cause, source)
    match error:
        case hub_errors.GatedRepoError():
            return ModelError("model.gated", source=source)
        case hub_errors.RepositoryNotFoundError() | hub_errors.RevisionNotFoundError():
            return ModelError("model.not_found", source=source)
        case hub_errors.HFValidationError():
            return ModelError("model.bad_source", source=source)
        case hub_errors.HfHubHTTPError():
            return _refused(error.response.status_code, source)
        case hub_errors.EntryNotFoundError() | httpx2.HTTPError() | ConnectionError():
            return ModelError("model.no_network", source=source)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ModelError("model.disk_full", source=source)
    reason = error.strerror if isinstance(error, OSError) else None
    return ModelError("model.unreadable", source=source, reason=reason or type(error).__name__)


def _refused(status: int, source: str) -> ModelError:
    if status in (401, 403):
        return ModelError("model.token_refused", source=source)
    return ModelError("model.hub_trouble", source=source, status=status)
