"""A slice of a dataset on the Hugging Face Hub: streamed, so that a slice costs a slice.

Only data is read; a dataset that brings a loading script is refused by the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_studio.data.examples import Record
from lora_studio.data.reading import class_names
from lora_studio.data.reading.rows import Position
from lora_studio.errors import DatasetError
from lora_studio.recipe import HubSpec

ANSWER_WITHIN_S = 5.0
ROW_BYTES = 1000
"""What a row is taken to weigh beside files, before it is seen."""
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class HubSource:
    """The chosen rows of one split, as `reading.sources.Source` has those of a file."""

    spec: HubSpec
    token: str | None = None
    """Sent to the Hub, kept nowhere."""
    kind: str = "hub"
    encoding: None = None
    position: Position = field(default_factory=Position, repr=False, compare=False)
    """How far it was read, in rows."""

    @property
    def size(self) -> int:
        """About how many bytes it is; 0 where all rows that follow are chosen."""
        return (self.spec.rows or 0) * ROW_BYTES

    @property
    def name(self) -> str:
        """The dataset as a person knows it."""
        return f"{self.spec.repo_id}/{self.spec.split}"

    def records(self) -> Iterator[Record]:
        """Yield the rows; their numbers count from 1 at the start of the split.

        Raises:
            DatasetError: If the Hub or the dataset does not give them.
        """
        import datasets

        spec = self.spec
        _check_name(spec.repo_id)
        try:
            rows = datasets.load_dataset(
                spec.repo_id,
                spec.config or None,
                split=spec.split,
                streaming=True,
                token=self.token or False,
            )
            if spec.columns:
                rows = rows.select_columns(list(spec.columns))
            names = class_names.of_features(rows.features.to_dict() if rows.features else {})
            rows = rows.skip(spec.start)
            if spec.rows is not None:
                rows = rows.take(spec.rows)
            number = spec.start
            self.position.begin(spec.rows or 0)
            for number, row in enumerate(rows, start=spec.start + 1):
                self.position.done = number - spec.start
                yield Record(self.name, number, class_names.named(dict(row), names))
        except Exception as error:
            raise _translated(error, spec) from error
        if number == spec.start:
            raise DatasetError("data.hub_no_rows", source=spec.repo_id, start=spec.start)
        self.position.end()


def fingerprint(spec: HubSpec, token: str | None) -> str:
    """Return what the rows of a slice follow from: the dataset's revision and the slice.

    Raises:
        DatasetError: If the Hub does not answer, or has no such dataset for this token.
    """
    _check_name(spec.repo_id)
    return json.dumps([asdict(spec), _revision(spec, token)])


def _check_name(repo_id: str) -> None:
    if not REPOSITORY.fullmatch(repo_id):
        raise DatasetError("data.hub_bad_name", source=repo_id)


def _revision(spec: HubSpec, token: str | None) -> str | None:
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(
            spec.repo_id, timeout=ANSWER_WITHIN_S, token=token or False
        )
    except Exception as error:
        raise _translated(error, spec) from error
    return info.sha


def _translated(error: Exception, spec: HubSpec) -> DatasetError:
    """Return the sentence for whatever the libraries raise; a token never gets into it."""
    import httpx2
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors as hub_errors

    values: dict[str, Any] = {"source": spec.repo_id}
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    match error:
        case DatasetError():
            return error
        case hub_errors.GatedRepoError():
            return DatasetError("data.hub_gated", **values)
        case hub_errors.RepositoryNotFoundError() | DatasetNotFoundError():
            return DatasetError("data.hub_not_found", **values)
        case RuntimeError() if "script" in said.lower():
            return DatasetError("data.hub_script", **values)
        case ValueError():  # a configuration, split or column that is not there; it names those
            return DatasetError("data.hub_no_part", **values, reason=said)
        case httpx2.HTTPError() | ConnectionError() | hub_errors.OfflineModeIsEnabled():
            return DatasetError("data.hub_unreachable", **values)
    return DatasetError("data.hub_failed", **values, reason=f"{type(error).__name__}: {said}")
