"""What all DataModules share, shown on DialogSum: the cache, the log, the stages of a trainer, batches."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
