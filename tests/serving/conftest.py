"""Tiny models of every kind behind a real port; the modules beside it skip where the extra `serve` is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from src.inference.loading import FinishedModel, load_finished
from src.models.generation import GenerationOptions
from src.models.loading import load_tokenizer

if TYPE_CHECKING:
    from tests.serving.ports import Running

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


@pytest.fixture(scope="session")
def shaken(tiny_base: Callable[..., Path]) -> Callable[[str], FinishedModel]:
    """Finished models that say various things."""
    made: dict[str, FinishedModel] = {}

    def make(kind: str) -> FinishedModel:
        if kind not in made:
            made[kind] = load_finished(str(tiny_base(kind)), device="cpu")
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in made[kind].model.parameters():
                    parameter += 0.25 * torch.randn(parameter.shape, generator=generator)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def with_template(shaken: Callable[[str], FinishedModel]) -> FinishedModel:
    """A decoder-only model with a chat template."""
    tokenizer = load_tokenizer(shaken("gpt2").name)
    tokenizer.chat_template = TEMPLATE
    return replace(shaken("gpt2"), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def served(shaken: Callable[[str], FinishedModel], with_template: FinishedModel) -> Iterator[Running]:
    """All of them at one port, greedy with 12 new tokens where nothing is said."""
    from src.serving.hosted import Hosted, Limits
    from tests.serving.ports import KINDS, running

    options = GenerationOptions(max_new_tokens=12)
    models = {kind: Hosted(kind, shaken(kind), options, Limits(answer_tokens=400)) for kind in KINDS}
    models["templated"] = Hosted("templated", with_template, options)
    models["beams"] = Hosted("beams", shaken("bart"), GenerationOptions(max_new_tokens=12, num_beams=3))
    with running(models) as server:
        yield server
