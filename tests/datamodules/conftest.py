"""Tiny bases, DialogSum's files where they are, and rows of our own in DialogSum's format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from src.datamodules import ConversationDataModule, DialogSumDataModule
from src.models.scratch import Sizes, make_base_model

MESSAGES = [
    {"role": "system", "content": "Ann is kind."},
    {"role": "user", "content": "Ann: line 1?"},
    {"role": "assistant", "content": "Ben: line 2."},
    {"role": "user", "content": "Cho: line 3  </s>"},
    {"role": "assistant", "content": "Dan speaks 4."},
    {"role": "user", "content": "Eve?"},
    {"role": "assistant", "content": "line of turn 5."},
]
SHORT = [{"role": "user", "content": "Ann?"}, {"role": "assistant", "content": "Ben."}]
NAMES = ("Ann", "Ben", "Cho", "Dan", "Eve")


def dialogue(number: int) -> str:
    """Of some 30 to 150 characters, each another."""
    turns = [f"{NAMES[(number + turn) % 5]}: line {number} of turn {turn}." for turn in range(1 + number % 6)]
    return "\n".join(turns)


def make_rows(count: int, name: str = "row") -> list[dict[str, str]]:
    return [
        {"fname": f"{name}_{number}", "dialogue": dialogue(number), "summary": f"{NAMES[number % 5]} speaks {number}."}
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """From an architecture to a directory with a tiny model of it."""
    root = tmp_path_factory.mktemp("bases")
    corpus = [text for row in make_rows(60) for text in (row["dialogue"], row["summary"])]

    def make(architecture: str) -> str:
        directory = root / architecture
        if not directory.is_dir():
            make_base_model(architecture, corpus, directory, Sizes(hidden_size=16, layers=1, heads=2, vocab_size=300))
        return str(directory)

    return make


@pytest.fixture(scope="session")
def dialogsum() -> Path:
    root = Path(os.environ.get("PARLEY_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "dialogsum"
    if not (root / "dialogsum.dev.jsonl").is_file():
        pytest.skip("DialogSum's own files are not under PARLEY_DATA")
    return root


@pytest.fixture
def rows() -> Callable[..., list[dict[str, str]]]:
    return make_rows


@pytest.fixture
def jsonl() -> Callable[[Path, list[dict[str, Any]]], Path]:
    return write_jsonl


@pytest.fixture
def module(base: Callable[[str], str], tmp_path: Path) -> Callable[..., DialogSumDataModule]:
    """A DataModule over a path, with its own cache."""

    def make(path: Path | str, architecture: str = "t5", **settings: Any) -> DialogSumDataModule:
        settings = {"cache_dir": str(tmp_path / "cache"), **settings}
        return DialogSumDataModule(base(architecture), path=str(path), **settings)

    return make


@pytest.fixture
def conversations(base: Callable[[str], str], tmp_path: Path, jsonl) -> Callable[..., ConversationDataModule]:
    """A DataModule over talks."""

    def make(talks: Sequence[Any] = (MESSAGES, SHORT), architecture: str = "gpt2", **settings: Any):
        rows = [talk if isinstance(talk, dict) else {"messages": talk} for talk in talks]
        path = jsonl(tmp_path / "talks.jsonl", rows)
        settings = {"cache_dir": str(tmp_path / "cache"), **settings}
        return ConversationDataModule(base(architecture), path=str(path), **settings)

    return make
