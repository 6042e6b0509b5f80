"""Data that stays on the disk: the same examples, tokens and steps as in memory, and no more of them than a buffer."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer

import src.datamodules.streaming
from src.datamodules import (
    ChatbotDataModule,
    ConversationDataModule,
    DialogSumDataModule,
    PreferenceDataModule,
)
from src.datamodules.base import TextDataModule
from src.datamodules.streaming import StreamedDataset
from src.errors import ParleyError

Bases = Callable[[str], str]
Tokens = dict[str, Any]


def set_up(data: TextDataModule) -> TextDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def tokens(data: TextDataModule) -> list[Tokens]:
    """Every example of the training split, in the source's order."""
    dataset = data.train_dataloader().dataset
    return [{**dataset[number], "index": 0} for number in range(len(dataset))]


def by_id(rows: list[Tokens]) -> list[Tokens]:
    return sorted(rows, key=lambda row: (row["id"], row["target_ids"]))


def talk(number: int) -> list[dict[str, str]]:
    turns = [("user", f"Ann: line {number}?"), ("assistant", f"Ben speaks {number}.")] * (1 + number % 3)
    return [{"role": role, "content": f"{words} {place}"} for place, (role, words) in enumerate(turns)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(params=["summaries", "talks", "talks of an encoder-decoder", "answers", "pairs"])
def make(request: pytest.FixtureRequest, base: Bases, tmp_path: Path, rows: Any) -> Callable[..., TextDataModule]:
    """A DataModule over rows of its own kind, some with several examples in a row, some with none."""
    kind, file = request.param, tmp_path / "rows.jsonl"
    settings: dict[str, Any] = {
        "validation_split": "train[:3]",
        "cache_dir": str(tmp_path / "cache"),
        "path": str(file),
    }
    if kind == "summaries":
        several = {4: {"summary1": "One.", "summary2": "Two.", "summary10": "Ten."}, 9: {"summary": ""}}
        write(file, [{**row, **several.get(number, {})} for number, row in enumerate(rows(30))])
        return lambda **more: DialogSumDataModule(base("t5"), **settings, **more)
    if kind.startswith("talks"):
        talks = [talk(number) for number in range(20)]
        write(file, [{"messages": messages if number != 5 else messages[:1]} for number, messages in enumerate(talks)])
        architecture = "t5" if kind.endswith("encoder-decoder") else "gpt2"
        settings |= {"max_source_length": 500}
        return lambda **more: ConversationDataModule(base(architecture), **settings, **more)
    if kind == "answers":
        write(file, [{"Q": f"Ann {number % 13}?", "A": f"Ben {number}.", "label": number % 2} for number in range(30)])
        settings |= {"validation_split": "validation", "validation_fraction": 0.3}
        return lambda **more: ChatbotDataModule(base("gpt2"), **settings, **more)
    write(file, [{"prompt": f"Ann {n}?", "chosen": f"Ben {n}.", "rejected": f"Cho {n % 4}."} for n in range(20)])
    return lambda **more: PreferenceDataModule(base("gpt2"), **settings, **more)


def test_every_kind_of_row_is_encoded_as_in_memory(make):
    streamed, in_memory = set_up(make(streaming=True)), set_up(make())
    ours, theirs = tokens(streamed), tokens(in_memory)
    assert len(ours) >= 15
    assert sorted(map(str, ours)) == sorted(map(str, theirs))
    assert streamed.datasets["validation"].rows.to_list() == in_memory.datasets["validation"].rows.to_list()


FILTERS = [
    {},
    {"train_split": "train[:7]"},
    {"train_split": "train[7:]"},
    {"train_split": "train[25%:75%]"},
    {"train_split": "train[50%:+4]"},
    {"min_chars": 60},
    {"max_chars": 100, "every_nth": 3},
    {"min_chars": 40, "max_chars": 120, "train_split": "train[3:]"},
]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_filters_and_slices_mean_the_same(settings, rows, jsonl, module, tmp_path):
    """Also where a question has its answers far apart: a slice counts questions and takes all of their answers."""
    some = rows(40)
    again = [{**row, "fname": f"again{row['fname']}", "summary": "Another."} for row in some[::4]]
    path = jsonl(tmp_path / "train.jsonl", [*some, *again])
    streamed, in_memory = (set_up(module(path, **settings, streaming=streaming)) for streaming in (True, False))
    ours, theirs = tokens(streamed), tokens(in_memory)
    assert by_id(ours) == by_id(theirs)
    places = {row["fname"]: place for place, row in enumerate([*some, *again])}
    assert [row["id"] for row in ours] == sorted((row["id"] for row in theirs), key=places.get)


@pytest.mark.parametrize("grouped", [False, True])
def test_steps_are_those_of_data_in_memory_where_the_buffer_holds_all(grouped, rows, jsonl, module, tmp_path):
    """Grouped by characters, they are those of a dataset whose tokens are characters: of equally long rows, any."""
    some = [{**row, "dialogue": f"Ann: {number:04d}"} if grouped else row for number, row in enumerate(rows(50))]
    path = jsonl(tmp_path / "train.jsonl", some)
    settings = {"group_by_length": grouped, "batch_size": 4, "max_source_length": 4 if grouped else 512}
    streamed, in_memory = (set_up(module(path, **settings, streaming=streaming)) for streaming in (True, False))
    for ours, theirs in zip(streamed.train_dataloader(), in_memory.train_dataloader(), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]) if torch.is_tensor(value) else value == theirs[name]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_workers_prepare_the_same_batches_and_a_loader_goes_on_where_another_stood(
    suffix, rows, jsonl, module, tmp_path
):
    path = jsonl(tmp_path / "train.jsonl", rows(90))
    if suffix == ".parquet":
        path = tmp_path / "train.parquet"
        pq.write_table(pa.Table.from_pylist(rows(90)), path, row_group_size=11)
    options = {"streaming": True, "shuffle_buffer": 24, "batch_size": 4, "validation_split": "train[:2]"}

    def loader(workers: int = 0) -> Any:
        return set_up(module(path, num_workers=workers, **options)).train_dataloader()

    whole = [batch["id"] for batch in loader()]
    assert sorted(id for batch in whole for id in batch) == sorted(row["fname"] for row in rows(90))
    assert [batch["id"] for batch in loader(workers=2)] == whole
    for workers, handed in ((0, 9), (2, 9), (0, len(whole))):
        first = loader(workers)
        iterator = iter(first)
        assert [next(iterator)["id"] for _ in range(handed)] == whole[:handed]
        again = loader(workers)
        again.load_state_dict(first.state_dict())
        assert [batch["id"] for batch in again] == whole[handed:]
        del iterator


