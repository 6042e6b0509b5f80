"""`parley compare` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.files import read_rows
from src.metrics.rouge_scorer import ROUGE_KEYS

SHORT = ["--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def models(tiny_base: Callable[..., Path]) -> list[str]:
    return [str(tiny_base("t5")), str(tiny_base("gpt2")), str(tiny_base("t5", seed=1))]


def test_answers_scores_and_differences_agree_with_generate_and_score(
    models: list[str], sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(sample), "--split", "test", "--limit", "6", *SHORT]
    file = tmp_path / "all.jsonl"
    assert main(["compare", *models, *data, "--output", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = ["t5-0", "gpt2-0", "t5-1"]
    for name, model in zip(names, models, strict=True):
        assert main(["generate", model, *data, "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert [row[name] for row in result["examples"]] == [row["prediction"] for row in alone]
    columns = [word for name in names for word in ("--prediction-column", name)]
    words = ["score", str(file), "--reference-column", "references", *columns, "--allow-empty", "--json"]
    assert main(words) == 0
    scored = json.loads(capsys.readouterr().out)
    assert result["scores"] == scored["scores"]
    assert result["differences"] == scored["differences"]
    assert [(item["system"], item["over"]) for item in result["differences"]] == [
        ("gpt2-0", "t5-0"), ("t5-1", "t5-0"), ("t5-1", "gpt2-0"),
    ]  # fmt: skip


def test_the_tables_a_person_reads(models: list[str], sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *models[:2], "--data", str(sample), "--limit", "3", "--show", "2", *SHORT]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("Example ") == 2
    assert "ROUGE of 3 answers" in out
    assert "Differences in points" in out
    assert "gpt2-0 - t5-0" in out
    assert all(key in out for key in ROUGE_KEYS)


def test_without_references_there_are_answers_only(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("안녕\nHi\n", encoding="utf-8")
    output = tmp_path / "out.csv"
    assert main(["compare", *models[:2], "--input", str(file), "--output", str(output), *SHORT]) == 0
    assert "ROUGE of" not in capsys.readouterr().out
    assert [list(row.cells) for row in read_rows(output)] == [["id", "prompt", "t5-0", "gpt2-0"]] * 2


def test_bad_input_is_one_line(models: list[str], sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(sample), "--limit", "1"]
    for words, said in (
        ([models[0], *data], "nothing to compare"),
        ([models[0], models[0], *data], "given twice"),
        ([*models, *data, "--preset", "beams-5-all"], "one answer a prompt"),
        (models, "--data PATH"),
        ([models[0], "none/none", *data, *SHORT], "neither a directory"),
    ):
        assert main(["compare", *words]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parley compare: ")]
        assert len(error) == 1
        assert said in error[0]
