"""Where answers end, for every part that must know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from src.contracts import Batch, Example
from src.datamodules.encoding import encode_examples
from src.inference.chat import Talk
from src.inference.export import export
from src.inference.loading import FinishedModel, load_finished
from src.models.endings import close_answer, decode_answers, ending_ids, until_end
from src.models.generation import generate_text
from src.models.generation_options import GenerationOptions
from src.models.loading import load_model, load_tokenizer
from src.models.reference import Reference
from src.models.rollout import RolloutOptions
from src.models.saving import save_model
from src.modules.checkpoint import describe
from src.modules.online.clock import PhaseClock
from src.modules.online.collector import Collector
from src.rewards import Reward

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"  # noqa: E501
PHI3 = CHATML.replace(
    "<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endfor %}{% if not add_generation_prompt %}</s>{% endif %}"
)


@pytest.fixture
def chatml(tiny_base: Callable[..., Path]) -> Callable[..., PreTrainedTokenizerBase]:
    """A tokenizer whose turns end with another token than EOS, special or merely added."""

    def make(template: str = CHATML, *, special: bool = True) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(tiny_base("llama"))
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
        tokenizer.chat_template = template
        return tokenizer

    return make


def saying(model: torch.nn.Module, script: list[int]) -> None:
    """Make a model say fixed tokens one after the other: each depends on the one before, and nothing else."""
    width, rows = model.config.hidden_size, model.get_input_embeddings().weight.shape[0]
    assert len(set(script)) == len(script) <= width
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if "norm" in name:
                parameter.fill_(1)
        embeddings, head = torch.zeros(rows, width), torch.zeros(rows, width)
        for place, token in enumerate(script):
            embeddings[token, place] = 1
            if place + 1 < len(script):
                head[script[place + 1], place] = 1
        model.config.tie_word_embeddings = False
        model.get_input_embeddings().weight.copy_(embeddings)
        model.get_output_embeddings().weight = torch.nn.Parameter(head)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("template", [CHATML, PHI3], ids=["chatml", "phi-3"])
def test_the_end_of_a_turn_ends_data_and_answers(
    chatml: Callable[..., PreTrainedTokenizerBase], template: str, special: bool
) -> None:
    tokenizer = chatml(template, special=special)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ending_ids(tokenizer) == [tokenizer.eos_token_id, end]
    [row] = encode_examples(
        [Example("Hi", "Yes, I will.")],
        tokenizer,
        is_encoder_decoder=False,
        max_source_length=90,
        max_target_length=90,
        format="chat",
    )
    assert row["target_ids"][-1] == end
    assert row["target_ids"][:-1] == tokenizer("Yes, I will.", add_special_tokens=False).input_ids
    [cut] = encode_examples(
        [Example("Hi", "Yes, I will.")],
        tokenizer,
        is_encoder_decoder=False,
        max_source_length=90,
        max_target_length=3,
        format="chat",
    )
    assert cut["target_ids"] == [*row["target_ids"][:2], end]


def test_other_templates_and_none(chatml: Callable[..., PreTrainedTokenizerBase]) -> None:
    eos = [chatml().eos_token_id]
    templates = [LLAMA2, "{{ messages.nothing.at.all }}", "{% for m in messages %}{{ m.content }}\n{% endfor %}", None]
    for template in [*templates, "{{ raise_exception('no') }}", "nothing of it"]:
        assert ending_ids(chatml(template)) == eos


def test_an_answer_is_closed_once(chatml: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = chatml()
    eos, end = ending_ids(tokenizer)
    newline, words = tokenizer("\n").input_ids, tokenizer("Yes").input_ids
    for tail in ([end], [end, *newline], [end, *newline, eos]):
        assert close_answer([*words, *tail], tokenizer, [eos, end]) == [*words, end]
    assert close_answer(words, tokenizer, [eos, end]) == [*words, eos]
    assert close_answer([end, *words], tokenizer, [eos, end]) == [end, *words, eos]
    assert close_answer(words, tokenizer, []) == words
    assert until_end([7, 8, end, 9], [eos, end]) == [7, 8]


@pytest.mark.parametrize("special", [True, False])
def test_generation_and_chat_stop_at_the_end_of_a_turn(
    chatml: Callable[..., PreTrainedTokenizerBase], tiny_base: Callable[..., Path], tmp_path: Path, special: bool
) -> None:
    tokenizer = chatml(special=special)
    model = load_model(tiny_base("llama"))
    model.resize_token_embeddings(len(tokenizer))
    newline = tokenizer.convert_ids_to_tokens(tokenizer("\n").input_ids[-1])
    said = [tokenizer.convert_tokens_to_ids(token) for token in (newline, "Y", "e", "s", "<|im_end|>", "n", "o")]
    saying(model, said)
    options = GenerationOptions(max_new_tokens=6)
    ids = torch.tensor([said[:1]])
    assert generate_text(model, tokenizer, ids, torch.ones_like(ids), options) == ["Yes"]
    pieces: list[str] = []
    talk = Talk(FinishedModel(model, tokenizer, "scripted"), "chat", options)
    exchange = talk.ask("Hi", write=pieces.append, forgot=lambda count: None)
    assert exchange.answer == "".join(pieces) == "Yes"
    save_model(model, tokenizer, tmp_path / "saved")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # and so do other libraries
    assert stock.generate(ids, max_new_tokens=6)[0].tolist() == said[:5]


def test_ids_beyond_the_vocabulary_do_not_count(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_base("gpt2"))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64))
    assert model.generation_config.eos_token_id == 50256
    assert ending_ids(tokenizer, model) == [tokenizer.eos_token_id]
    model.generation_config.suppress_tokens = [5, 50256]
    model.generation_config.bad_words_ids = [[6, 50256], [7]]
    config = GenerationOptions().to_generation_config(model, tokenizer)
    assert (config.suppress_tokens, config.bad_words_ids) == ([5], [[7]])
    assert config.bos_token_id == tokenizer.bos_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    finished = load_finished(str(tmp_path), device="cpu")
    assert ending_ids(finished.tokenizer, finished.model) == [tokenizer.eos_token_id]


def test_all_that_name_an_end_do(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_base("bart")), load_tokenizer(tiny_base("bart"))
    eos = tokenizer.eos_token_id
    model.generation_config.eos_token_id = [40, eos, 99_999, -1]
    model.generation_config.forced_bos_token_id = 77
    assert ending_ids(tokenizer, model) == [eos, 40]
    assert decode_answers(tokenizer, torch.tensor([[77, 50, 40, 51], [51, eos, 50, 50]]), [eos, 40]) == [
        tokenizer.decode([77, 50]),
        tokenizer.decode([51]),
    ]
    model.generation_config.temperature = 0.5  # contradicts greedy search: transformers would not save it
    save_model(model, tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["forced_bos_token_id"]) == ([eos, 40], 77)
    assert model.generation_config.eos_token_id == [40, eos, 99_999, -1]


def test_a_whole_models_checkpoint_keeps_its_settings(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(tiny_base("bart"))
    model.generation_config.update(eos_token_id=[2, 40], forced_bos_token_id=77, suppress_tokens=[9], num_beams=3)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"parley": describe(model), "state_dict": state}, tmp_path / "whole.ckpt")
    export(tmp_path / "whole.ckpt", tmp_path / "out", merge=False, base_model=None, overwrite=False)
    for place in ("whole.ckpt", "out"):
        own = load_finished(str(tmp_path / place), device="cpu").model.generation_config
        assert (own.eos_token_id, own.forced_bos_token_id, own.suppress_tokens) == ([2, 40], 77, [9])
        assert own.num_beams == 3


def test_a_rollout_s_answers_end_where_turns_do(
    chatml: Callable[..., PreTrainedTokenizerBase], tiny_base: Callable[..., Path]
) -> None:
    tokenizer, model = chatml(), load_model(tiny_base("llama"))
    model.resize_token_embeddings(len(tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    first, second, third = tokenizer("What a day", add_special_tokens=False).input_ids[:3]
    saying(model, [first, second, third, end])
    model.get_output_embeddings().weight.data.mul_(50)  # so certainly that sampling says nothing else
    seen: list[str] = []

    class Listener(Reward):
        def __call__(self, prompts: list[str], responses: list[str]) -> torch.Tensor:
            seen.extend(responses)
            return torch.ones(len(responses))

    options = RolloutOptions(min_new_tokens=0, output_min_length=12, output_max_length=12)
    collector = Collector(model.eval(), Reference(model, is_continued=False), tokenizer, Listener(), options)
    query = torch.tensor([[first]] * 2)
    batch = Batch(
        input_ids=query,
        attention_mask=torch.ones_like(query),
        labels=query,
        prompt_ids=query,
        prompt_attention_mask=torch.ones_like(query),
        id=["0", "1"],
        prompt=["What"] * 2,
        references=[["day"]] * 2,
        is_filler=[False, False],
        index=[0, 1],
    )
    rollout = collector.collect(batch, None, PhaseClock(torch.device("cpu")), seed=0, iteration=0)
    assert rollout.response_ids.tolist() == [[second, third, end]] * 2
    assert rollout.has_eos.all()
    assert seen == [tokenizer.decode([second, third]).strip()] * 2
    model.generation_config.begin_suppress_tokens = [second]
    collector = Collector(model, Reference(model, is_continued=False), tokenizer, Listener(), options)
    rollout = collector.collect(batch, None, PhaseClock(torch.device("cpu")), seed=0, iteration=0)
    assert second not in rollout.response_ids[:, 0].tolist(), "the model's own settings forbid it"
