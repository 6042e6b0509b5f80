"""Rows of every kind of file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.errors import ParleyError
from src.files import ROW_SUFFIXES, read_rows, read_text

ROWS = [
    {"Q": "12시 땡!", "A": '하루가, 또 "가네요".'},
    {"Q": "two\nlines\r\nand more", "A": " leading and trailing "},
    {"Q": "a\u2028b\x85c\x0b", "A": "tab\tand \\ backslash"},
]


def write(path: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    if path.suffix.lower() == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix.lower() in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding=encoding)
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [*ROW_SUFFIXES, ".CSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts_come_back_character_for_character(suffix: str, encoding: str, tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / f"rows{suffix}", ROWS, encoding)))
    assert [row.cells for row in rows] == ROWS
    first = {".csv": "line 2", ".tsv": "line 2", ".parquet": "row 1"}.get(suffix.lower(), "line 1")
    assert rows[0].place == first


def test_a_csv_row_is_placed_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('Q,A\n"a\nb\nc",d\n\ne,f\n')
    assert [row.place for row in read_rows(path)] == ["line 2", "line 6"]


def test_a_long_text_is_no_obstacle(tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path / "rows.csv", [{"Q": "x" * 300_000, "A": "y"}]))
    assert len(row.cells["Q"]) == 300_000


def test_types_of_json_and_parquet_are_kept(tmp_path: Path) -> None:
    cells = {"n": 1, "list": ["a", "b"], "none": None, "deep": {"x": 1.5}}
    for suffix in (".jsonl", ".parquet"):
        assert [row.cells for row in read_rows(write(tmp_path / f"rows{suffix}", [cells]))] == [cells]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv", ".jsonl"):
        (tmp_path / f"rows{suffix}").write_bytes(b"\xef\xbb\xbf\n")
        assert list(read_rows(tmp_path / f"rows{suffix}")) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "there is no file .*none.csv; check the path"),
        ("rows.xlsx", b"", "ends in '.xlsx'; give one of .csv, .tsv, .jsonl, .parquet, .json"),
        ("rows", b"", "ends in 'no extension'"),
        ("rows.csv", b"a,b\n1,2\n1,\xff\n", "rows.csv, line 3 is not UTF-8"),
        ("rows.jsonl", b'{"a": 1}\n\n{"a": \xe9}', "rows.jsonl, line 3 is not UTF-8"),
        ("rows.csv", b'a,b\n"1\n1",2\n1\n', "rows.csv, line 4 has 1 fields where the header has 2"),
        ("rows.csv", b'a,b\n1,2\n1,"2\n', "rows.csv, line 3: unexpected end of data; check the quotes"),
        ("rows.tsv", b"a\ta\n", "rows.tsv, line 1: two columns are named 'a'"),
        ("rows.jsonl", b'{"a": 1}\n{"a": 1,}\n', "rows.jsonl, line 2 is not JSON"),
        ("rows.jsonl", b'{"a": 1}\n3\n', "rows.jsonl, line 2 is int, not a JSON object"),
        ("rows.jsonl", b"[" * 100_000, "rows.jsonl, line 1 is not JSON"),
        ("rows.parquet", b"PAR1", "rows.parquet cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ParleyError, match=said) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParleyError, match="is a directory; give a file"):
        read_rows(tmp_path)
    with pytest.raises(ParleyError, match=r"cannot be read \(Is a directory"):
        read_text(tmp_path)


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    (tmp_path / "split=train").mkdir()
    [row] = read_rows(write(tmp_path / "split=train" / "rows.parquet", [{"a": "b"}]))
    assert row.cells == {"a": "b"}


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, src.files; sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_half_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00 \\u00e9"}\n{"b": [{"c": "x\\ud83d"}]}\n')
    rows = read_rows(file)
    assert next(rows).cells == {"a": "😀 é"}
    with pytest.raises(ParleyError, match=r"rows.jsonl, line 2 has half a character in it \(\\ud83d\)"):
        next(rows)
