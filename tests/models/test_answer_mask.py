"""Where generated answers end."""

import torch

from src.models.endings import answer_mask
from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions


def test_an_answer_ends_with_its_end_or_with_what_stops_it(model, tokenizer):
    texts = ["Anna: Are you", "Ben: Yes, I will bring", "The quick"]
    side = "right" if model.config.is_encoder_decoder else "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    given = encoded["input_ids"], encoded["attention_mask"]
    free = generate_ids(model, tokenizer, *given, GenerationOptions(max_new_tokens=24, min_new_tokens=24))
    stop = next(text for id in free[0, 3:].tolist() if (text := tokenizer.decode([id]).strip()))
    options = GenerationOptions(max_new_tokens=24, stop_strings=[stop], min_new_tokens=24)
    ids = generate_ids(model, tokenizer, *given, options)
    mask = answer_mask(ids, [tokenizer.eos_token_id], tokenizer, [stop])
    assert mask[0].sum() < 24
    for row, kept in zip(ids, mask, strict=True):
        length = int(kept.sum())
        assert kept[:length].all()
        whole, shorter = (tokenizer.decode(row[:size], skip_special_tokens=True) for size in (length, length - 1))
        assert stop not in shorter
        assert stop in whole or length == ids.shape[1]


def test_an_end_counts_and_what_follows_does_not(model, tokenizer):
    ids = torch.tensor([[7, 8, 2, 0, 0], [2, 2, 2, 2, 2], [7, 8, 9, 7, 8], [7, 1, 2, 9, 9]])
    expected = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert answer_mask(ids, [1, 2], tokenizer).tolist() == expected
