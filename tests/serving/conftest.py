"""Tiny models of every kind behind a real port; the modules beside it skip where the extra `serve` is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from src.inference.loading import FinishedModel
from src.models.generation import GenerationOptions
from src.models.loading import load_tokenizer

if TYPE_CHECKING:
    from tests.serving.ports import Running

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


@pytest.fixture(scope="session")
def with_template(finished: Callable[[str], FinishedModel]) -> FinishedModel:
    """A decoder-only model with a chat template."""
    tokenizer = load_tokenizer(finished("gpt2").name)
    tokenizer.chat_template = TEMPLATE
    return replace(finished("gpt2"), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def served(finished: Callable[[str], FinishedModel], with_template: FinishedModel) -> Iterator[Running]:
    """All of them at one port, greedy with 12 new tokens where nothing is said."""
    from src.serving.hosted import Hosted, Limits
    from tests.serving.ports import KINDS, running

    options = GenerationOptions(max_new_tokens=12)
    models = {kind: Hosted(kind, finished(kind), options, Limits(answer_tokens=400)) for kind in KINDS}
    models["templated"] = Hosted("templated", with_template, options)
    models["beams"] = Hosted("beams", finished("bart"), GenerationOptions(max_new_tokens=12, num_beams=3))
    with running(models) as server:
        yield server
