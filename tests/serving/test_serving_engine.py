"""Requests in one batch: those that come together, those that come later, those that nobody wants any more."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")

from src.inference.loading import FinishedModel
from src.models.generation_options import GenerationOptions
from src.serving.beams import answer_by_beams
from src.serving.engine import Engine, Event, Failed, FullError, Job
from src.serving.hosted import Hosted
from src.serving.rows import Penalties
from tests.serving.ports import KINDS, expected

PROMPTS = ["Hello", "Will you meet me at 7:30?", "안녕하세요", "A much longer question, which goes on and on. " * 3]


class Answer:
    """Collects what comes of a job."""

    def __init__(self, hosted: Hosted, prompt: str, **options: object) -> None:
        decoding = GenerationOptions(**{"max_new_tokens": 12, **options})
        [row] = hosted.rows(
            hosted.text(prompt), decoding, Penalties(), number=0, count=1, top_logprobs=None, as_continuation=False
        )
        self.job = Job(hosted, [row], self.take)
        self.events: list[Event] = []
        self.begun, self.ended = threading.Event(), threading.Event()

    def take(self, events: list[Event]) -> None:
        self.events += events
        self.begun.set()
        if any(isinstance(event, Failed) or event.finish for event in events):
            self.when = time.monotonic()
            self.ended.set()

    @property
    def text(self) -> str:
        assert self.ended.wait(20)
        return "".join(event.text for event in self.events)


@contextmanager
def started(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def hosted(finished: Callable[[str], FinishedModel]) -> Callable[[str], Hosted]:
    return lambda kind: Hosted(kind, finished(kind), GenerationOptions())


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_together_is_one_batch(kind: str, hosted: Callable[[str], Hosted]) -> None:
    model, engine = hosted(kind), Engine()
    answers = [Answer(model, prompt, min_new_tokens=12) for prompt in PROMPTS * 3]
    for answer in answers:
        engine.submit(answer.job)
    sizes: list[int] = []
    head = model.finished.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        with started(engine):
            texts = [answer.text for answer in answers]
    finally:
        handle.remove()
    assert sizes == [12] * 12  # twelve steps of twelve answers
    assert texts == [*expected_of(model, min_new_tokens=12)] * 3
    assert engine.load.largest == 12


def expected_of(model: Hosted, **options: object) -> list[str]:
    return [expected(model, model.text(prompt), **options)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_later_joins_and_does_not_wait(kind: str, hosted: Callable[[str], Hosted]) -> None:
    model = hosted(kind)
    with started(Engine()) as engine:
        long = Answer(model, PROMPTS[1], max_new_tokens=200, min_new_tokens=200)
        engine.submit(long.job)
        assert long.begun.wait(10)
        later = [Answer(model, prompt) for prompt in PROMPTS]
        for answer in later:
            engine.submit(answer.job)
        assert [answer.text for answer in later] == expected_of(model)
        assert not long.ended.is_set()
        assert long.text == expected(model, model.text(PROMPTS[1]), max_new_tokens=200, min_new_tokens=200)[0]
        assert engine.load.largest == 5
        assert all(answer.when < long.when for answer in later)


def test_each_decodes_by_its_own_options(hosted: Callable[[str], Hosted]) -> None:
    model = hosted("gpt2")
    kinds = [
        {},
        {"do_sample": True, "seed": 1},
        {"do_sample": True, "seed": 1, "temperature": 0.5, "top_p": 0.8},
        {"do_sample": True, "seed": 2, "top_k": 3},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 3.0, "max_new_tokens": 3},
    ]
    answers = [Answer(model, PROMPTS[1], **kind) for kind in kinds]
    with started(Engine()) as engine:
        for answer in answers:
            engine.submit(answer.job)
        texts = [answer.text for answer in answers]
    assert texts == [expected(model, model.text(PROMPTS[1]), **kind)[0] for kind in kinds]
    assert len(set(texts)) == len(kinds)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_what_is_cancelled_is_not_written(kind: str, hosted: Callable[[str], Hosted]) -> None:
    model = hosted(kind)
    with started(Engine()) as engine:
        gone, stays = (Answer(model, PROMPTS[0], max_new_tokens=500, min_new_tokens=500) for _ in range(2))
        engine.submit(gone.job)
        engine.submit(stays.job)
        assert gone.begun.wait(10)
        engine.cancel(gone.job)
        assert eventually(lambda: engine.load.rows == 1)
        written = len(gone.job.rows[0].ids)
        engine.cancel(stays.job)
        assert eventually(lambda: engine.is_idle)
        assert len(gone.job.rows[0].ids) == written < 500
        assert engine.load.tokens < 1000


def test_no_more_than_may_are_written_or_wait(hosted: Callable[[str], Hosted]) -> None:
    model, engine = hosted("t5"), Engine(max_rows=2, max_waiting=5)
    answers = [Answer(model, PROMPTS[0]) for _ in range(5)]
    for answer in answers:
        engine.submit(answer.job)
    with pytest.raises(FullError):
        engine.submit(Answer(model, PROMPTS[0]).job)
    with started(engine):
        assert len({answer.text for answer in answers}) == 1
        assert engine.load.largest == 2
        engine.submit(Answer(model, PROMPTS[0]).job)  # there is room again


def test_what_fails_ends_its_own_requests_alone(
    hosted: Callable[[str], Hosted], finished: Callable[[str], FinishedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = copy.deepcopy(finished("gpt2"))
    with torch.no_grad():
        next(iter(spoilt.model.parameters())).fill_(torch.nan)
    bad = Hosted("bad", spoilt, GenerationOptions())
    broken = Hosted(
        "broken", replace(finished("llama"), model=copy.deepcopy(finished("llama").model)), GenerationOptions()
    )

    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(broken.finished.model, "forward", raises)
    good = hosted("gpt2")
    with started(Engine()) as engine:
        answers = [Answer(model, PROMPTS[0], min_new_tokens=12) for model in (good, bad, broken)]
        for answer in answers:
            engine.submit(answer.job)
        assert all(answer.ended.wait(10) for answer in answers)
        assert answers[0].text == expected(good, good.text(PROMPTS[0]), min_new_tokens=12)[0]
        assert "not finite" in answers[1].events[-1].reason
        assert answers[2].events[-1].reason == "out of memory"
        again = Answer(good, PROMPTS[0])
        engine.submit(again.job)
        assert again.text
        assert eventually(lambda: engine.is_idle)


def test_beams_are_searched_for_no_more_at_once_than_fit(
    hosted: Callable[[str], Hosted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four prompts of two answers each, of which two prompts fit: two searches, and no prompt's answers apart."""
    from src.serving import engine as module

    model, searched, taken = hosted("bart"), [], threading.Semaphore(0)
    options = GenerationOptions(max_new_tokens=12, num_beams=3, num_return_sequences=2)
    told: list[Event] = []
    jobs = [
        Job(
            model,
            model.rows(
                model.text("Hello"), options, Penalties(), number=0, count=2, top_logprobs=None, as_continuation=False
            ),
            lambda events: [told.extend(events), taken.release()],
            beams=True,
        )
        for _ in range(4)
    ]
    monkeypatch.setattr(module, "READ_AT_ONCE", 2 * 3 * len(model.text("Hello")))
    monkeypatch.setattr(
        module, "answer_by_beams", lambda *args: searched.append(len(args[1])) or answer_by_beams(*args)
    )
    engine = Engine()
    for job in jobs:
        engine.submit(job)
    with started(engine):
        for _ in range(4 * 2):
            assert taken.acquire(timeout=20)
        assert eventually(lambda: engine.load.requests == 4)
    assert searched == [4, 4]
    assert [piece.text for piece in told] == 4 * expected(
        model, model.text("Hello"), num_beams=3, num_return_sequences=2
    )


