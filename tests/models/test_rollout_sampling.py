import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import GenerationConfig

from src.errors import ParleyError
from src.models.logits import token_rules
from src.models.lora import add_lora
from src.models.responses import encode
from src.models.rollout import RolloutOptions, row_seeds, sample_responses

GREEDY = {"top_k": 1, "min_new_tokens": 3}
TEXTS = ["Anna: Are you coming at 7:30?", "Ben: Yes.", "The quick brown fox jumps over the lazy dog. Ben: Yes, I will."]


def queries(tokenizer, model, texts=TEXTS):
    side = "right" if model.config.is_encoder_decoder else "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    return encoded["input_ids"], encoded["attention_mask"]


def sample(model, tokenizer, options, seed=0, texts=TEXTS, **kwargs):
    ids, mask = queries(tokenizer, model, texts)
    generator = torch.Generator().manual_seed(seed)
    return sample_responses(
        model.eval(),
        ids,
        mask,
        options,
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        generator=generator,
        **kwargs,
    )


def test_takes_the_tokens_that_transformers_takes(model, tokenizer):
    ids, mask = queries(tokenizer, model)
    options = RolloutOptions(output_min_length=20, output_max_length=20, **GREEDY)
    ours = sample(model, tokenizer, options)
    config = GenerationConfig(
        max_new_tokens=20,
        min_new_tokens=3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.generation_config.decoder_start_token_id,
    )
    theirs = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    theirs = theirs[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :]
    assert ours.ids.shape == theirs.shape
    for row in range(len(ids)):
        length = int(ours.mask[row].sum())
        assert ours.ids[row, :length].tolist() == theirs[row, :length].tolist()


@pytest.mark.parametrize("forced", [True, False])
def test_tokens_that_a_models_settings_force_or_forbid_are_as_in_transformers(model, tokenizer, forced):
    """And what cannot be drawn for them has no part in the KL."""
    head, generator = model.eval().get_output_embeddings(), torch.Generator().manual_seed(0)
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator))  # tied, it repeats itself
    ids, mask = queries(tokenizer, model)
    start, settings = 1 if model.config.is_encoder_decoder else ids.shape[1], model.generation_config
    settings.update(max_new_tokens=12, min_new_tokens=12, eos_token_id=tokenizer.eos_token_id)
    settings.update(pad_token_id=tokenizer.pad_token_id, forced_eos_token_id=None)
    settings.forced_bos_token_id = 77 if forced else None
    forces = forced and model.config.is_encoder_decoder

    def theirs():
        return model.generate(input_ids=ids, attention_mask=mask)[:, start:]

    before = theirs()
    settings.suppress_tokens = list({*before[:, 4].tolist()} - {77})
    without = theirs()
    settings.begin_suppress_tokens = without[:, int(forces)].unique().tolist()
    later = theirs()
    settings.bad_words_ids = later[:, 2:4].tolist()
    expected = theirs()
    assert not torch.equal(before, without)
    assert not torch.equal(without, later)
    assert not torch.equal(later, expected)
    options = RolloutOptions(output_min_length=12, output_max_length=12, top_k=1, min_new_tokens=12)
    rules = token_rules(model, tokenizer)
    assert sample(model, tokenizer, options, banned=rules).ids.tolist() == expected.tolist()
    drawable = sample(model, tokenizer, replace(options, top_k=0), banned=rules).drawable.mask(len(tokenizer))
    assert not drawable[:, :, settings.suppress_tokens].any()
    assert (drawable[:, 0].sum(-1) == 1).all() == forces


def test_each_row_answers_as_it_does_alone_whichever_rows_end_before_it(model, tokenizer):
    together = sample(model, tokenizer, RolloutOptions(output_min_length=3, output_max_length=25, **GREEDY))
    lengths = together.mask.sum(-1).tolist()
    assert len(set(lengths)) > 1
    for row, text in enumerate(TEXTS):
        options = RolloutOptions(output_min_length=lengths[row], output_max_length=lengths[row], **GREEDY)
        alone = sample(model, tokenizer, options, texts=[text])
        assert alone.ids[0].tolist() == together.ids[row, : lengths[row]].tolist()


def test_rows_that_ended_cost_nothing(model, tokenizer):
    rows = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: rows.append(out.shape[:-1].numel())
    )
    responses = sample(model, tokenizer, RolloutOptions(output_min_length=2, output_max_length=30))
    handle.remove()
    assert sum(rows) == int(responses.mask.sum())


def test_eos_is_kept_and_counted_and_follows_the_minimum(model, tokenizer):
    eos = tokenizer.eos_token_id
    bias = torch.zeros(model.config.vocab_size)
    bias[eos] = 6.0  # makes EOS likely everywhere
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: out + bias[: out.shape[-1]])
    responses = sample(model, tokenizer, RolloutOptions(min_new_tokens=4, output_min_length=40, output_max_length=40))
    assert responses.has_eos.all()
    for ids, mask in zip(responses.ids, responses.mask, strict=True):
        length = int(mask.sum())
        assert length >= 5
        assert mask[:length].all()
        assert ids[length - 1] == eos
        assert eos not in ids[: length - 1].tolist()
        assert (ids[length:] == tokenizer.pad_token_id).all()


