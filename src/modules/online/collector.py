"""Makes the rollout of an iteration: answers are sampled, scored, measured and gathered from all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.contracts import Batch
from src.models.autocast import cast_once
from src.models.endings import decode_answers, ending_ids
from src.models.logits import BannedTexts, token_rules
from src.models.policy import TokenFigures, encode_prompts, score_groups, score_tokens
from src.models.reference import Reference
from src.models.responses import Model, encoder_is_frozen
from src.models.rollout import Responses, RolloutOptions, row_seeds, sample_responses
from src.models.shared_prompts import is_worth_sharing, keeps_answers_apart
from src.models.tying import base_model
from src.models.value_head import ValueHead
from src.modules.online.clock import PhaseClock
from src.rewards import Reward, score_responses
from src.rl.rollout import Rollout


class Collector:
    """Samples, scores and measures the responses of an iteration.

    Autocast's cache is cleared wherever weights change or are swapped within Lightning's autocast context.

    Args:
        policy: The model that is trained.
        reference: Its reference.
        tokenizer: The tokenizer of both.
        reward: Scores responses.
        options: How to sample.
        num_generations: Responses per prompt.
        value_head: The policy's value head; None for methods without one.
    """

    def __init__(
        self,
        policy: Model,
        reference: Reference,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        options: RolloutOptions,
        num_generations: int = 1,
        value_head: ValueHead | None = None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.tokenizer = tokenizer
        self.reward = reward
        self.options = options
        self.endings = ending_ids(tokenizer, policy)
        words = options.bad_words
        self.banned = token_rules(policy, tokenizer)
        if words:
            self.banned.append(BannedTexts(words, tokenizer, 0))
        self.num_generations = num_generations
        self.value_head = value_head
        self.encoder_is_frozen = encoder_is_frozen(policy)
        self._shares_prompts = num_generations > 1 and value_head is None and keeps_answers_apart(policy)

    def encode(self, batch: Batch) -> Tensor | None:
        """The policy's encoder output for each prompt, (prompts, query time, hidden); None without an encoder."""
        return encode_prompts(self.policy, batch["prompt_ids"], batch["prompt_attention_mask"])

    def collect(
        self, batch: Batch, encoder_hidden: Tensor | None, clock: PhaseClock, *, seed: int, iteration: int
    ) -> Rollout:
        """Make this process's rollout, without fillers; advantages and shaped scores are not computed yet.

        Args:
            batch: The prompts.
            encoder_hidden: What `encode` returned.
            clock: Times the phases.
            seed: The run's seed.
            iteration: The iteration's number, on which the sampling seeds depend.
        """
        real = torch.tensor([not is_filler for is_filler in batch["is_filler"]])
        with clock.phase("rollout"):
            seeds = row_seeds(seed, iteration, batch["index"], self.num_generations)
            responses = self._sample(batch, seeds, encoder_hidden)
        rows = real.repeat_interleave(self.num_generations).nonzero().flatten()
        with clock.phase("reward"):
            scores = self._score(batch, responses, rows)
        with clock.phase("forward"):
            policy, ref_logprobs = self._measure(batch, responses, encoder_hidden)
        mask = responses.mask
        scored = torch.zeros(len(mask), dtype=torch.float32, device=mask.device)
        scored[rows] = scores.to(mask.device)
        return Rollout(
            index=torch.tensor(batch["index"], device=mask.device).repeat_interleave(self.num_generations),
            query_ids=self._repeat(batch["prompt_ids"]),
            query_mask=self._repeat(batch["prompt_attention_mask"]),
            response_ids=responses.ids,
            response_mask=mask,
            has_eos=responses.has_eos,
            drawable=responses.drawable,
            logprobs=policy.logprobs,
            ref_logprobs=ref_logprobs,
            scores=scored,
            shaped_scores=scored,
            advantages=torch.zeros_like(policy.logprobs),
            values=None if self.value_head is None else policy.values,
            returns=None if self.value_head is None else torch.zeros_like(policy.values),
        ).select(rows)

    def _repeat(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self.num_generations, dim=0)

    def _sample(self, batch: Batch, seeds: Sequence[int], encoder_hidden: Tensor | None) -> Responses:
        responses = sample_responses(
            self.policy,
            batch["prompt_ids"],
            batch["prompt_attention_mask"],
            self.options,
            eos_token_ids=self.endings,
            pad_token_id=int(self.tokenizer.pad_token_id),
            banned=self.banned,
            seeds=seeds,
            encoder_hidden=encoder_hidden,
            answers=self.num_generations,
        )
        torch.clear_autocast_cache()
        return responses

    def _score(self, batch: Batch, responses: Responses, rows: Tensor) -> Tensor:
        """The reward's score of some rows, float32."""
        texts = decode_answers(self.tokenizer, responses.ids[rows], self.endings)
        prompts = (rows // self.num_generations).tolist()
        return score_responses(
            self.reward,
            [batch["prompt"][prompt] for prompt in prompts],
            [text.strip() for text in texts],
            [batch["references"][prompt] for prompt in prompts],
        )

    @torch.no_grad()
    def _measure(
        self, batch: Batch, responses: Responses, encoder_hidden: Tensor | None
    ) -> tuple[TokenFigures, Tensor]:
        """The responses' scores under policy and reference, computed in chunks of about a batch's rows.

        Where it pays, a decoder-only model processes a prompt once for all its responses. Not below float32: another
        mask means other rounding, and the first minibatch's ratios would not be 1.
        """
        shares = self._shares_prompts and self._is_exact() and is_worth_sharing(batch["prompt_ids"], responses.ids)
        size, count = self.num_generations, len(batch["prompt_ids"])
        figures, ref_logprobs = [], []
        device = responses.ids.device
        for prompts in torch.arange(count, device=device).split(-(-count // size)):
            rows = (prompts[:, None] * size + torch.arange(size, device=device)).flatten()
            sampled: Any = {"drawable": responses.drawable[rows], "temperature": self.options.temperature}
            given = (responses.ids[rows], responses.mask[rows])
            asked = prompts if shares else prompts.repeat_interleave(size)
            queries = (batch["prompt_ids"][asked], batch["prompt_attention_mask"][asked])
            hidden = None if encoder_hidden is None else encoder_hidden[asked]
            ref_hidden = hidden if self.encoder_is_frozen else None
            with cast_once(self.policy, frozen_only=True, spare_head=True):
                if shares:
                    figures.append(score_groups(self.policy, *queries, *given, **sampled))
                else:
                    ours = {"value_head": self.value_head, **sampled}
                    figures.append(score_tokens(self.policy, *queries, *given, hidden, **ours))
                with self.reference.active(self.policy) as reference:
                    torch.clear_autocast_cache()
                    if shares:
                        theirs = score_groups(reference, *queries, *given, **sampled)
                    else:
                        theirs = score_tokens(reference, *queries, *given, ref_hidden, **sampled)
                    ref_logprobs.append(theirs.logprobs)
            torch.clear_autocast_cache()
        return TokenFigures(*(torch.cat(each) for each in zip(*figures, strict=True))), torch.cat(ref_logprobs)

    def _is_exact(self) -> bool:
        """Whether the policy computes in float32 throughout."""
        parameters = list(self.policy.parameters())
        under_autocast = torch.is_autocast_enabled(parameters[0].device.type)
        return not under_autocast and all(parameter.dtype.itemsize >= 4 for parameter in parameters)

    def gather(self, own: Rollout, world_size: int) -> Rollout:
        """Gather all processes' responses on the CPU, in the order of the global batch; every process must call this.

        Args:
            own: This process's rollout; its j-th prompt is number `j * world_size + rank` of the global batch.
            world_size: The number of processes.
        """
        if world_size == 1:
            return own.to("cpu")
        states: list[dict[str, Any]] = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(states, own.state_dict())
        parts = [Rollout.from_state_dict(state) for state in states]
        base, size = base_model(self.policy), self.num_generations
        places = [(row // size, rank, row % size) for rank, part in enumerate(parts) for row in range(len(part))]
        return Rollout.join(
            parts,
            pads_left=not base.config.is_encoder_decoder,
            vocabulary=base.get_output_embeddings().weight.shape[0],
        ).select(torch.tensor(sorted(range(len(places)), key=places.__getitem__)))