def test_names_of_one_model_do_not_share_a_tokenizer(hosted: Callable[[str], Hosted]) -> None:
    one = hosted("gpt2")
    two = replace(one, name="two")
    tokenizers = [one.finished.tokenizer, two.finished.tokenizer, one.decoding_tokenizer, two.decoding_tokenizer]
    assert len({id(tokenizer) for tokenizer in tokenizers}) == 4
    assert one.finished.model is two.finished.model


@pytest.mark.parametrize(("stop", "text", "finish"), [("stop", "Hello,", "stop"), ("never", "Hello, stop.", "length")])
def test_an_answer_of_beams_that_a_stop_string_ends_has_not_been_cut_off(
    stop: str, text: str, finish: str, hosted: Callable[[str], Hosted], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hosted("gpt2")
    ids = model.text("Hello, stop.")
    monkeypatch.setattr("src.serving.beams.generate_ids", lambda *_args, **_options: torch.tensor([ids]))
    answer = Answer(model, "Hi", num_beams=3, max_new_tokens=len(ids), stop_strings=[stop])
    [piece] = answer_by_beams(model, answer.job.rows, lambda: False)
    assert (piece.text, piece.finish) == (text, finish)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_counts_once_however_its_answers_are_read(
    kind: str, hosted: Callable[[str], Hosted], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hosted(kind)
    monkeypatch.setattr("src.serving.engine.READ_AT_ONCE", 1)  # each prompt by itself
    options = GenerationOptions(max_new_tokens=3, do_sample=True, seed=1)
    rows = model.rows(
        model.text("Hello"), options, Penalties(), number=0, count=3, top_logprobs=None, as_continuation=False
    )
    told: list[Event] = []
    engine = Engine()
    engine.submit(Job(model, rows, told.extend))
    with started(engine):
        assert eventually(lambda: sum(event.finish is not None for event in told) == 3)
    assert engine.load.requests == 1
