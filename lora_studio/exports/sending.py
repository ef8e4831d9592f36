"""One repository of the Hugging Face Hub: what it is now, and files sent there in one commit.

A repository that was made for files that then did not arrive is deleted again; one that was there
before never is, nor one that may have them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from lora_studio.errors import StudioError
from lora_studio.exports.packing import Parcel
from lora_studio.models.sources import HUB_ID

Progress = Callable[[str, int, int], None]

TOKEN = re.compile(r"[!-~]+")
HUBS_OWN = ".gitattributes"
"""What the Hub puts into a new repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A repository as it is before anything is sent."""

    exists: bool | None
    """None where the Hub does not say: without a token, one that is private looks like none."""
    is_private: bool = False
    holds_files: bool = False
    """One that is there without a file is what an attempt left that lost the network."""


def require_name(repository: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        StudioError: With the name.
    """
    plain = HUB_ID.fullmatch(repository) is not None
    if not plain or "--" in repository or ".." in repository or repository.endswith(".git"):
        raise StudioError("shipping.bad_repository", repository=repository)


def require_form(token: str | None) -> None:
    """Refuse what cannot be a token: the HTTP library's own exception would quote it in full.

    Raises:
        StudioError: Without the token.
    """
    if token and not TOKEN.fullmatch(token):
        raise StudioError("model.token_malformed")


def look(repository: str, token: str | None) -> Place:
    """Return what a repository is now.

    Raises:
        StudioError: If name or token cannot be one, or the Hub cannot be reached or refuses.
    """
    require_name(repository)
    require_form(token)
    with _translated(repository):
        try:
            info = HfApi(token=token or False).model_info(repository)
        except hub_errors.GatedRepoError:
            return Place(exists=True, holds_files=True)
        except hub_errors.RepositoryNotFoundError:
            return Place(exists=False if token else None)
    return Place(exists=True, is_private=bool(info.private), holds_files=_holds_files(info))


def _holds_files(info: ModelInfo) -> bool:
    return any(sibling.rfilename != HUBS_OWN for sibling in info.siblings or ())


def is_everybodys(dataset: str) -> bool:
    """Say whether the Hub shows a dataset to who comes without a token."""
    try:
        return not HfApi(token=False).dataset_info(dataset).private
    except (httpx2.HTTPError, ValueError, OSError):
        return False


def send(
    parcels: Sequence[Parcel],
    repository: str,
    place: Place,
    *,
    token: str,
    private: bool,
    message: str,
    progress: Progress,
) -> str:
    """Send files and return the address of the repository.

    Args:
        parcels: The files.
        repository: `owner/name`.
        place: What it is now; if it is not there, it is made.
        token: With the right to write there.
        private: Whether a new repository is seen by its owner only.
        message: Of the commit.
        progress: Told `upload` in bytes before each large file; what it raises ends the work.

    Raises:
        StudioError: If the token's rights are not enough, or the Hub cannot be reached or refuses
            the files.
    """
    api = HfApi(token=token)
    address = f"{api.endpoint}/{repository}"
    with _translated(repository), _without_bars():
        if not place.exists:
            api.create_repo(repository, private=private)
        try:
            operations = _uploaded(api, parcels, repository, progress)
        except BaseException:
            _take_back(api, repository, place)
            raise
        try:
            _commit(api, repository, operations, message)
        except Exception as error:
            if _may_have_arrived(error):
                values = {"repository": repository, "address": address}
                raise StudioError("shipping.unsure", **values) from error
            _take_back(api, repository, place)
            raise
    return address


def _uploaded(
    api: HfApi, parcels: Sequence[Parcel], repository: str, progress: Progress
) -> list[CommitOperationAdd]:
    """Upload what is large, one file after the other; return what is then to be committed."""
    total, done = sum(parcel.bytes for parcel in parcels), 0
    operations = []
    for parcel in parcels:
        progress("upload", done, total)
        operation = CommitOperationAdd(parcel.name, parcel.file)
        api.preupload_lfs_files(repository, [operation], free_memory=False)
        operations.append(operation)
        done += parcel.bytes
    progress("upload", total, total)
    return operations


def _commit(
    api: HfApi, repository: str, operations: list[CommitOperationAdd], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warnings while validating metadata", UserWarning)
        api.create_commit(repository, operations, commit_message=message)


def _may_have_arrived(error: Exception) -> bool:
    """Say whether a commit that ended so may be on the Hub: without an answer, or a clear one."""
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response is None or error.response.status_code >= 500
    return isinstance(error, httpx2.HTTPError)


def _take_back(api: HfApi, repository: str, place: Place) -> None:
    """Delete a repository that was made just now, unless there is something in it."""
    if not place.exists:
        with suppress(httpx2.HTTPError, hub_errors.HfHubHTTPError):
            if not _holds_files(api.model_info(repository)):
                api.delete_repo(repository)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the Hub's library from drawing its own progress."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


@contextmanager
def _translated(repository: str) -> Iterator[None]:
    """Turn what the Hub and the network say inside the block into sentences."""
    try:
        yield
    except (httpx2.HTTPError, ValueError, RuntimeError, OSError) as error:
        raise _sentence(error, repository) from error


def _sentence(error: BaseException, repository: str) -> StudioError:
    """Return the sentence for an exception of the Hub's library, the network or the disk."""
    cause = error.__cause__
    if isinstance(error, RuntimeError) and cause is not None:  # an upload that failed
        return _sentence(cause, repository)
    if isinstance(error, hub_errors.HfHubHTTPError):
        return _refused(error, repository)
    if isinstance(error, (httpx2.HTTPError, hub_errors.OfflineModeIsEnabled, ConnectionError)):
        return StudioError("shipping.no_network", repository=repository)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return StudioError("shipping.files_refused", repository=repository, reason=lines[-1][:200])


def _refused(error: Any, repository: str) -> StudioError:
    """Return the sentence for a status; the Hub's own text may hold what was sent to it."""
    status = error.response.status_code
    match status:
        case 401:
            return StudioError("shipping.token_refused", repository=repository)
        case 402 | 403 | 404:
            return StudioError("shipping.no_rights", repository=repository)
        case 409:
            return StudioError("shipping.repository_exists", repository=repository)
    return StudioError("shipping.hub_trouble", repository=repository, status=status)
