"""Prompts beside the published format, the DataModules' encoding and chat templates by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from src.contracts import Example, Turn
from src.datamodules.encoding import encode_examples
from src.errors import ParleyError
from src.inference.chat import Exchange, Talk
from src.inference.loading import FinishedModel
from src.inference.prompts import PromptEncoder, choose_shots, few_shot, resolve_style, turn_ids
from src.models.generation_options import GenerationOptions

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


def with_template(finished: FinishedModel, template: str = TEMPLATE) -> FinishedModel:
    tokenizer = type(finished.tokenizer).from_pretrained(finished.name)
    tokenizer.chat_template = template
    return replace(finished, tokenizer=tokenizer)


def published_make_prompt(dialogues: list[tuple[str, str]]) -> str:
    """The notebook's own loop; the last dialogue is asked for."""
    start_prompt, end_prompt, stop_sequence = "Dialogue:\n", "\nWhat was going on? ", "\n\n\n"
    prompt = ""
    for number, (dialogue, summary) in enumerate(dialogues):
        if number == len(dialogues) - 1:
            prompt = prompt + f"{start_prompt}{dialogue}{end_prompt}"
        else:
            prompt = prompt + f"{start_prompt}{dialogue}{end_prompt}{summary}\n{stop_sequence}\n"
    return prompt


def test_few_shot_is_the_published_format() -> None:
    dialogues = [("A: Hi.\nB: Hello.", "They greet."), ("A: 7:30?", "A asks."), ("B: Bye.", "")]
    template = "Dialogue:\n{}\nWhat was going on? "
    shots = [Example(template.format(dialogue), summary) for dialogue, summary in dialogues[:-1]]
    assert few_shot(template.format("B: Bye."), shots) == published_make_prompt(dialogues)
    stripped = [Example(shot.prompt.rstrip(), shot.target) for shot in shots]
    assert few_shot(template.format("B: Bye.").rstrip(), stripped) == published_make_prompt(dialogues).rstrip()


def test_shots_never_hold_what_is_asked() -> None:
    pool = [Example(str(number), "x") for number in range(3)]
    assert [shot.prompt for shot in choose_shots(pool, 2, Example("0", ""))] == ["1", "2"]
    with pytest.raises(ParleyError, match="only 2 examples"):
        choose_shots(pool, 3, Example("1", ""))


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("limit", [1000, 12])
def test_prompts_are_encoded_as_in_training(
    architecture: str, limit: int, finished: Callable[[str], FinishedModel]
) -> None:
    model = finished(architecture)
    examples = [Example("Summarize: Anna likes tea, 안녕!\n\nSummary: ", "t"), Example("Hi", "t")]
    for style in ("plain",) if model.is_encoder_decoder else ("plain", "published"):
        expected = encode_examples(
            examples,
            model.tokenizer,
            is_encoder_decoder=model.is_encoder_decoder,
            max_source_length=limit,
            max_target_length=8,
            format=style,
        )
        encoded = PromptEncoder(model, style, 8, max_source_length=limit).encode(examples)
        assert encoded == [row["prompt_ids"] for row in expected]


def test_styles(finished: Callable[[str], FinishedModel]) -> None:
    gpt2, t5 = finished("gpt2"), finished("t5")
    assert resolve_style("auto", gpt2, turns=True, trained=True) == "published"
    assert resolve_style("auto", gpt2, turns=False, trained=True) == "plain"
    assert resolve_style("auto", gpt2, turns=False, trained=False) == "raw"
    assert resolve_style("plain", gpt2, turns=False, trained=False) == "plain"
    assert resolve_style("raw", t5, turns=False, trained=False) == "plain"
    assert resolve_style("auto", with_template(gpt2), turns=False, trained=False) == "chat"
    with pytest.raises(ParleyError, match="no chat template"):
        resolve_style("chat", gpt2, turns=False, trained=False)
    with pytest.raises(ParleyError, match="encoder-decoder"):
        resolve_style("published", t5, turns=False, trained=False)


def test_raw_goes_on_where_the_prompt_ends(finished: Callable[[str], FinishedModel]) -> None:
    model = finished("gpt2")
    [ids] = PromptEncoder(model, "raw", 8).encode([Example("이순신은 조선", "")])
    assert model.tokenizer.decode(ids) == "이순신은 조선"


def test_a_text_that_begins_with_the_first_token_gets_no_second(finished: Callable[[str], FinishedModel]) -> None:
    for model in (finished("llama"), finished("gpt2")):
        bos = str(model.tokenizer.bos_token)
        [ids] = PromptEncoder(model, "raw", 8, special_tokens=True).encode([Example(f"{bos}Hi", "")])
        assert (ids.count(model.tokenizer.bos_token_id), ids[0]) == (1, model.tokenizer.bos_token_id)
        assert model.tokenizer.decode(ids[1:]) == "Hi"


