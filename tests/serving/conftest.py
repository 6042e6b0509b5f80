"""Tiny models of every kind behind a real port; the modules beside it skip where the extra `serve` is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from src.inference.loading import FinishedModel
from src.models.generation_options import GenerationOptions
from src.models.loading import load_tokenizer

if TYPE_CHECKING:
    from tests.serving.browsing import Browsed, Site
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


@pytest.fixture(scope="module")
def site(served: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the page, one of its models under a hostile name."""
    from src.serving.hosted import Hosted
    from src.serving.page import Page
    from src.serving.votes import VoteFile
    from tests.serving.browsing import ODD_NAME, ROWS, Site
    from tests.serving.ports import running

    models = {name: served.models[name] for name in ("gpt2", "t5")}
    models[ODD_NAME] = Hosted(ODD_NAME, served.models["templated"].finished, GenerationOptions(max_new_tokens=12))
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    with running(models, page=Page(ROWS, VoteFile(votes))) as server:
        yield Site(server, votes)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """For one module: while it is there, its thread can run no other event loop."""
    from tests.serving.browsing import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Browsed]]:
    """Open tabs; in the end none of them has asked another host, complained, or run what was text."""
    from tests.serving.browsing import tabs_of

    with tabs_of(chromium) as start:
        yield start
