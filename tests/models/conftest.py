"""Tiny bases, made once a session through the project's own door."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.models.loading import load_model, load_tokenizer
from src.models.scratch import Sizes, make_base_model
from tests.shaking import shaken

CORPUS = [
    "Anna: Are you coming at 7:30? Ben: Yes, I will bring the 2 tickets.",
    "안녕하세요, 오늘 저녁에 뭐 먹을까요? 김치찌개 어때요?",
    "The quick brown fox jumps over the lazy dog.",
] * 5
SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 320}
KINDS = ("t5", "t5-untied", "bart", "gpt2", "llama")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a kind to a model directory with it; the five of `KINDS`."""
    root = tmp_path_factory.mktemp("bases")

    def make(kind: str) -> Path:
        directory = root / kind
        if not directory.is_dir():
            architecture, _, variant = kind.partition("-")
            sizes = Sizes(**SIZES, untied_head=variant == "untied")
            make_base_model(architecture, CORPUS, directory, sizes, seed=1)
        return directory

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str, base: Callable[[str], Path]) -> PreTrainedModel:
    return load_model(base(kind))


@pytest.fixture
def tokenizer(kind: str, base: Callable[[str], Path]) -> PreTrainedTokenizerBase:
    return load_tokenizer(base(kind))


@pytest.fixture
def targets(kind: str) -> list[str]:
    attention = {"t5": ["q", "v"], "gpt2": ["c_attn"]}
    return attention.get(kind.partition("-")[0], ["q_proj", "v_proj"])


@pytest.fixture(scope="session")
def logits() -> Callable[[torch.nn.Module], torch.Tensor]:
    """Logits on fixed token ids."""

    @torch.no_grad()
    def run(model: torch.nn.Module) -> torch.Tensor:
        ids = torch.arange(10, 34).view(2, 12)
        extra = {"decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else {}
        return copy.deepcopy(model).eval()(input_ids=ids, **extra).logits

    return run


@pytest.fixture(scope="session")
def shake() -> Callable[..., None]:
    """Moves every parameter a little, as training does; an adapter's too, whose B starts at zero."""

    return partial(shaken, size=0.1, seed=3)


@pytest.fixture
def untied(kind: str) -> bool:
    return kind == "t5-untied"