def test_turns(finished: Callable[[str], FinishedModel]) -> None:
    model = with_template(finished("gpt2"))
    turns = [Turn("user", "안녕?"), Turn("assistant", "네."), Turn("user", "뭐 해?")]
    decoded = {style: model.tokenizer.decode(turn_ids(turns, model, style)) for style in ("published", "chat", "plain")}
    assert decoded == {
        "published": "<s>안녕?</s><s>네.</s><s>뭐 해?</s><s>",
        "chat": "[user]안녕?</s>[assistant]네.</s>[user]뭐 해?</s>[bot]",
        "plain": "안녕?\n네.</s>뭐 해?\n",
    }


def test_shots_are_turns_where_there_are_turns(finished: Callable[[str], FinishedModel]) -> None:
    model = with_template(finished("gpt2"))
    shots = [[Example("1+1?", "2")]]
    [ids] = PromptEncoder(model, "chat", 8, system="Be short.").encode([Example("2+2?", "")], shots)
    assert model.tokenizer.decode(ids) == "[system]Be short.</s>[user]1+1?</s>[assistant]2</s>[user]2+2?</s>[bot]"
    [ids] = PromptEncoder(model, "published", 8).encode([Example("2+2?", "")], shots)
    assert model.tokenizer.decode(ids) == "<s>1+1?</s><s>2</s><s>2+2?</s><s>"


def test_the_window(finished: Callable[[str], FinishedModel], caplog: pytest.LogCaptureFixture) -> None:
    model = finished("gpt2")
    long = Example("word " * 3000, "")
    with caplog.at_level("WARNING", logger="src"):
        [ids, short] = PromptEncoder(model, "raw", 100).encode([long, Example("Hi", "")])
    assert (len(ids), len(short)) == (924, 2)
    assert "1 of 2 prompts truncated to 924 tokens" in caplog.text
    [ids] = PromptEncoder(finished("bart"), "plain", 100).encode([long])
    assert (len(ids), ids[-1]) == (1024, finished("bart").tokenizer.eos_token_id)
    assert len(PromptEncoder(finished("t5"), "plain", 100).encode([long])[0]) > 3000
    for problem, said in (
        (lambda: PromptEncoder(model, "raw", 1024), "max_new_tokens is 1024"),
        (lambda: PromptEncoder(model, "raw", 8, max_source_length=1), "max_source_length is 1"),
        (lambda: PromptEncoder(model, "raw", 8, system="x"), "only a chat template"),
        (lambda: turn_ids([Turn("user", "x")], with_template(model, "{{ raise_exception('no') }}"), "chat"), "fails"),
    ):
        with pytest.raises(ParleyError, match=said):
            problem()


def test_a_talk_is_asked_as_it_was_trained(finished: Callable[[str], FinishedModel]) -> None:
    turns = [Turn(("user", "assistant")[place % 2], f"line {place}") for place in range(8)]
    example = Example("", turns[-1].content, turns=tuple(turns[:-1]))
    for architecture, style in (("gpt2", "published"), ("gpt2", "plain"), ("t5", "plain"), ("bart", "plain")):
        model = finished(architecture)
        for limit in (1000, 30):
            [trained] = encode_examples(
                [example],
                model.tokenizer,
                is_encoder_decoder=model.is_encoder_decoder,
                max_source_length=limit,
                max_target_length=99,
                format=style,
            )
            assert (trained["turns_dropped"] > 0) == (limit == 30)
            asked = PromptEncoder(model, style, 8, max_source_length=limit).encode([example])
            assert asked == [trained["prompt_ids"]]
            talk = Talk(model, style, GenerationOptions(max_new_tokens=8), context=limit + 8)
            said = turns[:-2]
            talk.exchanges = [Exchange(said[n].content, [said[n + 1].content]) for n in range(0, 6, 2)]
            assert limit == 30 or talk._prompt(turns[-2].content)[0] == trained["prompt_ids"]
    model = finished("gpt2")
    [ids] = PromptEncoder(with_template(model), "chat", 8, system="Be short.").encode([example])
    assert model.tokenizer.decode(ids).startswith("[system]Be short.</s>[user]line 0</s>[assistant]line 1</s>")
    with pytest.raises(ParleyError, match="these are talks"):
        PromptEncoder(model, "published", 8).encode([example], [[example]])
