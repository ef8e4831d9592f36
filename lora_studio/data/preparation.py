"""The whole way: files into encoded rows to learn from and to measure on, and a report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.data import classes, templates
from lora_studio.data.beginnings import shared_tokens
from lora_studio.data.cache import Cache
from lora_studio.data.checking.findings import Finding, Findings, stop_at
from lora_studio.data.encoding import pieces
from lora_studio.data.examples import Skipped
from lora_studio.data.filling import Filling
from lora_studio.data.layout import Layout, Leftovers, lay_out
from lora_studio.data.prepared import Prepared, Rows
from lora_studio.data.preview import first_different
from lora_studio.data.reading import hub
from lora_studio.data.reading.sources import fingerprint
from lora_studio.data.report import Report, numbers
from lora_studio.data.store import Store
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec, choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 3
"""Counted up when the same data and settings give other rows than before."""
LEAST_ROWS = 2
COMPARED_ROWS = 64
"""So many rows are looked at for what all of them begin with."""
SHOWN_ROWS = 5
PROMPTS_FROM = 50
"""Rows of each part that are looked through for different questions."""
# Settings that change which rows are used and where they are cut, not what they are.
LAYOUT_SETTINGS = ("files", "max_length", "truncation", "chunk_overlap")
LAYOUT_CHECKS = ("lost_ends", "leaks", "rare_labels", "label_conflicts")
LIKE_STOP = ("keep", "fix", "skip")
"""The first of these that a check knows leaves the rows as its stop does."""

Progress = Callable[[int, int], None]


def prepare(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    on_progress: Progress | None = None,
    *,
    cache: Path | None = None,
    token: str | None = None,
) -> Prepared:
    """Read, understand, check, encode, hold out and cut the data of a recipe.

    The tokenizer is given a chat template and an id to pad with where it lacks them. Rows are
    encoded only where the cache does not have them from before.

    Args:
        spec: The recipe's data section.
        tokenizer: The base model's.
        seed: Chooses what is held out.
        on_progress: Called with the number of rows encoded so far and about how many there will
            be (0 while unknown), at last with how many there are.
        cache: Where encoded rows are kept; None for a temporary folder.
        token: For a gated dataset of the Hub.

    Raises:
        DatasetError: If files cannot be read or understood, a check says stop, or fewer than two
            rows can be used.
        ModelError: If the tokenizer has no end token.
    """
    templates.ensure_end_token(tokenizer)
    paths = [Path(file) for file in spec.files]
    if not spec.has_source:
        raise DatasetError("data.no_files")
    read = fingerprint(paths) if paths else ""
    if spec.hub.repo_id:
        read = hashlib.sha256((read + hub.fingerprint(spec.hub, token)).encode()).hexdigest()
    filling = Filling(spec, tokenizer, on_progress or (lambda _done, _total: None), token=token)
    if cache is None:
        store = _temporary(filling)
    else:
        store = Store(Cache(cache).get(_depends_on(spec, tokenizer, read), filling.fill))
    before = _found_before(store, spec)
    stop_at(before)
    chats = store.meta["has_chats"]
    if chats:
        templates.ensure_chat_template(tokenizer, spec.chat_template)
    prefix = [tokenizer.bos_token_id] if templates.adds_beginning(tokenizer) else []
    findings = Findings(spec.checks)
    layout = _laid_out(store, spec, tokenizer, seed=seed, beginning=len(prefix), findings=findings)
    stop_at(findings.listed())
    _refuse_too_few(layout, store)
    parts = (layout.train, layout.evaluation)
    train, held = (Rows(store, part, prefix, layout.classes) for part in parts)
    ends = templates.end_ids(tokenizer) if chats else frozenset({tokenizer.eos_token_id})
    samples = [train.sample(at, tokenizer, ends) for at in range(min(SHOWN_ROWS, len(train)))]
    report = Report(
        **store.meta["understood"],
        **numbers(store, layout, beginning=len(prefix)),
        fingerprint=read,
        findings=(*before, *findings.listed()),
        max_length=spec.max_length,
        own_template=(chats and templates.name_of(tokenizer)) or "",
        samples=tuple(samples),
        prompts=_prompts(store, layout),
        shared_tokens=_shared_tokens(train),
    )
    return Prepared(train, held, report, layout, tokenizer, ends)


def _shared_tokens(rows: Rows) -> int:
    """Return how many tokens rows taken evenly from all begin with, one row alone with none."""
    count = min(len(rows), COMPARED_ROWS)
    some = [rows[at * len(rows) // count].input_ids for at in range(count)]
    return shared_tokens(some) if count > 1 else 0


def _temporary(filling: Filling) -> Store:
    """Fill a store that is gone from the disk when nobody holds it any more."""
    folder = Path(tempfile.mkdtemp(prefix="lora-studio-"))
    try:
        filling.fill(folder)
        store = Store(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _depends_on(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, read: str) -> dict[str, Any]:
    """Return all that encoded rows follow from.

    Where a check says stop, rows are encoded all the same before that is known: they are there
    for the next try, with another choice.
    """
    settings = asdict(spec)
    for name in LAYOUT_SETTINGS:
        del settings[name]
    for name in LAYOUT_CHECKS:
        del settings["checks"][name]
    for name, choice in settings["checks"].items():
        if choice == "stop" and name != "broken_rows":  # which ends the reading
            settings["checks"][name] = next(like for like in LIKE_STOP if like in choices(name))
    names = [Path(file).name for file in spec.files]
    return {
        "version": VERSION,
        "data": read,
        "names": names,
        "tokenizer": _tokenizer_hash(tokenizer),
        "settings": settings,
    }


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    parts = (whole, str(tokenizer.chat_template), repr(tokenizer.special_tokens_map))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _found_before(store: Store, spec: DataSpec) -> list[Finding]:
    """Return what the checks found while the rows were read, with what to do about it now."""
    return [
        Finding(
            **entry
            | {
                "rows": tuple((file, number) for file, number in entry["rows"]),
                "choice": getattr(spec.checks, entry["check"]),
            }
        )
        for entry in store.meta["findings"]
    ]


def _left_before(store: Store) -> Leftovers:
    """Return the rows that were left out while they were read."""
    listed = [Skipped(**entry) for entry in store.meta["listed"]]
    return Leftovers(Counter(store.meta["skipped"]), listed)


def _laid_out(
    store: Store,
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    beginning: int,
    findings: Findings,
) -> Layout:
    left = _left_before(store)
    if store.meta["labels"]:
        return classes.lay_out(store, spec, seed=seed, findings=findings, leftovers=left)
    return lay_out(
        store,
        spec,
        seed=seed,
        beginning=beginning,
        piece=pieces(tokenizer),
        findings=findings,
        leftovers=left,
    )


def _refuse_too_few(layout: Layout, store: Store) -> None:
    """Refuse data that leaves nothing to learn from.

    Raises:
        DatasetError: Naming how many rows can be used.
    """
    usable = len(layout.train) + len(layout.evaluation)
    if usable >= LEAST_ROWS:
        return
    named = ", ".join(f"{row.file}:{row.number}" for row in layout.leftovers.listed[:LEAST_ROWS])
    raise DatasetError(
        "data.too_few_rows",
        usable=usable,
        rows=store.meta["understood"]["records"],
        skipped=layout.leftovers.counts.total(),
        named=named or "–",
    )


def _prompts(store: Store, layout: Layout) -> tuple[str, ...]:
    """Return what to try out, held-out rows first.

    A conversation's question comes before a text's beginning; classified texts are of different
    classes.
    """
    if layout.classes.names:
        rows = classes.firsts(store, layout)
    else:
        rows = [*layout.evaluation.row[:PROMPTS_FROM], *layout.train.row[:PROMPTS_FROM]]
        rows.sort(key=lambda row: bool(store.index.is_text[row]))
    return first_different(store.question(row) for row in rows)
