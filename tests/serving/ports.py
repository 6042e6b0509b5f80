"""A server on a real port, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import torch

from src.models.generation import generate_text
from src.models.generation_options import GenerationOptions
from src.serving.app import make_app
from src.serving.engine import Engine
from src.serving.guard import LOOPBACK_NAMES, Guard
from src.serving.hosted import Hosted
from src.serving.page import Page, add_page
from src.serving.server import bound, make_server

KINDS = ("t5", "bart", "gpt2", "llama")


@dataclass
class Running:
    """A server.

    Attributes:
        url: Of it.
        models: By name.
        engine: Of it.
    """

    url: str
    models: dict[str, Hosted]
    engine: Engine

    def client(self, **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)

    def until_idle(self, seconds: float = 10.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.engine.is_idle:
            time.sleep(0.01)
        return self.engine.is_idle


@contextmanager
def running(
    models: Mapping[str, Hosted], engine: Engine | None = None, page: Page | None = None, **guard: Any
) -> Iterator[Running]:
    engine = engine or Engine()
    app = make_app(dict(models), engine)
    open_paths = frozenset() if page is None else add_page(app, models, page)
    app = Guard(app, **{"hosts": LOOPBACK_NAMES, "open_paths": open_paths, **guard})
    listening, server = bound("127.0.0.1", 0), make_server(app, lambda: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", dict(models), engine)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def expected(hosted: Hosted, ids: list[int], **options: Any) -> list[str]:
    """What `parley generate` says to a prompt."""
    prompt = torch.tensor([ids])
    decoding = GenerationOptions(**{"max_new_tokens": 12, **options})
    return generate_text(
        hosted.finished.model, hosted.finished.tokenizer, prompt, torch.ones_like(prompt), decoding, numbers=[0]
    )
