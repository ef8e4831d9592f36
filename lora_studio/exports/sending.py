"""One repository of the Hugging Face Hub: what it is now, and files sent there in one commit.

What an earlier push of another kind left there goes with the same commit.

A repository that was made for files that then did not arrive is deleted again; one that was there
before never is, nor one that may have them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.adapters.lineage import NAME as LINEAGE
from lora_studio.errors import StudioError
from lora_studio.exports.card import CURVES
from lora_studio.exports.foreseen import INDEX
from lora_studio.exports.packing import Parcel
from lora_studio.models.hub import OnProgress
from lora_studio.models.sources import HUB_ID
from lora_studio.recipes.sharing import NAME as RECIPE

OURS = (CONFIG, WEIGHTS, LINEAGE, RECIPE, CURVES, INDEX, "model*.safetensors")
"""What a push may have left that stands in another's way: beside a configuration of PEFT, a merged
model is loaded as an adapter's base."""
HUBS_OWN = ".gitattributes"
"""What the Hub puts into a new repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A repository as it is before anything is sent."""

    exists: bool | None
    """None where the Hub does not say: without a token, one that is private looks like none."""
    is_private: bool = False
    files: frozenset[str] | None = frozenset()
    """The names of its files, None where the Hub does not tell them."""

    @property
    def holds_files(self) -> bool:
        """Whether it holds any; without one it is what an attempt left that lost the network."""
        return self.files is None or bool(self.files - {HUBS_OWN})

    def stale(self, coming: Iterable[str]) -> list[str]:
        """Return which of its files an earlier push left and this one does not write.

        Args:
            coming: Names of the files that are sent, or patterns of such.
        """
        there = [name for name in self.files or () if "/" not in name and _is_one_of(name, OURS)]
        names = list(coming)
        return sorted(name for name in there if not _is_one_of(name, names))


def require_name(repository: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        StudioError: With the name.
    """
    plain = HUB_ID.fullmatch(repository) is not None
    if not plain or "--" in repository or ".." in repository or repository.endswith(".git"):
        raise StudioError("shipping.bad_repository", repository=repository)


def look(repository: str, token: str | None) -> Place:
    """Return what a repository is now.

    Raises:
        StudioError: If the Hub cannot be reached or refuses.
    """
    with _translated(repository):
        try:
            info = HfApi(token=token or False).model_info(repository)
        except hub_errors.GatedRepoError:
            return Place(exists=True, files=None)
        except hub_errors.RepositoryNotFoundError:
            return Place(exists=False if token else None)
    return Place(exists=True, is_private=bool(info.private), files=_files(info))


def _files(info: ModelInfo) -> frozenset[str]:
    return frozenset(sibling.rfilename for sibling in info.siblings or ())


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


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
    progress: OnProgress,
) -> str:
    """Send files, delete what is stale, and return the address of the repository.

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
            stale = place.stale(parcel.name for parcel in parcels)
            gone = [CommitOperationDelete(name) for name in stale]
            _commit(api, repository, [*operations, *gone], message)
        except Exception as error:
            if _may_have_arrived(error):
                values = {"repository": repository, "address": address}
                raise StudioError("shipping.unsure", **values) from error
            _take_back(api, repository, place)
            raise
    return address


def _uploaded(
    api: HfApi, parcels: Sequence[Parcel], repository: str, progress: OnProgress
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
    api: HfApi,
    repository: str,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    message: str,
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
            if not _files(api.model_info(repository)) - {HUBS_OWN}:
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
