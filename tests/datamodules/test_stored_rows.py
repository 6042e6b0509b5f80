"""Rows on the disk: gone through and read from any place, they are those that are read into memory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.datamodules.sources import read_split
from src.datamodules.stored_rows import StoredRows, stored_rows
from src.errors import ParleyError

ODD = ("plain", "안녕하세요", "line\u2028separator", 'tab\tand \\ and "', "", "é" * 50)


def cells(number: int) -> dict[str, Any]:
    return {"id": f"row{number}", "text": ODD[number % len(ODD)] * (number % 5), "number": number}


def write_lines(file: Path, numbers: range, *, bom: bool = False, end: str = "\n") -> None:
    lines = [json.dumps(cells(number), ensure_ascii=number % 2 == 0) for number in numbers]
    text = end.join([*lines[:3], "", "   ", *lines[3:]])  # blank lines, and no line end at the end
    file.write_text(text, encoding="utf-8-sig" if bom else "utf-8", newline="")


def write_parquet(file: Path, numbers: range, group: int) -> None:
    pq.write_table(pa.Table.from_pylist([cells(number) for number in numbers]), file, row_group_size=group)


@pytest.fixture(params=["lines", "windows", "shards", "parquet", "one group", "parquet shards", "saved", "selected"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind = request.param
    if kind in ("lines", "windows"):
        write_lines(
            tmp_path / "train.jsonl", range(40), bom=kind == "windows", end="\r\n" if kind == "windows" else "\n"
        )
    elif kind == "shards":
        for shard in range(3):
            write_lines(tmp_path / f"train-0000{shard}-of-00003.jsonl", range(shard * 10, shard * 10 + 10), bom=True)
    elif kind in ("parquet", "one group"):
        write_parquet(tmp_path / "train.parquet", range(2_500), 7 if kind == "parquet" else 10_000)
    elif kind == "parquet shards":
        for shard in range(2):
            write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", range(shard * 30, shard * 30 + 30), 8)
    else:
        whole = datasets.Dataset.from_list([cells(number) for number in range(30)])
        whole = whole.select(range(29, 0, -3)) if kind == "selected" else whole
        datasets.DatasetDict(train=whole).save_to_disk(str(tmp_path / "saved"))
        return str(tmp_path / "saved")
    return str(tmp_path)


def test_rows_are_those_that_are_read_into_memory(source):
    rows, stored = read_split(source, "train"), stored_rows(source, "train")
    scanned = list(stored.scan())
    assert [row.cells for row in scanned] == rows.rows
    assert [row.name for row in scanned] == rows.places
    assert stored.origin == rows.origin
    places = [row.place for row in scanned]
    assert places == sorted(set(places))
    for share in (0.0, 0.1, 0.5, 1.0):
        chosen = [number for number in range(len(places)) if random.Random(number).random() < share]
        assert list(stored.read([places[number] for number in chosen])) == [rows.rows[number] for number in chosen]
    for first in range(0, len(places), max(1, len(places) // 5)):
        assert list(stored.read(places[first : first + 6])) == rows.rows[first : first + 6]


def test_the_key_changes_with_the_rows(source):
    before = stored_rows(source, "train").key()
    assert json.dumps(stored_rows(source, "train").key()) == json.dumps(before)
    file = next(file for file in sorted(Path(source).rglob("*")) if file.suffix in (".jsonl", ".parquet", ".arrow"))
    file.touch()
    assert stored_rows(source, "train").key() != before


def refusal(stored: StoredRows) -> str:
    with pytest.raises(ParleyError) as refused:
        list(stored.scan())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    assert refusal(stored_rows(str(file), "train")).startswith(f"{file}, line 2 is not JSON")
    file.write_text('{"a": 1}\n\n[1]\n', encoding="utf-8")
    assert "line 3 is list, not a JSON object" in refusal(stored_rows(str(file), "train"))
    file.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    assert "line 2 is not UTF-8" in refusal(stored_rows(str(file), "train"))
    file.write_text('{"a": "\\ud83d"}\n', encoding="utf-8")
    assert "line 1 has half a character" in refusal(stored_rows(str(file), "train"))
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1 nothing")
    assert "cannot be read as Parquet" in refusal(stored_rows(str(table), "train"))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ParleyError, match=r"streaming reads JSON lines .* write it as one of these"):
        stored_rows(str(tmp_path / "rows.csv"), "train")


@pytest.mark.parametrize("group", [2_000, 20_000], ids=["many groups", "one group"])
def test_parquet_that_was_read_does_not_stay_in_memory(group: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    texts = [f"{number} " + "x" * 2_000 for number in range(20_000)]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=group, compression="none")
    rows = stored_rows(str(file), "train")
    before, most, places = pa.total_allocated_bytes(), 0, []
    for row in rows.scan():
        places.append(row.place)
        most = max(most, pa.total_allocated_bytes())
    for _ in rows.read(places):
        most = max(most, pa.total_allocated_bytes())
    assert len(places) == len(texts)
    assert file.stat().st_size > 40e6
    assert most - before < 16e6
