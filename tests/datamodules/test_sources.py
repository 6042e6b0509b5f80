"""Every door that rows come in by, and what is said when one does not open."""

from __future__ import annotations

import csv
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from src.datamodules import sources
from src.datamodules.sources import Rows, read_split
from src.errors import ParleyError

MakeRows = Callable[..., list[dict[str, str]]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_single_file_is_every_split(suffix: str, rows: MakeRows, tmp_path: Path) -> None:
    path = write(tmp_path / f"mine{suffix}", rows(5))
    for split in ("train", "validation", "anything"):
        read = read_split(str(path), split)
        assert read.rows == rows(5)
        assert read.origin == str(path)
    assert read.places[1] == f"{path}, {'line 3' if suffix == '.csv' else 'line 2' if suffix == '.jsonl' else 'row 2'}"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("train.jsonl", "train"),
        ("training.csv", "train"),
        ("dialogsum.dev.jsonl", "validation"),
        ("val.csv", "validation"),
        ("validation.parquet", "dev"),
        ("valid.jsonl", "val"),
        ("my_TEST-v2.jsonl", "test"),
        ("holdout.csv", "holdout"),
        ("data/train-00000-of-00001.parquet", "train"),
    ],
)
def test_a_directorys_files_are_found_by_their_splits(name: str, asked: str, rows: MakeRows, tmp_path: Path) -> None:
    write(tmp_path / name, rows(3))
    write(tmp_path / "unrelated.jsonl", rows(1))
    (tmp_path / "README.md").write_text("validation train test")
    assert read_split(str(tmp_path), asked).rows == rows(3)


def test_shards_are_read_in_order(rows: MakeRows, tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path / f"data/train-0000{number}-of-00003.parquet", rows(9)[3 * number : 3 * number + 3])
    write(tmp_path / "data/test-00000-of-00001.parquet", rows(1))
    read = read_split(str(tmp_path), "train")
    assert read.rows == rows(9)
    assert read.places[4].endswith("train-00001-of-00003.parquet, row 2")
    assert "3 files" in read.origin


def test_one_file_is_chosen_among_several(rows: MakeRows, tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", rows(1))
    write(tmp_path / "dev.csv", rows(1))
    write(tmp_path / "validation.jsonl", rows(2))
    write(tmp_path / "data" / "dev.jsonl", rows(3))
    assert len(read_split(str(tmp_path), "dev").rows) == 1, "the name asked for, the directory itself, not twice"
    assert len(read_split(str(tmp_path), "validation").rows) == 2
    write(tmp_path / "train.csv", rows(4))
    write(tmp_path / "train_small.csv", rows(5))
    assert len(read_split(str(tmp_path), "train").rows) == 4, "the file that has the split's name and no more"
    (tmp_path / "train.csv").rename(tmp_path / "train_large.csv")
    with pytest.raises(ParleyError, match=r"several files for split 'train' \(train_large.csv, train_small.csv\)"):
        read_split(str(tmp_path), "train")


def test_directories_saved_by_datasets(rows: MakeRows, tmp_path: Path) -> None:
    Dataset.from_list(rows(4)).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(rows(5)), "val": Dataset.from_list(rows(6))}).save_to_disk(tmp_path / "all")
    assert read_split(str(tmp_path / "one"), "test").rows == rows(4)
    assert read_split(str(tmp_path / "all"), "train").rows == rows(5)
    assert read_split(str(tmp_path / "all"), "validation").rows == rows(6)
    with pytest.raises(ParleyError, match=r"all has no split 'test' \(it has train, val\)"):
        read_split(str(tmp_path / "all"), "test")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(ParleyError, match="one cannot be loaded by datasets"):
        read_split(str(tmp_path / "one"), "test")


def test_what_is_not_there_is_said(rows: MakeRows, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(1))
    for path, said in [
        (str(tmp_path / "none"), "there is no file or directory"),
        ("./owner/name", "there is no file or directory"),
        ("data/train.jsonl", "there is no file or directory"),
        (str(tmp_path), r"no file for split 'test' in .* \(found: train.jsonl\)"),
    ]:
        with pytest.raises(ParleyError, match=said):
            read_split(path, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParleyError, match="found: none of"):
        read_split(str(tmp_path / "empty"), "test")


def test_without_a_network_a_hub_name_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    sources.hub_is_reachable.cache_clear()
    start = time.monotonic()
    with pytest.raises(ParleyError, match="neither a directory here nor a dataset in the local cache") as error:
        read_split("knkarthick/dialogsum", "train")
    sources.hub_is_reachable.cache_clear()
    assert time.monotonic() - start < 10
    assert "\n" not in str(error.value)


def test_without_a_network_a_cached_dataset_is_read(
    monkeypatch: pytest.MonkeyPatch, rows: MakeRows, tmp_path: Path
) -> None:
    import datasets
    from datasets import config

    # As the cache keeps a dataset that was downloaded: OWNER___NAME/CONFIG/VERSION/HASH.
    directory = tmp_path / "owner___name" / "default" / "0.0.0" / ("a" * 40)
    directory.mkdir(parents=True)
    made = Dataset.from_list(rows(7))
    with datasets.arrow_writer.ArrowWriter(path=str(directory / "name-train.arrow"), features=made.features) as writer:
        for row in made:
            writer.write(row)
        writer.finalize()
    splits = datasets.SplitDict(dataset_name="name")
    splits.add(datasets.SplitInfo("train", num_bytes=1, num_examples=7, dataset_name="name"))
    datasets.DatasetInfo(
        features=made.features,
        builder_name="json",
        dataset_name="name",
        config_name="default",
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(directory))
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    offline = config.HF_HUB_OFFLINE
    assert read_split("owner/name", "train").rows == rows(7)
    assert offline == config.HF_HUB_OFFLINE
    with pytest.raises(ParleyError, match=r"owner/name has no split 'test' \(it has train\)"):
        read_split("owner/name", "test")


def test_what_the_hub_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError("Dataset is gated.\nAsk for access.")

    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ParleyError, match=r"'owner/name' cannot be had from the hub: Dataset is gated.$"):
        read_split("owner/name", "test")


def test_cells_are_text_or_empty() -> None:
    made = Rows(
        [{"a": "x", "b": 1}, {"a": None, "b": "y"}, {"a": float("nan"), "b": ["z"]}, {"b": "w"}], list("abcd"), "f"
    )
    assert [made.text(number, "a") for number in range(3)] == ["x", "", ""]
    for number, column, said in [
        (0, "b", "a: column 'b' holds int '1', not text"),
        (2, "b", "c: column 'b' holds list \"\\['z'\\]\", not text"),
        (3, "a", "d has no column 'a'; its columns are b"),
    ]:
        with pytest.raises(ParleyError, match=said):
            made.text(number, column)


def test_a_later_row_without_a_column_is_found() -> None:
    made = Rows([{"Q": "a", "A": "b"}, {"Q": "c"}], ["f, line 1", "f, line 2"], "f")
    assert made.text(0, "A") == "b"
    with pytest.raises(ParleyError, match="f, line 2 has no column 'A'; its columns are Q"):
        made.text(1, "A")
