"""Decoding beside transformers' own `generate`, and what it cannot do by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import SentencePieceBPETokenizer
from transformers import PreTrainedTokenizerFast

from src.errors import ParleyError
from src.models.draws import row_seed
from src.models.generation import generate_ids, generate_text
from src.models.generation_options import GenerationOptions
from src.models.loading import load_model, load_tokenizer
from src.models.logits import BannedTexts, Recorder, SeededSampling

ARCHITECTURES = ("t5", "bart", "gpt2", "llama")
PROMPT = "Anna: Are you coming at 7:30? 안녕"
PROMPTS = ["Hi", PROMPT, "What was going on?", "Ben: <b>yes</b> & no"]


@pytest.fixture(scope="session")
def lively(tiny_base: Callable[..., Path]) -> Callable[[str], tuple]:
    """Models that do not repeat one token, as random weights do."""
    made: dict[str, tuple] = {}

    def make(architecture: str) -> tuple:
        if architecture not in made:
            model, tokenizer = load_model(tiny_base(architecture)), load_tokenizer(tiny_base(architecture))
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.25 * torch.randn(parameter.shape, generator=generator)
            made[architecture] = model, tokenizer
        return made[architecture]

    return make


@pytest.fixture(params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, lively: Callable[[str], tuple]) -> tuple:
    return lively(request.param)


def batch(model, tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    side = "right" if model.config.is_encoder_decoder else "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    return encoded.input_ids, encoded.attention_mask


def by_transformers(model, tokenizer, texts: list[str], seed: int | None = None, **options) -> list[list[int]]:
    ids, mask = batch(model, tokenizer, texts)
    if seed is not None:
        torch.manual_seed(seed)
    output = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
    return output[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()


def by_us(model, tokenizer, texts: list[str], numbers: list[int] | None = None, **options) -> list[list[int]]:
    ids, mask = batch(model, tokenizer, texts)
    return generate_ids(model, tokenizer, ids, mask, GenerationOptions(**options), numbers=numbers).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"num_beams": 5},
        {"num_beams": 5, "no_repeat_ngram_size": 2, "num_return_sequences": 5, "length_penalty": 0.5},
    ],
    ids=["greedy", "penalties", "minimum", "beams", "returned beams"],
)
def test_search_is_transformers(pair: tuple, options: dict) -> None:
    beams = {"early_stopping": True} if "num_beams" in options else {}
    expected = by_transformers(*pair, PROMPTS, max_new_tokens=16, do_sample=False, **options, **beams)
    assert by_us(*pair, PROMPTS, max_new_tokens=16, **options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 0, "temperature": 0.7},
        {"top_k": 5},
        {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3},
        {"top_k": 0, "num_beams": 3},
    ],
    ids=["pure", "temperature", "top-k", "both", "beams"],
)
def test_sampling_with_a_seed_is_transformers_after_manual_seed(pair: tuple, options: dict) -> None:
    beams = {"early_stopping": True} if "num_beams" in options else {}
    for seed in (0, 7):
        expected = by_transformers(
            *pair, [PROMPT], seed=seed, max_new_tokens=16, do_sample=True, **{"top_p": 1.0, **options}, **beams
        )
        assert by_us(*pair, [PROMPT], max_new_tokens=16, do_sample=True, seed=seed, **options) == expected


@pytest.mark.parametrize("answers", [1, 3])
def test_without_a_seed_sampling_follows_the_process(pair: tuple, answers: int) -> None:
    options = {"max_new_tokens": 9, "do_sample": True, "top_p": 0.95, "num_return_sequences": answers}
    expected = by_transformers(*pair, PROMPTS, seed=3, top_k=0, **options)
    torch.manual_seed(3)
    assert by_us(*pair, PROMPTS, **options) == expected


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_prompt_is_read_once_for_all_its_answers(lively: Callable[[str], tuple], architecture: str) -> None:
    model, tokenizer = lively(architecture)
    read: list[int] = []
    embeddings = model.get_input_embeddings()
    with embeddings.register_forward_hook(lambda module, given, out: read.append(given[0].numel())):
        by_us(model, tokenizer, PROMPTS, max_new_tokens=3, min_new_tokens=3, do_sample=True, num_return_sequences=4)
    prompts = batch(model, tokenizer, PROMPTS)[0].numel()
    assert sum(read) == prompts - len(PROMPTS) + 3 * 4 * len(PROMPTS)  # each answer reads the last token itself


def test_a_seeded_row_does_not_depend_on_its_neighbours(pair: tuple) -> None:
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": True, "seed": 5, "num_return_sequences": 2}
    together = by_us(*pair, PROMPTS, **options)
    assert len({tuple(row) for row in together}) == 8
    for number, prompt in enumerate(PROMPTS):
        assert by_us(*pair, [prompt], numbers=[number], **options) == together[2 * number : 2 * number + 2]
    assert by_us(*pair, PROMPTS[::-1], numbers=[3, 2, 1, 0], **options)[:2] == together[6:]


def test_seeded_sampling_leaves_the_processes_random_state_alone(lively: Callable[[str], tuple]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for beams in (1, 2):
        by_us(*lively("gpt2"), PROMPTS, max_new_tokens=4, do_sample=True, seed=1, num_beams=beams)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_of_many_rows_have_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    rows = 20_000
    sampler = SeededSampling(1, range(rows), 1, temperature=0.8, top_k=4, top_p=1.0)
    drawn = sampler(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1)).argmax(-1)
    expected = torch.softmax(torch.where(logits < -0.5, -torch.inf, logits / 0.8), dim=-1)
    observed = torch.bincount(drawn, minlength=5) / rows
    assert torch.allclose(observed, expected, atol=4 * 0.5 / rows**0.5)
    assert observed[3] == 0
    assert row_seed(9, 0, 0) == 9
    assert len({row_seed(9, number, answer) for number in range(50) for answer in range(5)}) == 250


def test_batches_answer_as_single_prompts_do(pair: tuple) -> None:
    model, tokenizer = pair
    for options in (GenerationOptions(max_new_tokens=12), GenerationOptions(max_new_tokens=12, num_beams=3)):
        together = generate_text(model, tokenizer, *batch(model, tokenizer, PROMPTS), options)
        alone = [generate_text(model, tokenizer, *batch(model, tokenizer, [text]), options)[0] for text in PROMPTS]
        assert together == alone


@pytest.mark.parametrize("num_beams", [1, 4])
def test_banned_texts_never_occur(lively: Callable[[str], tuple], num_beams: int) -> None:
    for architecture in ("gpt2", "t5"):
        model, tokenizer = lively(architecture)
        ids, mask = batch(model, tokenizer, PROMPTS * (25 if num_beams == 1 else 5))
        options = {"max_new_tokens": 40, "do_sample": True, "seed": 2, "num_beams": num_beams}
        free = "\n".join(generate_text(model, tokenizer, ids, mask, GenerationOptions(**options)))
        pairs = [free[place : place + 2] for place in range(len(free) - 1)]
        common = sorted({text for text in pairs if text.isascii() and text.isalpha()}, key=pairs.count)[-8:]
        assert all(free.count(text) > 3 for text in common)
        banned = generate_text(model, tokenizer, ids, mask, GenerationOptions(**options, bad_words=common))
        assert not [text for text in common for answer in banned if text in answer]
        assert max(map(len, banned)) > 20


def test_a_banned_special_token_is_its_own_id(lively: Callable[[str], tuple]) -> None:
    for architecture in ARCHITECTURES:
        model, tokenizer = lively(architecture)
        ids, mask = batch(model, tokenizer, PROMPTS)
        free = GenerationOptions(max_new_tokens=60, do_sample=True, seed=2, num_return_sequences=10, temperature=3.0)
        banned = GenerationOptions(**{**vars(free), "bad_words": ["<unk>"]})
        config = banned.to_generation_config(model, tokenizer)
        assert config.suppress_tokens == [tokenizer.unk_token_id]
        assert tokenizer.unk_token_id in generate_ids(model, tokenizer, ids, mask, free)
        assert tokenizer.unk_token_id not in generate_ids(model, tokenizer, ids, mask, banned)


def test_banned_texts_in_other_alphabets() -> None:
    corpus = ["오늘 저녁에 뭐 먹을까요? 김치찌개 어때요?", "the dog and the hotdog"] * 5
    backend = SentencePieceBPETokenizer()
    backend.train_from_iterator(corpus, vocab_size=90, min_frequency=1, special_tokens=["<unk>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, unk_token="<unk>")
    ids = tokenizer.get_vocab()

    def refused(text: str, before: list[str]) -> set[str]:
        there = torch.tensor([[ids[piece] for piece in before]], dtype=torch.long)
        scores = BannedTexts([text], tokenizer, 0)(there, torch.zeros(1, len(ids)))
        return {piece for piece, id in ids.items() if scores[0, id] < 0}

    assert "김치찌개" not in refused("치찌", [])
    assert {piece for piece in ids if "dog" in piece} <= refused("dog", [])
    assert "g" in refused("dog", ["d", "o"])
    assert "g" not in refused("dog", ["o"])
    assert "개" in refused("찌개", ["찌"])
    assert "▁" not in refused("dog", [])
    assert refused(" dog", ["▁"]) >= {piece for piece in ids if piece.startswith("dog")}
    assert refused("漢字", []) == set()  # unknown to the tokenizer, so out of its reach


def test_a_banned_korean_text_is_refused_byte_by_byte(lively: Callable[[str], tuple]) -> None:
    _, tokenizer = lively("gpt2")
    pieces = tokenizer.tokenize("안")
    assert len(pieces) == 3
    there = torch.tensor([tokenizer.convert_tokens_to_ids(pieces[:2])])
    scores = BannedTexts(["안"], tokenizer, 0)(there, torch.zeros(1, len(tokenizer)))
    assert scores[0, tokenizer.convert_tokens_to_ids(pieces[2])] == -torch.inf
    assert BannedTexts(["안"], tokenizer, 2)(there, torch.zeros(1, len(tokenizer))).isfinite().all()


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(pair: tuple) -> None:
    model, tokenizer = pair
    ids, mask = batch(model, tokenizer, PROMPTS * 5)
    options = {"max_new_tokens": 30, "do_sample": True, "seed": 4}
    free = generate_text(model, tokenizer, ids, mask, GenerationOptions(**options))
    stop = next(letter for letter in "eatonsirhl" if sum(letter in text for text in free) > 3)
    stopped = GenerationOptions(**options, stop_strings=[stop, "\n\n\n"])
    assert generate_text(model, tokenizer, ids, mask, stopped) == [text.split(stop)[0].strip() for text in free]
    lengths = (generate_ids(model, tokenizer, ids, mask, stopped) != tokenizer.pad_token_id).sum(-1)
    assert lengths.float().mean() < 30 * 0.9  # it stopped; nothing was generated to be thrown away


def test_lengths_hold(pair: tuple) -> None:
    model, tokenizer = pair
    eos = tokenizer.eos_token_id
    ids, mask = batch(model, tokenizer, PROMPTS * 10)
    options = GenerationOptions(max_new_tokens=9, min_new_tokens=9, do_sample=True, temperature=3.0, seed=0)
    output = generate_ids(model, tokenizer, ids, mask, options)
    assert output.shape == (40, 9)
    assert eos not in output[:, :9]
    assert generate_ids(model, tokenizer, ids, mask, GenerationOptions(max_new_tokens=1)).shape == (40, 1)


def test_the_models_own_configuration_gives_tokens_not_decoding(tiny_base: Callable[..., Path]) -> None:
    model, tokenizer = load_model(tiny_base("bart")), load_tokenizer(tiny_base("bart"))
    plain = by_us(model, tokenizer, PROMPTS, max_new_tokens=8)
    own = model.generation_config
    own.min_length, own.num_beams, own.no_repeat_ngram_size, own.temperature, own.do_sample = 7, 4, 3, 0.2, True
    assert by_us(model, tokenizer, PROMPTS, max_new_tokens=8) == plain
    own.forced_bos_token_id = 77
    assert {row[0] for row in by_us(model, tokenizer, PROMPTS, max_new_tokens=8)} == {77}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"num_return_sequences": 2}, "raise num_beams"),
        ({"num_return_sequences": 3, "num_beams": 2, "do_sample": True}, "raise num_beams"),
        ({"bad_words": [""]}, "empty text"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"length_penalty": float("inf")}, "length_penalty is inf"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"seed": 2**63}, "below 2"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_contradictions_are_refused_in_one_line(options: dict, said: str) -> None:
    with pytest.raises(ParleyError, match=said) as error:
        GenerationOptions(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decoding", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=str)
def test_what_could_be_generated_is_recorded_along_the_answers(pair: tuple, decoding: dict) -> None:
    """No token twice and no early end: each place leaves out the very tokens that came before it, and EOS at first."""
    model, tokenizer = pair
    ids, mask = batch(model, tokenizer, ["Anna: Yes.", "Ben: No, I will not.", "Hi!"])
    options = GenerationOptions(max_new_tokens=8, min_new_tokens=4, no_repeat_ngram_size=1, **decoding)
    recorder = Recorder()
    answers = generate_ids(model, tokenizer, ids, mask, options, recorder=recorder)
    kept = recorder.drawable.mask(model.config.vocab_size)
    assert kept.shape == (*answers.shape, model.config.vocab_size)
    start = [model.generation_config.decoder_start_token_id] if model.config.is_encoder_decoder else None
    for row, answer in enumerate(answers.tolist()):
        length = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else len(answer)
        for place in range(length):
            before = start if start is not None else ids[row].tolist()
            banned = {*before, *answer[:place], *([tokenizer.eos_token_id] if place < 4 else [])}
            assert set((~kept[row, place]).nonzero().flatten().tolist()) == banned
            assert kept[row, place, answer[place]]
