"""OpenAI's own client over a real port: what it gets is what `parley generate` and transformers say."""
# ruff: noqa: E402

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from src.contracts import Turn
from tests.serving.ports import KINDS, Running, expected

ASKED = [{"role": "user", "content": "Hello, will you meet me at 7:30? 안녕"}]
TEXT = "Hello, will you meet"


def said(reply: Any) -> list[str]:
    return [choice.message.content for choice in reply.choices]


def test_the_models_are_listed(served: Running) -> None:
    client = served.client()
    assert [model.id for model in client.models.list().data] == [*KINDS, "templated", "beams"]
    assert client.models.retrieve("t5").id == "t5"
    for ask in (
        lambda: client.models.retrieve("none/such"),
        lambda: client.chat.completions.create(model="other", messages=ASKED),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            ask()
        assert error.value.code == "model_not_found"


@pytest.mark.parametrize("name", [*KINDS, "templated"])
def test_a_talk_is_answered_as_generate_answers_it(name: str, served: Running) -> None:
    hosted = served.models[name]
    talk = [{"role": "system", "content": "Be kind."}, ASKED[0], {"role": "assistant", "content": "Yes."}, ASKED[0]]
    for messages in (ASKED, talk):
        ids = hosted.talk([Turn(message["role"], message["content"]) for message in messages])
        reply = served.client().chat.completions.create(model=name, messages=messages)
        assert said(reply) == expected(hosted, ids)
        assert reply.usage.prompt_tokens == len(ids)
        assert reply.choices[0].finish_reason == ("length" if reply.usage.completion_tokens == 12 else "stop")
        assert reply.object == "chat.completion"


def test_the_chat_template_is_used(served: Running) -> None:
    client = served.client()
    talk = client.chat.completions.create(model="templated", messages=ASKED)
    text = client.completions.create(model="gpt2", prompt=f"[user]{ASKED[0]['content']}[bot]")
    assert said(talk) == [text.choices[0].text.strip()]
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}]
    assert said(client.chat.completions.create(model="templated", messages=parts)) == said(talk)


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_those_of_generate_and_streams_are_the_whole(name: str, served: Running) -> None:
    client, hosted = served.client(), served.models[name]
    asked = {"model": name, "messages": ASKED, "temperature": 0.8, "top_p": 0.9, "seed": 5, "n": 3, "max_tokens": 20}
    reply = client.chat.completions.create(**asked)
    ids = hosted.talk([Turn("user", ASKED[0]["content"])])
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 3, "seed": 5}
    assert said(reply) == expected(hosted, ids, max_new_tokens=20, **options)
    assert len(set(said(reply))) == 3
    texts, finishes, usage = ["", "", ""], {}, None
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == said(reply)
    assert finishes == {choice.index: choice.finish_reason for choice in reply.choices}
    assert usage == reply.usage
    assert len(chunks) > 12
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_without_a_seed_answers_differ(served: Running) -> None:
    asked = {"model": "gpt2", "prompt": TEXT, "temperature": 1.5, "max_tokens": 30}
    assert len({served.client().completions.create(**asked).choices[0].text for _ in range(4)}) == 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_completion_goes_on_where_the_prompt_ends(name: str, served: Running) -> None:
    client, hosted = served.client(), served.models[name]
    tokenizer, model = hosted.finished.tokenizer, hosted.finished.model
    ids = hosted.text(TEXT)
    output = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=hosted.endings)[0]
    whole = tokenizer.decode(output, skip_special_tokens=True)
    assert TEXT + client.completions.create(model=name, prompt=TEXT).choices[0].text == whole
    assert client.completions.create(model=name, prompt=TEXT, echo=True).choices[0].text == whole
    assert client.completions.create(model=name, prompt=ids, echo=True).choices[0].text == whole
    streamed = client.completions.create(model=name, prompt=TEXT, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole
    both = client.completions.create(model=name, prompt=[TEXT, "Bye"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == whole[len(TEXT) :]
    assert both.usage.prompt_tokens == len(ids) + len(hosted.text("Bye"))
    by_ids = client.completions.create(model=name, prompt=[ids, hosted.text("Bye")])
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in both.choices]


def test_an_encoder_decoder_answers_a_completion(served: Running) -> None:
    hosted = served.models["t5"]
    [text] = expected(hosted, hosted.text(TEXT))
    assert served.client().completions.create(model="t5", prompt=TEXT).choices[0].text == text
    with pytest.raises(openai.BadRequestError, match="echo is for decoder-only"):
        served.client().completions.create(model="t5", prompt=TEXT, echo=True)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_stop_strings_end_an_answer_and_are_no_part_of_it(name: str, served: Running) -> None:
    client = served.client()
    whole = client.completions.create(model=name, prompt=TEXT, max_tokens=40).choices[0].text
    stop = whole[9:12]
    cut = whole[: whole.index(stop)]
    for stops in (stop, ["never there", stop]):
        reply = client.completions.create(model=name, prompt=TEXT, max_tokens=40, stop=stops)
        assert (reply.choices[0].text.rstrip(), reply.choices[0].finish_reason) == (cut.rstrip(), "stop")
        chunks = list(client.completions.create(model=name, prompt=TEXT, max_tokens=40, stop=stops, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens < 40


@pytest.mark.parametrize("name", KINDS)
def test_logprobs_are_those_of_one_forward_pass(name: str, served: Running) -> None:
    client, hosted = served.client(), served.models[name]
    asked = {"model": name, "messages": ASKED, "temperature": 2.0, "seed": 1, "max_tokens": 6}
    entries = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    prompt, model = hosted.talk([Turn("user", ASKED[0]["content"])]), hosted.finished.model
    [sampled] = generated(hosted, prompt, seed=1, temperature=2.0)
    with torch.no_grad():
        if hosted.finished.is_encoder_decoder:
            start = [model.generation_config.decoder_start_token_id]
            logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + sampled[:-1]])).logits[0]
        else:
            logits = model(torch.tensor([prompt + sampled[:-1]])).logits[0, len(prompt) - 1 :]
    for place, entry in enumerate(entries):
        row = logits[place].log_softmax(-1)
        assert entry.logprob == pytest.approx(float(row[sampled[place]]), abs=1e-4)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    streamed = client.chat.completions.create(**asked, logprobs=True, stream=True)
    found = [t.logprob for c in streamed for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert found == pytest.approx([entry.logprob for entry in entries])


def generated(hosted: Any, prompt: list[int], **options: Any) -> list[list[int]]:
    from src.models.generation import generate_ids
    from src.models.generation_options import GenerationOptions

    ids = torch.tensor([prompt])
    decoding = GenerationOptions(max_new_tokens=6, do_sample=True, **options)
    found = generate_ids(
        hosted.finished.model, hosted.finished.tokenizer, ids, torch.ones_like(ids), decoding, numbers=[0]
    ).tolist()
    return [row[: next((n for n, id in enumerate(row) if id in hosted.endings), len(row))] for row in found]


def test_logprobs_of_a_completion_have_offsets(served: Running) -> None:
    reply = served.client().completions.create(model="gpt2", prompt=TEXT, logprobs=2, max_tokens=5, echo=False)
    found = reply.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 5
    assert all(found.token_logprobs[n] == pytest.approx(max(found.top_logprobs[n].values())) for n in range(5))
    assert found.text_offset == [sum(map(len, found.tokens[:n])) for n in range(5)]


def test_penalties_are_the_documented_formula(served: Running) -> None:
    """logit - presence * (count > 0) - frequency * count + bias, greedy, a token at a time."""
    hosted = served.models["gpt2"]
    ids, bias = hosted.text(TEXT), {7: 3.0, 8: -100.0}
    written: list[int] = []
    for _ in range(12):
        with torch.no_grad():
            logits = hosted.finished.model(torch.tensor([ids + written])).logits[0, -1]
        for id, amount in bias.items():
            logits[id] += amount
        for id in set(written):
            logits[id] -= 1.5 + 0.5 * written.count(id)
        written.append(int(logits.argmax()))
        if written[-1] in hosted.endings:
            break
    whole = hosted.finished.tokenizer.decode(ids + written, skip_special_tokens=True)
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {"7": 3, "8": -100}}
    reply = served.client().completions.create(model="gpt2", prompt=TEXT, **penalties)
    assert TEXT + reply.choices[0].text == whole


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_is_not_openais_goes_as_extra_body(name: str, served: Running) -> None:
    client, hosted = served.client(), served.models[name]
    ids = hosted.talk([Turn("user", ASKED[0]["content"])])
    for extra, options in (
        ({"top_k": 4}, {"do_sample": True, "top_k": 4, "seed": 2}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"min_tokens": 9}, {"min_new_tokens": 9}),
    ):
        reply = client.chat.completions.create(model=name, messages=ASKED, extra_body=extra, seed=2)
        assert said(reply) == expected(hosted, ids, **options)


