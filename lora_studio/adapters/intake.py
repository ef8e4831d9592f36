"""Adapters from elsewhere: a folder, a zip archive or a repository of the Hub, taken with care.

Only files of a known name are taken, and of weights only safetensors: a pickle can run code when
it is read. Nothing that a file says is used as a path. Torch is not imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from huggingface_hub import constants

from lora_studio.adapters import lineage
from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.data.reading import streams
from lora_studio.errors import AdapterError
from lora_studio.files import reason_of
from lora_studio.models import hub
from lora_studio.models.hub import OnProgress, silent
from lora_studio.models.sources import HUB_ID
from lora_studio.settings import Settings

TOKENIZER = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt",
    "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
CLASSES = "config.json"
"""Beside an adapter that sorts texts it names the classes."""
FILES = (CONFIG, WEIGHTS, *TOKENIZER, "README.md", "recipe.yaml", CLASSES, lineage.NAME)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LARGEST_BYTES = 4 * 2**30
"""Of the weights,"""
LARGEST_OTHER_BYTES = 64 * 2**20
"""and of any other file."""
SPARE_BYTES = 100_000_000
"""So much of the disk is left free."""
BLOCK_BYTES = 2**20

Kind = Literal["folder", "zip", "hub"]


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


Opener = Callable[[], _Readable]


def kind_of(what: str) -> Kind:
    """Return what a person means: an archive, a folder, or a repository of the Hub.

    Raises:
        AdapterError: If it is none of these.
    """
    try:
        path = Path(what).expanduser()
        if what and path.is_dir():
            return "folder"
        if path.is_file():
            return "zip"
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        pass
    if HUB_ID.fullmatch(what):
        return "hub"
    raise AdapterError("library.nothing_there", what=what[:200])


def gather(
    what: str,
    into: Path,
    settings: Settings,
    *,
    token: str | None = None,
    on_progress: OnProgress = silent,
) -> None:
    """Copy an adapter's files into a new folder.

    Args:
        what: A folder, a zip archive, or `owner/name`.
        into: The folder to make; what is left of it after an error is the caller's to remove.
        settings: Whether folders and the Hub may be asked.
        token: For a repository that is not everybody's.
        on_progress: Told `copy` in bytes, and `download`.

    Raises:
        AdapterError: If there is no adapter in it, or one that is not taken.
        DatasetError: If an archive is damaged, unsafe or too large.
        ModelError: If a repository cannot be fetched.
    """
    kind, name = kind_of(what), shown(what)
    with ExitStack() as until:
        if kind == "zip":
            found = _in_archive(Path(what).expanduser(), name, until)
        else:
            if kind == "folder":
                folder = Path(what).expanduser()
            else:
                folder = _fetched(what, settings, token, on_progress)
            found = _in_folder(folder, name)
        _copy(found, into, name, on_progress)


def _fetched(
    repository: str, settings: Settings, token: str | None, on_progress: OnProgress
) -> Path:
    """Return the folder of a repository of the Hub; what is too large is not fetched."""
    own = settings.token_for(token)
    if not settings.offline:
        sizes = hub.file_sizes(repository, token=own)
        _refuse_too_large({file: size for file, size in sizes.items() if file in FILES})
    return hub.fetch(
        repository, token=own, offline=settings.offline, names=FILES, on_progress=on_progress
    )


def shown(what: str) -> str:
    """Return what a source is called in a sentence: the name of a file or folder, a Hub id."""
    return what if HUB_ID.fullmatch(what) else Path(what).name or what


def _in_archive(path: Path, name: str, until: ExitStack) -> dict[str, tuple[int, Opener]]:
    """Return the files of the adapter in an archive: bytes as it states them, and what opens them.

    It may lie in folders; nearer to the top goes before deeper.
    """
    members = streams.members(path, file=name, until=until)
    tops = [PurePosixPath(entry).parent for entry, _, _ in members if _last(entry) == CONFIG]
    top = _only([str(one) for one in tops], name)
    inside = {
        _last(entry): (size, opener)
        for entry, size, opener in members
        if str(PurePosixPath(entry).parent) == top
    }
    return _known(inside, name)


def _in_folder(folder: Path, name: str) -> dict[str, tuple[int, Opener]]:
    """Return the same of a folder, or of the one folder in it that has an adapter."""
    try:
        tops = [str(file.parent) for file in (folder / CONFIG, *folder.glob(f"*/{CONFIG}"))
                if file.exists()]  # fmt: skip
        top = Path(_only(tops, name))
        if not top.resolve().is_relative_to(folder.resolve()):
            raise AdapterError("library.link", name=name, file=top.name)
        inside = {}
        for file in top.iterdir():
            _refuse_link(file, folder, name)
            if file.is_file():
                inside[file.name] = file.stat().st_size, _opener(file)
    except OSError as error:
        raise AdapterError("library.not_readable", name=name, reason=reason_of(error)) from error
    return _known(inside, name)


def _opener(file: Path) -> Opener:
    return lambda: file.open("rb")


def _only(tops: list[str], name: str) -> str:
    """Return the folder that is nearest to the top; two as near are one too many."""
    if not tops:
        raise AdapterError("library.no_adapter_in", name=name, missing=CONFIG)
    depth = min(len(PurePosixPath(top).parts) for top in tops)
    nearest = [top for top in tops if len(PurePosixPath(top).parts) == depth]
    if len(nearest) > 1:
        names = sorted(PurePosixPath(top).name for top in nearest)
        raise AdapterError("library.many_adapters", name=name, found=names[:10])
    return nearest[0]


def _known(inside: dict[str, tuple[int, Opener]], name: str) -> dict[str, tuple[int, Opener]]:
    """Return the files that are taken; refuse what has no weights or is too large."""
    if WEIGHTS not in inside:
        pickles = [file for file in inside if file.endswith(PICKLES)]
        if pickles:
            raise AdapterError("library.pickle", name=name, file=pickles[0])
        raise AdapterError("library.no_adapter_in", name=name, missing=WEIGHTS)
    found = {file: inside[file] for file in FILES if file in inside}
    _refuse_too_large({file: size for file, (size, _) in found.items()})
    return found


def _refuse_too_large(sizes: Mapping[str, int]) -> None:
    for file, size in sizes.items():
        if size > _limit(file):
            raise _too_large(file, size)


def _refuse_link(file: Path, folder: Path, name: str) -> None:
    """Refuse a link to anywhere but the folder itself and the Hub's cache, which is all links."""
    target = file.resolve()
    allowed = (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    if file.is_symlink() and file.name in FILES and not any(map(target.is_relative_to, allowed)):
        raise AdapterError("library.link", name=name, file=file.name)


def _copy(
    found: dict[str, tuple[int, Opener]], into: Path, name: str, on_progress: OnProgress
) -> None:
    total, done = sum(size for size, _ in found.values()), 0
    into.mkdir(parents=True)
    free = shutil.disk_usage(into).free
    if free < total + SPARE_BYTES:
        raise AdapterError("library.disk_full", name=name, needed=total / 1e6, free=free / 1e6)
    for file, (_, opener) in found.items():
        try:
            for size in _blocks(opener, into / file):
                done += size
                on_progress("copy", done, total)
        except OSError as error:
            raise AdapterError(
                "library.not_readable", name=name, reason=reason_of(error)
            ) from error


def _blocks(opener: Opener, target: Path) -> Iterator[int]:
    """Copy a file; yield the bytes of each block. An archive says less than it holds if it lies."""
    written, limit = 0, _limit(target.name)
    with closing(opener()) as source, target.open("xb") as out:
        while block := source.read(BLOCK_BYTES):
            written += out.write(block)
            if written > limit:
                raise _too_large(target.name, written)
            yield len(block)


def _limit(file: str) -> int:
    return LARGEST_BYTES if file == WEIGHTS else LARGEST_OTHER_BYTES


def _too_large(file: str, size: int) -> AdapterError:
    return AdapterError("library.too_large", file=file, size=size / 1e6, limit=_limit(file) / 1e6)


def _last(entry: str) -> str:
    return PurePosixPath(entry).name
