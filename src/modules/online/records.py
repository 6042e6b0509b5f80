"""The responses of a rollout as texts, for logging."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from src.contracts import RolloutRecord
from src.models.endings import decode_answers
from src.rl.masked import masked_mean
from src.rl.rollout import Rollout


def records_of(
    rollout: Rollout, iteration: int, tokenizer: PreTrainedTokenizerBase, endings: Sequence[int]
) -> list[RolloutRecord]:
    """Make a record of each response.

    Args:
        rollout: The rollout, with advantages.
        iteration: Its iteration.
        tokenizer: The policy's tokenizer.
        endings: Tokens that end an answer.
    """
    prompts = tokenizer.batch_decode(rollout.query_ids, skip_special_tokens=True)
    responses = decode_answers(tokenizer, rollout.response_ids, endings)
    figures = (
        rollout.index,
        rollout.scores,
        masked_mean(rollout.advantages, rollout.response_mask, dim=-1),
        rollout.has_eos,
    )
    return [
        RolloutRecord(iteration, index, prompt.strip(), response.strip(), score, advantage, ended)
        for prompt, response, index, score, advantage, ended in zip(
            prompts, responses, *(figure.tolist() for figure in figures), strict=True
        )
    ]
