"""PPO's first half of an iteration: responses to a batch of prompts, and everything that is learned from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from src.contracts import Batch
from src.models.autocast import cast_once
from src.models.endings import decode_answers, ending_ids
from src.models.logits import BannedTexts
from src.models.responses import encode, encoder_is_frozen
from src.models.rollout import Responses, row_seeds, sample_responses
from src.modules.ppo_steps import score_tokens, sum_over
from src.rewards import score_responses
from src.rl.rollout import Rollout, build_rollout

if TYPE_CHECKING:
    from src.modules.ppo import PPOModule


class RolloutCollector:
    """Samples, has scored and measures the responses that one iteration learns from.

    Autocast's cache is cleared wherever weights change or trade places within Lightning's autocast context.

    Args:
        module: Whose policy, reference, reward and settings; set up already.
    """

    def __init__(self, module: PPOModule) -> None:
        self.module = module
        self.encoder_is_frozen = encoder_is_frozen(module._model)
        self.endings = ending_ids(module.tokenizer, module._model)
        words = module.rollout.bad_words
        self.banned = LogitsProcessorList([BannedTexts(words, module.tokenizer, 0)] if words else [])

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor | None:
        """The policy's encoder output, for sampling and for the first pass over what was sampled."""
        model = self.module._model
        torch.clear_autocast_cache()
        with cast_once(model, frozen_only=True):
            hidden = encode(model, batch["prompt_ids"], batch["prompt_attention_mask"])
        torch.clear_autocast_cache()
        return hidden

    def shared(self, encoder_hidden: Tensor | None) -> Tensor | None:
        """The same where it is the reference's too, and stays what it is in the update."""
        return encoder_hidden if self.encoder_is_frozen else None

    def sample(self, batch: Batch, real: Tensor, seed: int, iteration: int, encoder_hidden: Tensor | None) -> Responses:
        """One response a prompt; a filler's has an empty mask."""
        model, tokenizer = self.module._model, self.module.tokenizer
        responses = sample_responses(
            model,
            batch["prompt_ids"],
            batch["prompt_attention_mask"],
            self.module.rollout,
            eos_token_ids=self.endings,
            pad_token_id=int(tokenizer.pad_token_id),
            banned=self.banned,
            seeds=row_seeds(seed, iteration, batch["index"]),
            encoder_hidden=encoder_hidden,
        )
        torch.clear_autocast_cache()
        return responses._replace(mask=responses.mask * real.unsqueeze(-1))

    def score(self, batch: Batch, responses: Responses, real: Tensor) -> Tensor:
        """The reward's score a row, 0 for fillers, which it is not shown."""
        rows = real.nonzero().flatten().tolist()
        texts = decode_answers(self.module.tokenizer, responses.ids[real], self.endings)
        scores = torch.zeros(len(real), dtype=torch.float32, device=real.device)
        scores[real] = score_responses(
            self.module.reward,
            [batch["prompt"][row] for row in rows],
            [text.strip() for text in texts],
            [batch["references"][row] for row in rows],
        ).to(real.device)
        return scores

    @torch.no_grad()
    def measure(self, batch: Batch, responses: Responses, scores: Tensor, encoder_hidden: Tensor | None) -> Rollout:
        """Log-probabilities of policy and reference, values, and what follows from them and the scores."""
        module = self.module
        reduce = sum_over(module.trainer)
        sampled: Any = {"drawable": responses.drawable, "temperature": module.rollout.temperature}
        given = (batch["prompt_ids"], batch["prompt_attention_mask"], responses.ids, responses.mask)
        with cast_once(module._model, frozen_only=True, spare_head=True):
            policy = score_tokens(module._model, *given, encoder_hidden, value_head=module.value_head, **sampled)
            with module.reference.active(module._model) as reference:
                torch.clear_autocast_cache()
                ref_logprobs = score_tokens(reference, *given, self.shared(encoder_hidden), **sampled).logprobs
        torch.clear_autocast_cache()
        # A filler's NaN keeps it out of the running moments, and its mask out of everything else.
        is_filler = responses.mask.sum(-1) == 0
        shaped = module.score_shaper(scores.masked_fill(is_filler, torch.nan), responses.has_eos, reduce)
        return build_rollout(
            query_ids=batch["prompt_ids"],
            query_mask=batch["prompt_attention_mask"],
            response_ids=responses.ids,
            response_mask=responses.mask,
            drawable=responses.drawable,
            logprobs=policy.logprobs,
            ref_logprobs=ref_logprobs,
            values=policy.values,
            scores=scores,
            shaped_scores=shaped,
            kl_coef=module.kl_controller.value,
            config=module.ppo,
            reduce=reduce,
        )
