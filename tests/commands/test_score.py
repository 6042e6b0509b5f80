"""`parley score` as a user runs it, beside `rouge_score` and figures computed by hand."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from src.cli import main
from src.inference.scoring import Scores, score_systems
from src.metrics.rouge_scorer import ROUGE_KEYS, ExampleScorer

ROWS = [
    {"human": "Tom, says he is\nrunning late.", "second": "Tom is late.", "base": "Tom runs", "peft": "He is late"},
    {"human": "Ann wants tea.", "second": "Ann asks for tea.", "base": "She wants coffee", "peft": "Ann asks tea"},
    {"human": "They meet at 3:30.", "second": "It is at 3:30.", "base": "A meeting", "peft": "They will meet"},
]  # fmt: skip
REPO = Path(__file__).resolve().parents[2]
COLUMNS = ["--reference-column", "human", "--prediction-column", "base", "--prediction-column", "peft"]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def peer_means(column: str, references: tuple[str, ...] = ("human",), rows: list[dict] = ROWS) -> dict[str, float]:
    scorer = RougeScorer(list(ROUGE_KEYS), use_stemmer=True)
    scored = [scorer.score(row[name], row[column]) for row in rows for name in references]
    return {key: sum(score[key].fmeasure for score in scored) / len(scored) for key in ROUGE_KEYS}


def scored(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["score", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_every_format_gives_rouge_scores_figures(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = scored(capsys, str(write(tmp_path / f"p{suffix}")), *COLUMNS)
    assert result["rows"] == 3
    for column in ("base", "peft"):
        assert result["scores"][column] == pytest.approx(peer_means(column))


def test_differences_are_in_points_of_each_later_column_over_each_earlier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "p.csv"))
    result = scored(capsys, path, *COLUMNS, "--prediction-column", "second")
    pairs = [(difference["system"], difference["over"]) for difference in result["differences"]]
    assert pairs == [("peft", "base"), ("second", "base"), ("second", "peft")]
    for difference in result["differences"]:
        new, old = peer_means(difference["system"]), peer_means(difference["over"])
        assert difference["points"] == pytest.approx({key: (new[key] - old[key]) * 100 for key in ROUGE_KEYS})
        assert difference["interval"] is None


def test_several_references_give_the_mean_and_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_column = scored(capsys, str(write(tmp_path / "p.csv")), *COLUMNS, "--reference-column", "second")
    means = by_column["scores"]["peft"]
    assert {key: means[key] for key in ROUGE_KEYS} == pytest.approx(peer_means("peft", ("human", "second")))
    assert all(means[f"{key}_best"] >= means[key] for key in ROUGE_KEYS)
    rows = [{**row, "human": [row["human"], row["second"]]} for row in ROWS]
    for suffix in (".jsonl", ".parquet"):
        by_list = scored(capsys, str(write(tmp_path / f"lists{suffix}", rows)), *COLUMNS)
        assert by_list["scores"] == by_column["scores"]
        assert by_list["references_per_row"] == {"fewest": 2, "most": 2}


def test_the_tables_a_person_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "p.csv"))
    assert main(["score", path, *COLUMNS, "--reference-column", "second"]) == 0
    out = capsys.readouterr().out
    assert "ROUGE of 3 rows, 2 references each, mean over references" in out
    assert "rouge1_best" in out
    points = (peer_means("peft")["rouge1"] - peer_means("base")["rouge1"]) * 100
    assert main(["score", path, *COLUMNS]) == 0
    out = capsys.readouterr().out
    assert "rouge1_best" not in out
    [line] = [line for line in out.splitlines() if "peft - base" in line]
    assert line.split()[3] == f"{points:+.2f}"
    assert main(["score", path, "--reference-column", "human", "--prediction-column", "base"]) == 0
    assert "Differences" not in capsys.readouterr().out


def test_stemmer_and_tokenizer_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"human": "톰은 커피를 마셨다 running", "base": "톰은 커피를 마셨다 runs"}]
    words = [str(write(tmp_path / "p.jsonl", rows)), "--reference-column", "human", "--prediction-column", "base"]

    def rouge1(*options: str) -> float:
        return scored(capsys, *words, *options)["scores"]["base"]["rouge1"]

    assert rouge1() == 1.0
    assert rouge1("--no-stemmer") == 0.0
    assert rouge1("--no-stemmer", "--tokenizer", "unicode") == pytest.approx(3 / 4)


def test_confidence_intervals_hold_the_difference_and_repeat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(write(tmp_path / "p.csv")), *COLUMNS, "--confidence"]
    result = scored(capsys, *words)
    assert scored(capsys, *words) == result
    [difference] = result["differences"]
    for key, (low, high) in difference["interval"].items():
        assert low <= difference["points"][key] <= high
    assert main(["score", *words]) == 0
    assert " [+" in capsys.readouterr().out


def test_bootstrap_is_paired_and_matches_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(size=(400, 1))
    # The second is the first and a little: paired, the spread of the first drops out.
    second = first + 0.05 + 0.01 * rng.standard_normal((400, 1))
    [difference] = Scores(("a", "b"), ("rouge1",), np.stack([first, second])).differences(resamples=2000)
    low, high = difference.interval["rouge1"]
    gaps = 100 * (second - first)
    error = 1.96 * gaps.std(ddof=1) / 20
    assert low == pytest.approx(gaps.mean() - error, abs=0.02)
    assert high == pytest.approx(gaps.mean() + error, abs=0.02)


def test_scores_keep_every_example() -> None:
    scores = score_systems({"a": ["x", "y"]}, [["x"], ["x", "y"]], ExampleScorer())
    assert scores.values[0, :, 0].tolist() == [1.0, 0.5]
    assert scores.values[0, :, scores.keys.index("rouge1_best")].tolist() == [1.0, 1.0]


BAD: dict[str, tuple[str, bytes | None, str]] = {
    "not there": ("p.csv", None, "there is no file .*p.csv; check the path"),
    "extension": ("p.txt", b"human,base,peft\n", "'.txt'; give one of .csv, .tsv, .jsonl, .parquet"),
    "empty file": ("p.csv", b"\n \n", "p.csv is empty"),
    "header only": ("p.csv", b"human,base,peft\n", "has no rows"),
    "column": ("p.csv", b"human,original,peft\na,b,c\n", "no column 'base'; there are: human, original, peft"),
    "too few fields": ("p.csv", b'human,base,peft\n"a\nb",c,d\n\na,b\n', "line 5 has 2 fields where the header has 3"),
    "unclosed quote": ("p.csv", b'human,base,peft\na,b,c\na,"b,c\n', "line 3: unexpected end of data"),
    "two alike": ("p.csv", b"human,human,base,peft\na,b,c,d\n", "two columns are named 'human'"),
    "not UTF-8": ("p.csv", b"human,base,peft\na,b,c\na,caf\xe9,c\n", "line 3 is not UTF-8"),
    "empty cell": ("p.csv", b"human,base,peft\na,b,c\na, ,c\n", "line 3: column 'base' is empty.*--allow-empty"),
    "empty reference": (
        "p.csv",
        b"human,base,peft\n,b,c\n",
        "line 2: column 'human' is empty; fill it or drop the row",
    ),
    "malformed": ("p.jsonl", b'{"human": "a", "base": "b", "peft": "c"}\n{"human": \n', "line 2 is not JSON"),
    "not an object": ("p.jsonl", b'["a"]\n', "line 1 is list, not a JSON object"),
    "lacking": ("p.jsonl", b'{"human": "a", "base": "b"}\n', "line 1: there is no column 'peft'"),
    "null": ("p.jsonl", b'{"human": null, "base": "b", "peft": "c"}', "line 1: column 'human' has no value"),
    "nan": ("p.jsonl", b'{"human": "a", "base": NaN, "peft": "c"}', "line 1: column 'base' has no value"),
    "number": ("p.jsonl", b'{"human": "a", "base": 5, "peft": "c"}', "column 'base' holds int '5', not text"),
    "no reference": ("p.jsonl", b'{"human": [], "base": "b", "peft": "c"}', "column 'human' is an empty list"),
    "not Parquet": ("p.parquet", b"PAR", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:

    name, content, expected = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["score", str(tmp_path / name), *COLUMNS]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert re.search(expected, line), line


def test_bad_use_is_one_clear_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "p.csv"))
    for words, expected in [
        ([str(tmp_path), *COLUMNS], "is a directory"),
        ([path, *COLUMNS[:2]], "--prediction-column"),
        ([path, *COLUMNS[2:]], "--reference-column"),
        ([path, *COLUMNS[:4], "--confidence"], "give a second --prediction-column"),
        ([path, *COLUMNS, "--tokenizer", "korean"], "unicode"),
    ]:
        assert main(["score", *words]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert expected in line


def test_an_empty_prediction_counts_zero_when_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.csv"
    path.write_text("human,base,peft\na,a,a\nb,,b\n")
    result = scored(capsys, str(path), *COLUMNS, "--allow-empty")
    assert result["scores"]["base"]["rouge1"] == pytest.approx(1 / 2)
    path.write_text("human,base,peft\na,a,a\n,b,b\n")
    assert main(["score", str(path), *COLUMNS, "--allow-empty"]) == 2


def test_texts_with_line_separators_stay_on_their_jsonl_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"human": "a\u2028b\x85c", "base": "a b c", "peft": "a"}]
    assert scored(capsys, str(write(tmp_path / "p.jsonl", rows)), *COLUMNS)["scores"]["base"]["rouge1"] == 1.0


def test_scoring_starts_without_torch() -> None:
    code = "import sys, src.inference.scoring, src.inference.predictions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
