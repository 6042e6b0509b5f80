"""A request names a decoding preset; it gets what `parley generate --preset` says, and no file."""
# ruff: noqa: E402

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from tests.conftest import ROOT
from tests.serving.ports import Running, expected

PRESETS = ROOT / "configs" / "decoding"


@pytest.mark.parametrize("preset", ["greedy", "beams-5-no-repeat", "top-k"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_preset_by_name_decodes_as_generate_does(kind: str, preset: str, served: Running) -> None:
    options = {
        "greedy": {},
        "beams-5-no-repeat": {"num_beams": 5, "no_repeat_ngram_size": 2},
        "top-k": {"do_sample": True, "top_k": 50, "seed": 5},
    }[preset]
    reply = served.client().completions.create(model=kind, prompt="Hello", seed=5, extra_body={"preset": preset})
    hosted = served.models[kind]
    [answer] = expected(hosted, hosted.text("Hello"), **options)
    assert reply.choices[0].text.strip() == answer.strip()


@pytest.mark.parametrize(
    "name", ["nobody", "model", "", "../decoding/greedy", str(ROOT / "configs/decoding/greedy.yaml")]
)
def test_a_preset_is_no_path(name: str, served: Running) -> None:
    body = {"model": "gpt2", "prompt": "Hi", "preset": name}
    reply = httpx.post(f"{served.url}/v1/completions", json=body)
    assert reply.status_code == 400
    assert "greedy" in reply.json()["error"]["message"]


def test_what_a_request_says_goes_before_its_preset(served: Running) -> None:
    asked = {"model": "gpt2", "prompt": "Hello", "seed": 5, "temperature": 0.5, "max_tokens": 7}
    reply = served.client().completions.create(**asked, extra_body={"preset": "top-k"})
    hosted = served.models["gpt2"]
    options = {"do_sample": True, "top_k": 50, "temperature": 0.5, "seed": 5, "max_new_tokens": 7}
    assert [reply.choices[0].text.strip()] == [expected(hosted, hosted.text("Hello"), **options)[0].strip()]


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart"])
def test_beams_have_several_answers_the_best_first(kind: str, served: Running) -> None:
    hosted = served.models[kind]
    asked = {"model": kind, "prompt": ["Hello", "Good day to you"], "n": 3, "extra_body": {"preset": "beams-5-all"}}
    choices = served.client().completions.create(**asked).choices
    options = {"num_beams": 5, "no_repeat_ngram_size": 2, "num_return_sequences": 3}
    answers = [text for prompt in asked["prompt"] for text in expected(hosted, hosted.text(prompt), **options)]
    assert [choice.text.strip() for choice in choices] == [text.strip() for text in answers]
    assert len(set(answers[:3])) == 3


def test_there_are_no_more_answers_than_beams(served: Running) -> None:
    body = {"model": "gpt2", "prompt": "Hi", "n": 6, "preset": "beams-5"}
    reply = httpx.post(f"{served.url}/v1/completions", json=body)
    assert reply.status_code == 400
    assert "beams (5)" in reply.json()["error"]["message"]
