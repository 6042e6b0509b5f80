"""The DataModule over DialogSum's formats: the published figures, the filters, the cache, the log, the batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from src.datamodules import DialogSumDataModule
from src.errors import ParleyError

Make = Callable[..., DialogSumDataModule]
MakeRows = Callable[..., list[dict[str, str]]]
Write = Callable[[Path, list[dict[str, Any]]], Path]


def hub_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The authors' rows as the hub has them: one a reference, the second `test_0_2` of `test_0`."""
    made = []
    for row in rows:
        for number in (1, 2, 3):
            cells = {"dialogue": row["dialogue"], "summary": row[f"summary{number}"], "topic": row[f"topic{number}"]}
            made.append({"id": f"{row['fname']}_{number}", **cells})
    return made


@pytest.fixture(scope="module")
def both_forms(dialogsum: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The authors' test file, and the directory of the same as the hub's CSV."""
    root = tmp_path_factory.mktemp("hub")
    authors = dialogsum / "dialogsum.test.jsonl"
    rows = [json.loads(line) for line in authors.read_text(encoding="utf-8").splitlines()]
    Dataset.from_list(hub_rows(rows)).to_csv(root / "test.csv")
    return authors, root


SETTINGS: list[dict[str, Any]] = [
    {},
    {"every_nth": 100},
    {"every_nth": 7, "min_chars": 200, "max_chars": 1000},
    {"test_split": "test[:80%]", "train_split": "test[:80%]", "max_chars": 700},
    {"test_split": "test[100:251]", "train_split": "test[100:]", "template": "flan"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_hubs_csv_and_the_authors_file_give_the_same_examples(
    settings: dict[str, Any], part: str, both_forms: tuple[Path, Path], module: Make
) -> None:
    authors, hub = (module(path, **{"train_split": "test", **settings}).examples(part) for path in both_forms)
    assert len(authors) > 0
    assert authors == hub


def test_dialogsums_figures(both_forms: tuple[Path, Path], dialogsum: Path, module: Make) -> None:
    for path in both_forms:
        whole = module(path, train_split="test")
        assert len(whole.examples("train")) == 1_500
        examples = whole.examples("test")
        assert len(examples) == 500
        assert {len(example.references) for example in examples} == {3}
        assert all(example.target == example.references[0] for example in examples)
        assert [example.id for example in examples[:2]] == ["test_0_1", "test_1_1"]
        sample = module(path, every_nth=100).examples("test")
        assert [example.id for example in sample[:3]] == ["test_0_1", "test_33_2", "test_66_3"]
        assert len(sample) == 15
    assert len(module(dialogsum, every_nth=100, train_split="validation").examples("train")) == 5
    assert len(module(dialogsum).examples("validation")) == 500


def test_the_published_counts_on_as_many_rows(rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path) -> None:
    """12,460, 500 and 1,500 rows make 125, 5 and 15; 10,022 of the 12,460 pass the lengths and part at 8,017."""
    train = rows(12_460)
    for number, row in enumerate(train):
        passes = (number + 1) * 10_022 // 12_460 > number * 10_022 // 12_460  # 10,022 times, evenly spread
        sizes = (201, 1000) if passes else (200, 1001)
        row["dialogue"] = str(number).zfill(sizes[number % 2])
    jsonl(tmp_path / "train.jsonl", train)
    jsonl(tmp_path / "dev.jsonl", rows(500))
    jsonl(tmp_path / "test.jsonl", rows(1_500))
    nth = module(tmp_path, every_nth=100)
    assert [len(nth.examples(part)) for part in ("train", "validation", "test")] == [125, 5, 15]
    assert [example.id for example in nth.examples("train")[:3]] == ["row_0", "row_100", "row_200"]
    ppo = module(tmp_path, train_split="train[:80%]", validation_split="train[80%:]", min_chars=200, max_chars=1000)
    first, rest = ppo.examples("train"), ppo.examples("validation")
    assert (len(first), len(rest)) == (8_017, 2_005)
    passed = [row["fname"] for row in train if 200 < len(row["dialogue"]) <= 1000]
    assert [example.id for example in first + rest] == passed


def test_limits_on_length_leave_out_the_lower_and_take_the_upper(jsonl: Write, module: Make, tmp_path: Path) -> None:
    made = [{"dialogue": "x" * size, "summary": str(size)} for size in (199, 200, 201, 999, 1000, 1001)]
    path = jsonl(tmp_path / "rows.jsonl", made)
    kept = module(path, min_chars=200, max_chars=1000).examples("train")
    assert [example.target for example in kept] == ["201", "999", "1000"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "saved", "saved dict"])
def test_every_format_gives_the_same_examples(
    form: str, rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path
) -> None:
    made = [*rows(6), {"fname": "k", "dialogue": '민수: 안녕,\n"지수"!', "summary": "민수가 인사한다. "}]
    expected = module(jsonl(tmp_path / "expected.jsonl", made)).examples("train")
    dataset, place = Dataset.from_list(made), tmp_path / form
    place.mkdir()
    if form == "saved":
        dataset.save_to_disk(place)
    elif form == "saved dict":
        DatasetDict({"train": dataset}).save_to_disk(place)
    else:
        {"jsonl": dataset.to_json, "csv": dataset.to_csv, "parquet": dataset.to_parquet}[form](place / f"train.{form}")
    assert module(place).examples("train") == expected
    assert expected[-1].prompt == 'Summarize the following conversation.\n\n민수: 안녕,\n"지수"!\n\nSummary: '
    assert expected[-1].target == "민수가 인사한다. "


def test_any_split_stands_in_for_any_other(rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path) -> None:
    jsonl(tmp_path / "dialogsum.dev.jsonl", rows(4, "dev"))
    made = module(tmp_path, train_split="validation", validation_split="val[:50%]", test_split="dev[2:]")
    ids = [[example.id for example in made.examples(part)] for part in ("train", "validation", "test")]
    assert ids == [["dev_0", "dev_1", "dev_2", "dev_3"], ["dev_0", "dev_1"], ["dev_2", "dev_3"]]


def test_empty_cells_are_dropped_and_counted_or_refused(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = rows(6)
    made[1]["dialogue"], made[4]["summary"] = " \n", ""
    path = jsonl(tmp_path / "rows.jsonl", made)
    with caplog.at_level(logging.WARNING):
        assert [example.id for example in module(path).examples("train")] == ["row_0", "row_2", "row_3", "row_5"]
    [message] = caplog.messages
    assert "dropped 2 of 6 rows with an empty cell (first: row_1)" in message
    with pytest.raises(ParleyError, match="row 'row_1' has an empty cell; fill it, or drop strict"):
        module(path, strict=True).examples("train")


def test_a_reference_less_is_one_reference_less(jsonl: Write, module: Make, tmp_path: Path) -> None:
    made = [{"fname": "a", "dialogue": "x", "summary1": "1", "summary2": "", "summary10": "10", "summary3": "3"}]
    [example] = module(jsonl(tmp_path / "rows.jsonl", made)).examples("test")
    assert example.references == ["1", "3", "10"]
    assert example.id == "a_1"


BAD: dict[str, tuple[list[Any] | bytes, dict[str, Any], str]] = {
    "column": ([{"text": "a", "summary": "b"}], {}, "line 1 has no column 'dialogue'; its columns are text, summary"),
    "summary": ([{"dialogue": "a", "topic": "b"}], {}, "line 1 has no column 'summary'"),
    "later row": ([{"dialogue": "a", "summary": "b"}, {"dialogue": "a"}], {}, "line 2 has no column 'summary'"),
    "type": ([{"dialogue": ["a"], "summary": "b"}], {}, "line 1: column 'dialogue' holds list"),
    "malformed": (b'{"dialogue": "a", "summary": "b"}\n{"dialogue": "a", "summary"\n', {}, "line 2 is not JSON"),
    "not UTF-8": (b'{"dialogue": "a", "summary": "b"}\n{"dialogue": "\xff"}\n', {}, "line 2 is not UTF-8"),
    "no rows": (b"\n", {}, r"the train split of .*rows.jsonl is empty \(0 rows before every_nth"),
    "none left": ([{"dialogue": "a", "summary": "b"}], {"min_chars": 5}, r"is empty \(1 rows before every_nth"),
    "slice": ([{"dialogue": "a", "summary": "b"}], {"train_split": "train[:50%]"}, "takes none of the 1 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_clear_line(case: str, module: Make, jsonl: Write, tmp_path: Path) -> None:
    content, settings, said = BAD[case]
    path = tmp_path / "rows.jsonl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        jsonl(path, content)
    with pytest.raises(ParleyError, match=said) as error:
        module(path, **settings).setup("fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": "nonesuch"}, "unknown template 'nonesuch'"),
        ({"template": "question"}, "asks for 'question'"),
        ({"train_split": "train[80%]"}, "is not understood"),
        ({"every_nth": 0}, "every_nth is 0; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_source_length": -1}, "max_source_length is -1"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], said: str, module: Make) -> None:
    with pytest.raises(ParleyError, match=said):
        module("owner/name", **settings)


def test_the_published_hub_name_and_template_are_the_defaults(base: Callable[[str], str]) -> None:
    made = DialogSumDataModule(base("t5"))
    assert made.path == "knkarthick/dialogsum"
    assert made.template == "Summarize the following conversation.\n\n{dialogue}\n\nSummary: "


def test_examples_are_values(rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path) -> None:
    [example] = module(jsonl(tmp_path / "rows.jsonl", rows(1))).examples("train")
    prompt = "Summarize the following conversation.\n\nAnn: line 0 of turn 0.\n\nSummary: "
    assert astuple(example) == (prompt, "Ann speaks 0.", ["Ann speaks 0."], "row_0", ())


def test_slices_count_dialogues_whatever_is_made_of_them(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path
) -> None:
    """Three summaries a dialogue, and the first dialogue once more at the end: parts of one split share none."""
    made = [
        {"fname": row["fname"], "dialogue": row["dialogue"], **{f"summary{n}": f"{n}" for n in (1, 2, 3)}}
        for row in rows(20)
    ]
    made.append({**made[0], "fname": "again"})
    path = jsonl(tmp_path / "test.jsonl", made)
    data = module(path, train_split="test[5:]", validation_split="test[:5]")
    train, validation = data.examples("train"), data.examples("validation")
    assert len({example.prompt for example in train}) == 15
    assert len(train) == 45
    assert [len(example.references) for example in validation] == [6, 3, 3, 3, 3]
    assert {example.prompt for example in train}.isdisjoint(example.prompt for example in validation)
