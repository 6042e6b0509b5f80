"""Text token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from src.inference.loading import FinishedModel
from src.inference.streaming import TextStream
from src.models.generation import generate_text
from src.models.generation_options import GenerationOptions

TEXT = "안녕하세요, 김치찌개 어때요? 😀 <b>Yes</b>\n둘째 줄 END of it"


def streamed(finished: FinishedModel, text: str, stop_strings: tuple[str, ...] = ()) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(finished.tokenizer, pieces.append, stop_strings=stop_strings)
    stream.put(torch.tensor([[1, 2, 3]]))
    for id in finished.tokenizer(text, add_special_tokens=False).input_ids:
        stream.put(torch.tensor([id]))
    stream.end()
    return pieces


def test_characters_come_whole(finished: Callable[[str], FinishedModel]) -> None:
    pieces = streamed(finished("gpt2"), TEXT)
    assert "".join(pieces) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len(pieces) > len(TEXT) / 2  # as it comes, not a word or a line at a time


@pytest.mark.parametrize("stop", ["END", "찌개", "\n둘", "?"])
def test_nothing_of_a_stop_string_is_shown(finished: Callable[[str], FinishedModel], stop: str) -> None:
    assert "".join(streamed(finished("gpt2"), TEXT, (stop, "never"))) == TEXT.split(stop)[0].strip()
    assert "".join(streamed(finished("gpt2"), "so E", ("END",))) == "so E"


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_what_streams_is_the_answer(architecture: str, finished: Callable[[str], FinishedModel]) -> None:
    model = finished(architecture)
    encoded = model.tokenizer("안녕?", return_tensors="pt")
    for seed in range(5):
        options = GenerationOptions(max_new_tokens=25, do_sample=True, seed=seed, stop_strings=["e"])
        pieces: list[str] = []
        stream = TextStream(model.tokenizer, pieces.append, stop_strings=["e"])
        [text] = generate_text(
            model.model, model.tokenizer, encoded.input_ids, encoded.attention_mask, options, streamer=stream
        )
        assert "".join(pieces) == text
