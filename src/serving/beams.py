"""Answers by beam search, which has no text to stream before it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from src.datamodules.encoding import pad
from src.models.endings import until_end
from src.models.generation import generate_ids
from src.serving.rows import Piece, Row

if TYPE_CHECKING:
    from src.serving.hosted import Hosted


class _GivenUp(StoppingCriteria):
    """Ends a search whose requests have all been cancelled."""

    def __init__(self, is_given_up: Callable[[], bool]) -> None:
        self.is_given_up = is_given_up

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Whether each row has ended, (rows,)."""
        return torch.full((len(input_ids),), self.is_given_up(), dtype=torch.bool, device=input_ids.device)


def answer_by_beams(hosted: Hosted, rows: Sequence[Row], is_given_up: Callable[[], bool]) -> list[Piece]:
    """Answer prompts by beam search.

    Args:
        hosted: The model.
        rows: Answers with equal options; rows with the same prompt get its best beams, the best one first.
        is_given_up: Called at every token; true ends the search.

    Returns:
        The complete answers.
    """
    finished, options = hosted.finished, rows[0].options
    prompts = list({id(row.prompt): row.prompt for row in rows}.values())
    ids, mask = pad(prompts, finished.tokenizer.pad_token_id, left=not finished.is_encoder_decoder)
    found = generate_ids(
        finished.model,
        hosted.decoding_tokenizer,
        ids.to(finished.device),
        mask.to(finished.device),
        options,
        stopping_criteria=StoppingCriteriaList([_GivenUp(is_given_up)]),
    )
    count, places = options.num_return_sequences, {id(prompt): place for place, prompt in enumerate(prompts)}
    found = found[[places[id(row.prompt)] * count + row.choice % count for row in rows]]
    pieces = []
    for row, answer in zip(rows, found.tolist(), strict=True):
        row.ids = until_end(answer, hosted.endings)
        row.stream.add(row.ids)
        row.stream.end()
        is_cut = len(row.ids) >= options.max_new_tokens and not row.stream.has_stopped
        pieces.append(Piece(row.choice, row.stream.shown, finish="length" if is_cut else "stop"))
    return pieces
