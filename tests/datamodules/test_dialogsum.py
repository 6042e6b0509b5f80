"""The DataModule over DialogSum's formats: the published figures, the filters, the cache, the log, the batches."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch import LightningModule, Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import src.datamodules.dialogue
from src.datamodules import DialogSumDataModule
from src.errors import ParleyError
from src.models.loading import load_tokenizer

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
    "slice": ([{"dialogue": "a", "summary": "b"}], {"train_split": "train[:50%]"}, "is empty"),
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


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of examples each time some are tokenised."""
    counted: list[int] = []
    encode = src.datamodules.dialogue.encode_examples

    def count(examples: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(len(examples))
        return encode(examples, *args, **kwargs)

    monkeypatch.setattr(src.datamodules.dialogue, "encode_examples", count)
    return counted


def test_tokens_are_made_once_and_anew_for_whatever_changes_them(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path, encodings: list[int]
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", rows(12))

    def times(architecture: str = "t5", **settings: Any) -> int:
        del encodings[:]
        made = module(path, architecture, validation_split="train", **settings)
        made.prepare_data()
        made.setup("fit")
        return len(encodings)

    assert times() == 1, "train and validation are the same examples"
    assert times() == 0
    assert times(seed=1, batch_size=2, num_workers=2, group_by_length=False) == 0
    for settings in (
        {"template": "flan"},
        {"max_source_length": 20},
        {"max_target_length": 5},
        {"every_nth": 2},
        {"min_chars": 40},
        {"max_chars": 100},
        {"architecture": "bart"},
        {"architecture": "gpt2"},
    ):
        assert times(**settings) == 1, settings  # type: ignore[arg-type]
        assert times(**settings) == 0, settings  # type: ignore[arg-type]
    changed = rows(12)
    changed[7]["summary"] += "!"
    jsonl(path, changed)
    assert times() == 1


def test_the_log_counts_examples_tokens_and_truncations(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = module(jsonl(tmp_path / "rows.jsonl", rows(12)), max_source_length=30, max_target_length=4)
    with caplog.at_level(logging.INFO, logger="src.datamodules"):
        made.prepare_data()
        made.setup("test")
    tokenizer = load_tokenizer(made.model_name_or_path)
    lengths = {
        "prompt": [len(tokenizer(example.prompt)["input_ids"]) for example in made.examples("test")],
        "target": [len(tokenizer(example.target)["input_ids"]) for example in made.examples("test")],
    }
    limits = {"prompt": 30, "target": 4}
    total = sum(min(length, limits[what]) for what, numbers in lengths.items() for length in numbers)
    cut = {what: sum(length > limits[what] for length in numbers) for what, numbers in lengths.items()}
    assert cut["prompt"] > 0 < cut["target"]
    assert caplog.messages == [
        f"test: 12 examples, {total:,} tokens.",
        f"test: {cut['prompt']} of 12 prompts truncated to 30 tokens.",
        f"test: {cut['target']} of 12 targets truncated to 4 tokens.",
    ]


def test_examples_longer_than_the_models_positions_are_refused(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path
) -> None:
    long = [{"fname": "long", "dialogue": "word " * 2_000, "summary": "Much."}]
    path = jsonl(tmp_path / "rows.jsonl", rows(3) + long)
    with pytest.raises(ParleyError, match=r"has 15\d\d tokens, but .*gpt2 has 1024 positions; lower max_source_length"):
        module(path, "gpt2", max_source_length=1_500).setup("test")
    with pytest.raises(ParleyError, match=r"has 1500 tokens, but .*bart has 1024 positions"):
        module(path, "bart", max_source_length=1_500).setup("test")
    module(path, "t5", max_source_length=1_500).setup("test")  # relative positions have no end
    module(path, "gpt2", max_source_length=1_000, max_target_length=24).setup("test")


class Seen(LightningModule):
    """Writes down the rows that every stage gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[int]] = {"train": [], "validation": [], "test": [], "predict": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen["train"] += batch["index"]
        return self.weight.sum() * len(batch["index"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["validation"] += batch["index"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"] += batch["index"]

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["predict"] += batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_batch": 600}, {"group_by_length": False}])
def test_every_stage_of_a_trainer_sees_every_example_once(
    settings: dict[str, Any], rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path, encodings: list[int]
) -> None:
    for split, count in (("train", 19), ("validation", 7), ("test", 11)):
        jsonl(tmp_path / f"{split}.jsonl", rows(count))
    made, seen = module(tmp_path, batch_size=4, **settings), Seen()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**options, max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False)
    trainer.fit(seen, made)
    trainer.test(seen, made, verbose=False)
    trainer.predict(seen, made)
    counts = {stage: sorted(indices) for stage, indices in seen.seen.items()}
    expected = {"train": 19, "validation": 7, "test": 11, "predict": 11}
    assert counts == {stage: list(range(count)) for stage, count in expected.items()}
    assert sorted(encodings) == [7, 11, 19], "prepare_data made what setup read"


def test_training_shuffles_by_the_seed_and_a_budget_bounds_batches(
    rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "train.jsonl", rows(40))

    def batches(architecture: str = "t5", **settings: Any) -> list[Any]:
        made = module(path, architecture, **settings)
        made.setup("fit")
        return list(made.train_dataloader())

    def order(**settings: Any) -> list[int]:
        return [index for batch in batches(**settings) for index in batch["index"]]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    for architecture in ("t5", "gpt2"):
        budgeted = batches(architecture, max_tokens_per_batch=500)
        lengths = [(batch["input_ids"].shape[1], len(batch["index"])) for batch in budgeted]
        assert len({count for _, count in lengths}) > 1
        assert all(width * count <= 500 for width, count in lengths)


def test_workers_prepare_the_same_batches(rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", rows(30))

    def batches(workers: int) -> list[Any]:
        made = module(path, num_workers=workers)
        made.setup("fit")
        return list(made.train_dataloader())

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert ours["id"] == theirs["id"]
        assert torch.equal(ours["input_ids"], theirs["input_ids"])


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


@pytest.mark.parametrize(
    ("validation", "said"),
    [("test[:6]", ["4 of 6 prompts of validation are in train too (first: row_2)"]), ("test[:2]", [])],
)
def test_an_overlap_is_named(
    validation: str,
    said: list[str],
    rows: MakeRows,
    jsonl: Write,
    module: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = module(jsonl(tmp_path / "test.jsonl", rows(20)), train_split="test[2:]", validation_split=validation)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert [message.partition(";")[0] for message in caplog.messages] == said


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63])
def test_seeds_up_to_64_bits(seed: int, rows: MakeRows, jsonl: Write, module: Make, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "test.jsonl", rows(20))
    if seed == 2**63:
        with pytest.raises(ParleyError, match=r"seed is .*; it must be 0 or more and below 2\*\*63"):
            module(path, seed=seed)
        return
    data = module(path, seed=seed)
    data.setup("fit")
    assert sum(len(batch["id"]) for batch in data.train_dataloader()) == 20


def test_text_that_its_tokenizer_does_not_know_is_noticed_before_training(
    base: Callable[[str], str], jsonl: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer of whole words knows what it has seen: here "Ann: hello there" and nothing of Korean."""
    known = WordLevel(
        {
            "<unk>": 0,
            "<pad>": 1,
            "</s>": 2,
            **{word: 3 + n for n, word in enumerate("Ann : hello there Ben how are you fine .".split())},  # noqa: SIM905
        },
        "<unk>",
    )
    backend = Tokenizer(known)
    backend.pre_tokenizer = Whitespace()
    folder = tmp_path / "words"
    shutil.copytree(base("t5"), folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)

    def log_of(*dialogues: str) -> list[str]:
        caplog.clear()
        path = jsonl(tmp_path / "train.jsonl", [{"dialogue": text, "summary": "fine"} for text in dialogues])
        options = {"template": "{dialogue}", "validation_split": "train", "cache_dir": str(tmp_path / "cache")}
        with caplog.at_level(logging.WARNING):
            DialogSumDataModule(str(folder), path=str(path), **options).setup("validate")
        return caplog.messages

    assert log_of("Ann: hello there.", "Ben:\nhow are  you") == []
    [message] = log_of("Ann: hello there.", "안녕 hello")  # 2 of 22 characters
    assert "validation: 9.1 % of the characters in the prompts are unknown" in message
    assert log_of("Ann: hello there.", "안녕 hello") == [message]  # from the cache as well
    with pytest.raises(ParleyError, match="91% of the characters in the validation split's prompts are unknown"):
        log_of("안녕하세요반갑습니다.")
