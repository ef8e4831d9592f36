"""Datasets of the Hub, over folders of the same shape: the library reads both alike."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from lora_studio.data.reading import hub
from lora_studio.errors import DatasetError
from lora_studio.recipe import HubSpec

NAME = "owner/name"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of 100 rows under the name `owner/name`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    rows = [{"질문": f"q{at}", "답": f"a{at}", "id": at} for at in range(100)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


def key_of(**values: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        list(hub.HubSource(HubSpec(**{"repo_id": NAME} | values)).records())
    assert values.get("repo_id", NAME) in str(caught.value)
    return caught.value.key


def test_a_slice_has_the_chosen_rows_and_columns(dataset: Path) -> None:
    source = hub.HubSource(HubSpec(repo_id=NAME, columns=("질문", "답"), start=10, rows=2))
    records = list(source.records())
    assert [record.value for record in records] == [
        {"질문": "q10", "답": "a10"},
        {"질문": "q11", "답": "a11"},
    ]
    assert [(record.file, record.number) for record in records] == [
        ("owner/name/train", 11),
        ("owner/name/train", 12),
    ]


def test_classes_have_the_names_that_the_dataset_gives_them(dataset: Path) -> None:
    import datasets

    kinds = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kinds})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (dataset / "train.jsonl").unlink()
    rows.to_parquet(dataset / "train.parquet")
    records = list(hub.HubSource(HubSpec(repo_id=NAME)).records())
    assert [record.value for record in records] == [
        {"text": "a", "label": "pos"},
        {"text": "b", "label": "neg"},
    ]


def test_all_rows_after_the_start(dataset: Path) -> None:
    records = list(hub.HubSource(HubSpec(repo_id=NAME, start=97, rows=None)).records())
    assert [record.number for record in records] == [98, 99, 100]


def test_how_far_a_slice_was_read_is_counted_in_its_rows(dataset: Path) -> None:
    source = hub.HubSource(HubSpec(repo_id=NAME, start=5, rows=4))
    assert [source.position.share for _ in source.records()] == [0.25, 0.5, 0.75, 1]
    assert source.size
    assert not hub.HubSource(HubSpec(repo_id=NAME, rows=None)).size


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"split": "tset"}, "data.hub_no_part"),
        ({"config": "french"}, "data.hub_no_part"),
        ({"columns": ("frage",)}, "data.hub_no_part"),
        ({"start": 100}, "data.hub_no_rows"),
        ({"repo_id": "../etc"}, "data.hub_bad_name"),
        ({"repo_id": "https://example.org/x"}, "data.hub_bad_name"),
    ],
)
def test_what_is_not_there_is_named(dataset: Path, values: dict[str, Any], key: str) -> None:
    assert key_of(**values) == key


def test_a_loading_script_is_refused(dataset: Path) -> None:
    (dataset / "name.py").write_text("raise SystemExit('never run')\n")
    (dataset / "train.jsonl").unlink()
    assert key_of() == "data.hub_script"


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "http://localhost"))


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (hub_errors.RepositoryNotFoundError("none", response=answer(404)), "data.hub_not_found"),
        (hub_errors.GatedRepoError("ask", response=answer(403)), "data.hub_gated"),
        (hub_errors.OfflineModeIsEnabled("off"), "data.hub_unreachable"),
        (httpx2.ConnectError("no route"), "data.hub_unreachable"),
        (MemoryError(), "data.hub_failed"),
    ],
)
def test_what_the_hub_says_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, key: str
) -> None:
    def dataset_info(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(DatasetError) as caught:
        hub.fingerprint(HubSpec(repo_id=NAME), "hf_secret")
    assert caught.value.key == key
    assert "hf_secret" not in str(caught.value)


def test_another_revision_or_slice_is_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    shas = iter(["one", "one", "two", "two"])
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda *_args, **_values: SimpleNamespace(sha=next(shas)),
    )
    spec = HubSpec(repo_id=NAME)
    first, again, later = (hub.fingerprint(spec, None) for _ in range(3))
    assert first == again != later
    assert hub.fingerprint(HubSpec(repo_id=NAME, start=1), None) != later