def test_maxima_lie_between_the_bounds_and_follow_the_generator(model, tokenizer):
    eos = tokenizer.eos_token_id
    model.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.tensor([eos]), -torch.inf)
    )
    options = RolloutOptions(output_min_length=3, output_max_length=6)
    draws = [sample(model, tokenizer, options, seed) for seed in range(12)]
    lengths = torch.cat([draw.mask.sum(-1) for draw in draws])
    assert set(lengths.tolist()) == {3, 4, 5, 6}
    assert not torch.cat([draw.has_eos for draw in draws]).any()
    again = sample(model, tokenizer, options, 7)
    assert torch.equal(again.ids, draws[7].ids)


def test_a_seed_draws_the_same_whatever_else_is_in_the_batch(model, tokenizer):
    options = RolloutOptions(output_min_length=4, output_max_length=12, top_p=0.9)
    seeds = row_seeds(seed=3, iteration=5, numbers=[8, 0, 1], answers=1)
    together = sample(model, tokenizer, options, seeds=seeds)
    order = [2, 0]
    apart = sample(model, tokenizer, options, texts=[TEXTS[row] for row in order], seeds=[seeds[row] for row in order])
    for place, row in enumerate(order):
        answers = [each.ids[index][each.mask[index].bool()] for each, index in ((apart, place), (together, row))]
        assert torch.equal(*answers)


def test_each_iteration_prompt_and_answer_has_a_seed_of_its_own():
    seeds = [seed for run in (0, 1) for iteration in (0, 1, 2) for seed in row_seeds(run, iteration, [0, 1, -1], 4)]
    assert len(set(seeds)) == len(seeds) == 72
    assert row_seeds(1, 2, [0, 7], 2) == row_seeds(1, 2, [0], 2) + row_seeds(1, 2, [7], 2)


def test_samples_follow_the_models_distribution(base):
    from src.models.loading import load_model, load_tokenizer

    model, tokenizer = load_model(base("t5")), load_tokenizer(base("t5"))
    texts = ["Ben: Yes."] * 4000
    drawn = sample(
        model, tokenizer, RolloutOptions(min_new_tokens=0, output_min_length=1, output_max_length=1), 3, texts
    )
    ids, mask = queries(tokenizer, model, texts[:1])
    start = torch.tensor([[model.generation_config.decoder_start_token_id]])
    expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[0, 0].softmax(-1)
    observed = torch.bincount(drawn.ids[:, 0], minlength=len(expected)) / 4000
    assert (observed - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()


def test_an_adapter_counts_and_its_weights_come_back_bit_for_bit(model, tokenizer, targets):
    options = RolloutOptions(output_min_length=12, output_max_length=12, **GREEDY)
    plain = sample(model, tokenizer, options)
    adapted = add_lora(model, LoraConfig(r=4, lora_alpha=64, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before = copy.deepcopy(adapted.state_dict())
    sampled = sample(adapted, tokenizer, options)
    assert sampled.ids.tolist() != plain.ids.tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())


def test_takes_the_encoders_output_where_it_is_known(base):
    from src.models.loading import load_model, load_tokenizer

    model, tokenizer = load_model(base("bart")), load_tokenizer(base("bart"))
    options = RolloutOptions(output_min_length=9, output_max_length=9)
    with torch.no_grad():
        hidden = encode(model, *queries(tokenizer, model))
    assert torch.equal(
        sample(model, tokenizer, options).ids, sample(model, tokenizer, options, encoder_hidden=hidden).ids
    )


@pytest.mark.parametrize("kind", ["gpt2"])
def test_a_response_ends_where_positions_do_and_a_prompt_that_leaves_none_is_refused(kind, model, tokenizer):
    model.config.max_position_embeddings = 40
    _, mask = queries(tokenizer, model)
    longest = int(mask.sum(-1).max())
    responses = sample(
        model, tokenizer, RolloutOptions(min_new_tokens=100, output_min_length=100, output_max_length=100)
    )
    assert (responses.mask.sum(-1) == 40 - mask.sum(-1)).all()
    model.config.max_position_embeddings = longest
    with pytest.raises(ParleyError, match=f"a prompt has {longest} tokens"):
        sample(model, tokenizer, RolloutOptions())


@pytest.mark.parametrize("kind", ["t5"])
def test_probabilities_that_are_not_finite_are_said(kind, model, tokenizer):
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: out * torch.nan)
    with pytest.raises(ParleyError, match="not finite"):
        sample(model, tokenizer, RolloutOptions())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"top_p": 0},
        {"top_k": -1},
        {"output_min_length": 0},
        {"output_min_length": 500},
        {"min_new_tokens": 401},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ParleyError, match="rollout"):
        RolloutOptions(**wrong)


def test_several_answers_to_a_query_are_those_of_the_query_said_several_times(model, tokenizer):
    options = RolloutOptions(min_new_tokens=2, output_min_length=3, output_max_length=12)
    seeds = row_seeds(3, 1, range(3), 4)
    once = sample(model, tokenizer, options, seeds=seeds, answers=4)
    repeated = sample(model, tokenizer, options, seeds=seeds, texts=[text for text in TEXTS for _ in range(4)])
    assert torch.equal(once.ids, repeated.ids)
    assert torch.equal(once.mask, repeated.mask)
    assert len({tuple(row) for row in once.ids[:4].tolist()}) > 1