def test_a_model_that_searches_by_beams_does_so_here(served: Running) -> None:
    client, hosted = served.client(), served.models["beams"]
    ids = hosted.talk([Turn("user", ASKED[0]["content"])])
    [best] = expected(hosted, ids, num_beams=3)
    assert said(client.chat.completions.create(model="beams", messages=ASKED)) == [best]
    chunks = list(client.chat.completions.create(model="beams", messages=ASKED, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == best
    greedy = client.chat.completions.create(model="beams", messages=ASKED, temperature=0)
    assert said(greedy) == expected(hosted, ids)


def test_the_servers_own_options_hold_where_nothing_is_said(served: Running) -> None:
    from src.models.generation_options import GenerationOptions
    from src.serving.hosted import Hosted
    from tests.serving.ports import running

    words = GenerationOptions(
        max_new_tokens=9, bad_words=["e"], no_repeat_ngram_size=2, do_sample=True, top_k=5, seed=3
    )
    finished = served.models["gpt2"].finished
    with running({"own": Hosted("own", finished, words)}) as server:
        hosted, client = server.models["own"], server.client()
        ids = hosted.talk([Turn("user", ASKED[0]["content"])])
        options = {"max_new_tokens": 9, "bad_words": ["e"], "no_repeat_ngram_size": 2}
        reply = client.chat.completions.create(model="own", messages=ASKED)
        assert said(reply) == expected(hosted, ids, do_sample=True, top_k=5, seed=3, **options)
        greedy = client.chat.completions.create(model="own", messages=ASKED, temperature=0)
        assert said(greedy) == expected(hosted, ids, **options)


def test_beams_search_under_the_servers_own_options(served: Running) -> None:
    from src.models.generation_options import GenerationOptions
    from src.serving.hosted import Hosted
    from tests.serving.ports import running

    finished = served.models["bart"].finished
    options = {"max_new_tokens": 9, "num_beams": 3, "bad_words": ["e", "<unk>"], "no_repeat_ngram_size": 2}
    with running({"own": Hosted("own", finished, GenerationOptions(**options))}) as server:
        ids = server.models["own"].talk([Turn("user", ASKED[0]["content"])])
        reply = server.client().chat.completions.create(model="own", messages=ASKED)
        assert said(reply) == expected(server.models["own"], ids, **options)


def test_beams_search_under_all_of_the_models_own_settings(served: Running) -> None:
    from dataclasses import replace

    from src.models.generation import generate_text
    from src.models.generation_options import GenerationOptions, ModelOptions
    from src.serving.hosted import Hosted
    from tests.serving.ports import running

    model = copy.deepcopy(served.models["bart"].finished.model)
    model.generation_config.update(
        max_new_tokens=12, num_beams=3, encoder_no_repeat_ngram_size=1, early_stopping="never", length_penalty=3.0
    )
    finished = replace(served.models["bart"].finished, model=model)
    with running({"own": Hosted("own", finished, ModelOptions.of(model))}) as server:
        prompt = torch.tensor([server.models["own"].talk([Turn("user", ASKED[0]["content"])])])
        given = (model, finished.tokenizer, prompt, torch.ones_like(prompt))
        wanted = generate_text(*given, ModelOptions.of(model))
        assert wanted != generate_text(*given, GenerationOptions(max_new_tokens=12, num_beams=3))
        assert said(server.client().chat.completions.create(model="own", messages=ASKED)) == wanted
