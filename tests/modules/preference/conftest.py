"""Pairs, batches as `PreferenceDataModule` makes them, and small bases of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from src.contracts import PreferenceBatch
from src.datamodules.encoding import pad
from src.models.texts_to_classify import load_reader, texts_to_score

KINDS = ["bert", "gpt2", "llama", "t5", "bart"]
PAIRS = [
    ("have a nice day", "you have a good day", "you fool", 0.5),
    ("you are", "so good", "a very very bad fool </s>", 0.0),
    ("are you good", "very", "", 1.25),
    ("so so so so so very bad", "nice day", "bad day bad day", 0.0),
    ("a good day", "have a very nice day", "bad", 2.0),
    ("you", "are nice", "are a fool", 0.25),
]


@pytest.fixture
def base(tiny_base, make_classifier, tmp_path_factory) -> Callable[[str], str]:
    """From a kind to a base without a reward head."""

    def make(kind: str) -> str:
        if kind != "bert":
            return str(tiny_base(kind))
        from transformers import BertConfig, BertForMaskedLM

        path = make_classifier(["a"], roberta=False)
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig.from_pretrained(path)).save_pretrained(path)
        return path

    return make


@pytest.fixture
def batch_of() -> Callable[..., PreferenceBatch]:
    """Make a batch of pairs for a base."""

    def make(base: str | Path, rows: list[int], fillers: tuple[int, ...] = ()) -> PreferenceBatch:
        reader = load_reader(str(base))
        prompts, chosen, rejected, margins = zip(*(PAIRS[row] for row in rows), strict=True)
        ids = [
            ids
            for side in (chosen, rejected)
            for ids in reader.ids(texts_to_score(prompts, side, "prompt_and_response"))
        ]
        answer_ids, answer_mask = pad(ids, reader.tokenizer.pad_token_id)
        nothing = torch.zeros(len(rows), 0, dtype=torch.long)
        return PreferenceBatch(
            prompt_ids=nothing,
            prompt_attention_mask=nothing,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
            margin=torch.tensor(margins),
            id=[str(row) for row in rows],
            prompt=list(prompts),
            chosen=list(chosen),
            rejected=list(rejected),
            references=[[text] for text in chosen],
            is_filler=[row in fillers for row in rows],
            index=rows,
        )

    return make


@pytest.fixture
def loader_of(batch_of) -> Callable[..., DataLoader]:
    """Make a loader of batches of pairs, each given by its rows."""

    def make(base: str | Path, batches: list[list[int]], fillers: tuple[int, ...] = ()) -> DataLoader:
        made = [batch_of(base, rows, fillers) for rows in batches]
        return DataLoader(made, batch_size=None)  # type: ignore[arg-type]

    return make