def test_no_more_than_a_buffer_is_read_at_a_time_and_each_row_once_an_epoch(rows, jsonl, module, tmp_path, monkeypatch):
    made = set_up(module(jsonl(tmp_path / "train.jsonl", rows(200)), streaming=True, shuffle_buffer=40, batch_size=5))
    loader, read = made.train_dataloader(), []
    examples = src.datamodules.streaming.StreamedRows.examples

    def count(self: Any, start: int, stop: int) -> list[Any]:
        read.extend(range(start, stop))
        return examples(self, start, stop)

    monkeypatch.setattr(src.datamodules.streaming.StreamedRows, "examples", count)
    for _ in loader:
        assert sum(map(len, loader.dataset._buffer.values())) <= 40
    assert sorted(read) == list(range(200))


def test_rows_are_counted_once_and_anew_for_whatever_changes_them(rows, jsonl, module, tmp_path, monkeypatch):
    path = jsonl(tmp_path / "train.jsonl", rows(30))
    scans: list[str] = []
    scan = src.datamodules.streaming.StreamedRows._scan

    def count(self: Any, notes: Any) -> Iterator[Any]:
        scans.append(self.part)
        return scan(self, notes)

    monkeypatch.setattr(src.datamodules.streaming.StreamedRows, "_scan", count)

    def times(**settings: Any) -> int:
        scans.clear()
        set_up(module(path, **{"validation_split": "train[:3]", "streaming": True, **settings}))
        return scans.count("train")

    assert times() == 1
    assert times() == 0
    assert (
        times(batch_size=2, num_workers=1, shuffle_buffer=7, max_source_length=100, validation_split="train[:5]") == 0
    )
    for settings in (
        {"every_nth": 2},
        {"min_chars": 40},
        {"template": "{dialogue}"},
        {"train_split": "train[2:]"},
        {"architecture": "gpt2"},
    ):
        assert times(**settings) == 1, settings
        assert times(**settings) == 0, settings
    jsonl(path, rows(31))
    assert times() == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changes_while_it_is_read_is_noticed(workers, rows, jsonl, module, tmp_path):
    path = jsonl(tmp_path / "train.jsonl", rows(60))
    made = set_up(module(path, streaming=True, shuffle_buffer=8, batch_size=2, num_workers=workers))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.replace("Ann", "Eve") for line in lines) + "\n", encoding="utf-8")
    with pytest.raises(ParleyError) as refused:
        list(made.train_dataloader())
    assert str(refused.value).startswith(
        f"{path} is no longer what it was when its rows were counted; leave it as it is"
    )
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_log_says_what_is_known_before_training(base, rows, jsonl, module, tmp_path, caplog):
    some = [*rows(30), {"fname": "none", "dialogue": "", "summary": "Nothing."}]
    path = jsonl(tmp_path / "train.jsonl", some)
    options = {"streaming": True, "train_split": "train[2:]", "validation_split": "train[:6]", "max_source_length": 30}
    for _ in range(2):  # the second time what was counted before is told
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="src.datamodules"):
            set_up(module(path, **options))
        said = "\n".join(caplog.messages)
        assert "train: 28 examples, read as they are wanted." in said
        assert f"{path}: dropped 1 of 31 rows with an empty cell (first: none)." in said
        assert "train, a sample of it: 28 examples, " in said
        assert "prompts truncated to 30 tokens" in said
        assert "4 of 6 questions of validation are in train too;" in said


def test_what_streaming_cannot_do_is_refused_in_one_line(base, rows, jsonl, module, tmp_path):
    path = jsonl(tmp_path / "train.jsonl", rows(12))
    for settings, reason in (
        ({"max_tokens_per_batch": 900}, "max_tokens_per_batch wants the length of every example"),
        ({"packing": True, "architecture": "gpt2"}, "packing wants the length of every example"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"architecture": "bart", "max_source_length": 1_500}, "may have up to 1500 tokens, but .*1024 positions"),
        ({"architecture": "gpt2", "max_source_length": 1_000}, "may have up to 1128 tokens, but .*1024 positions"),
        ({"min_chars": 10_000}, "the train split of .* is empty after every_nth, min_chars"),
        ({"train_split": "train[90:]"}, "is empty after"),
    ):
        with pytest.raises(ParleyError, match=reason) as refused:
            set_up(module(path, streaming=True, **settings))
        assert "\n" not in str(refused.value)
    with pytest.raises(ParleyError, match="every_nth counts ChatbotData's answers"):
        ChatbotDataModule(base("gpt2"), str(path), streaming=True, every_nth=2)
    with pytest.raises(ParleyError, match="has an empty cell"):
        set_up(module(jsonl(path, [*rows(3), {"dialogue": "", "summary": "x"}]), streaming=True, strict=True))


def test_processes_that_prepare_batches_may_be_started_anew(make):
    data = set_up(make(streaming=True))
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    dataset = data.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))
    assert isinstance(again, StreamedDataset)
    assert again.rows.data.trainer is None
    assert [again[number] for number in (3, -1, 7)] == [dataset[number] for number in (3, -1, 7)]
