"""Direct preference optimisation and related methods: train a policy on preference pairs without a reward model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.contracts import Batch, PreferenceBatch
from src.errors import ParleyError
from src.internals import is_attached, loader_of, shows_progress
from src.models.autocast import cast_once
from src.models.fingerprint import fingerprint
from src.models.policy import AnswerLogprobs, answer_logprobs
from src.models.reference import Reference, is_base_below_adapter
from src.models.responses import Model
from src.models.shared_prompts import keeps_answers_apart
from src.modules.breakdown import Breakdown
from src.modules.checkpoint import state_of_method
from src.modules.evaluation import keys_of
from src.modules.policy import PolicyModule
from src.modules.preference.reference_cache import ReferenceCache, limited, table
from src.modules.preference.step_figures import PairMeans
from src.modules.token_mean import TokenMean
from src.parallel.gathering import gathered
from src.rl.preferences import DPOConfig, Pairs, pair_loss

Part = Literal["train", "validation", "test"]
STAGES: dict[str, dict[Part, str]] = {
    "fit": {"train": "", "validation": "limit_val_batches"},
    "validate": {"validation": "limit_val_batches"},
    "test": {"test": "limit_test_batches"},
}


class DPOModule(PolicyModule):
    """Trains an encoder-decoder or decoder-only model on pairs of answers: DPO, IPO, hinge, SimPO or ORPO.

    The reference is the model as it is when training starts: the adapter switched off, or a copy of what is trained.
    With `dpo.reference: cached` its log-probabilities of the pairs, and its answers to the validation prompts, are
    computed once before training and kept on disk. Then, and with a loss that has no reference, no copy of a whole
    model is in memory. An encoder processes each prompt once for both answers, and so does a decoder-only model whose
    attention supports it.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        dpo: The loss and its hyper-parameters.
        disable_dropout: Train without dropout, so that policy and reference agree at the start. The reference never
            uses dropout.
        **kwargs: The other arguments of `PolicyModule`.
    """

    reads: Literal["answers", "texts"] = "answers"

    def __init__(
        self,
        model_name_or_path: str,
        dpo: DPOConfig | None = None,
        disable_dropout: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.config = dpo or DPOConfig()
        self.disable_dropout = disable_dropout
        self._token_mean = TokenMean()
        self._breakdown = Breakdown()
        self._step, self._split = PairMeans(), PairMeans()
        self._tables: dict[Part, Tensor] = {}
        self._prepared: set[str] = set()
        self._start = ""
        self._shares_prompts = False

    # Set-up

    def configure_model(self) -> None:
        """Load the policy, and keep its reference or the fingerprint of it."""
        if self.model is not None:
            return
        super().configure_model()
        is_base = self.reference is not None and self.reference.is_base
        self._start = "" if is_base else fingerprint(self.policy)
        self._shares_prompts = keeps_answers_apart(self.policy)
        self.policy.train(not self.disable_dropout)

    @property
    def _is_cached(self) -> bool:
        return self.config.needs_reference and self.config.reference == "cached"

    def make_reference(self) -> Reference | None:
        """Keep a reference if it is free (the base below a fresh adapter), or if the loss needs one at each step."""
        free = is_base_below_adapter(self.policy, is_continued=self.lora is None)
        wanted = self.config.needs_reference and not self._is_cached
        return super().make_reference() if free or wanted else None

    def on_fit_start(self) -> None:
        """Refuse unsupported set-ups; compute the cached reference values before the policy changes."""
        super().on_fit_start()
        self._prepare()

    def on_validation_start(self) -> None:
        """Compute the cached reference values, for a validation without training."""
        self._prepare()

    def on_test_start(self) -> None:
        """Compute the cached reference values."""
        self._prepare()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method or reference; fill the cache before its weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        state_of_method(
            checkpoint, "preference", method=type(self).__name__, reference=self._start, name=self.model_name_or_path
        )
        self._prepare()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the fingerprint of the reference."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["preference"] = {"method": type(self).__name__, "reference": self._start}

    @property
    def seed(self) -> int:
        """The run's seed."""
        return torch.initial_seed() % 2**63

    # The reference's values, computed before training

    def _prepare(self) -> None:
        """Compute or read the values of a reference whose weights are not kept; a second call does nothing."""
        stage = self.trainer.state.fn.value if is_attached(self) and self.trainer.state.fn is not None else ""
        if stage in self._prepared or stage not in STAGES or (self.reference is not None and not self._is_cached):
            return
        if self.reference is None and fingerprint(self.policy) != self._start:
            raise ParleyError(
                "the model is no longer what it was before training, and no reference is kept of it; give the "
                f"checkpoint to a new {type(self).__name__}, as `parley {stage} --ckpt_path` does."
            )
        self._prepared.add(stage)
        self.to(self.trainer.strategy.root_device)
        cache = ReferenceCache(self._cache_dir, self.trainer, self._about)
        for part, limit in STAGES[stage].items():
            loader = loader_of(self.trainer, part)
            if loader is None or (limit and not getattr(self.trainer, limit)):
                continue

            def batches(loader: Any = loader, limit: str = limit) -> Any:
                return limited(loader, getattr(self.trainer, limit)) if limit else iter(loader)

            if self._is_cached and "answer_ids" in next(iter(batches()), {}):
                made = cache.records("Log-probabilities", batches, self._reference_sums, [])
                self._tables[part] = table(made).to(self.device)
            if part != "train" and self.reference is None:
                about = [asdict(self.generation), self.seed if self.generation.do_sample else 0]
                said = cache.records("Answers", batches, self._reference_answers, about)
                for batch in batches():
                    self.evaluator.before |= {key: said[key[0]][0] for key in keys_of(batch)}

    @property
    def _cache_dir(self) -> Path:
        given = getattr(getattr(self.trainer, "datamodule", None), "cache_dir", None)
        return Path(given or Path(self.trainer.default_root_dir) / "cache")

    @property
    def _about(self) -> list[Any]:
        model, adapter = self.policy, getattr(self.policy, "peft_config", {})
        return [
            fingerprint(model),
            {name: str(config) for name, config in sorted(adapter.items())},
            str(model.config),
            self.trainer.precision,
            self.trainer.strategy.root_device.type,
            self.speed_ups,
            self.attn_implementation,
            self.torch_compile,
        ]

    def _on_device(self, batch: PreferenceBatch) -> PreferenceBatch:
        return self.trainer.strategy.batch_to_device(batch, self.device)

    def _reference_sums(self, batch: PreferenceBatch) -> list[list[float]]:
        with gathered(self), self.trainer.strategy.precision_plugin.forward_context():
            found = self._sums(self._on_device(batch), self._ask_reference(self._on_device(batch)))
        return torch.stack([found.chosen, found.rejected], dim=1).tolist()

    def _reference_answers(self, batch: PreferenceBatch) -> list[list[str]]:
        batch = self._on_device(batch)
        with gathered(self), self.trainer.strategy.precision_plugin.forward_context():
            self.evaluator.answer_before(batch, self.policy, self.tokenizer, self.generation, self.seed)
        return [[self.evaluator.before[key]] for key in keys_of(batch)]

    # Loss

    def _ask_reference(self, batch: PreferenceBatch) -> AnswerLogprobs:
        """The reference's log-probabilities of the answers, without gradient and dropout."""
        if self.reference is None:  # the policy has not been trained yet
            return self._ask(self.policy, batch)
        with self.reference.active(self.policy) as frozen:
            torch.clear_autocast_cache()
            found = self._ask(frozen, batch)
        torch.clear_autocast_cache()
        return found

    def _ask(self, model: Model, batch: PreferenceBatch) -> AnswerLogprobs:
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), cast_once(self.policy, frozen_only=True, spare_head=True):
                return self._logprobs(model, batch)
        finally:
            self.policy.train(training)

    def _logprobs(
        self, model: Model, batch: PreferenceBatch, encoder_hidden: Tensor | None = None, *, with_prompts: bool = False
    ) -> AnswerLogprobs:
        is_real = ~torch.tensor(batch["is_filler"]).to(
            batch["answer_mask"].device, non_blocking=self.device.type == "cuda"
        )
        return answer_logprobs(
            model,
            batch["prompt_ids"],
            batch["prompt_attention_mask"],
            batch["answer_ids"],
            batch["answer_mask"] * is_real.repeat(2)[:, None],
            encoder_hidden,
            with_prompts=with_prompts,
            share=self._shares_prompts,
        )

    def _sums(self, batch: PreferenceBatch, found: AnswerLogprobs) -> Pairs:
        return Pairs(*found.answers.sum(-1).chunk(2), *batch["answer_mask"].sum(-1).chunk(2))

    def _reference_pairs(self, batch: PreferenceBatch, part: Part) -> Pairs:
        if not self._is_cached:
            with gathered(self):
                return self._sums(batch, self._ask_reference(batch))
        kept = self._tables[part][torch.tensor(batch["index"]).to(self.device, non_blocking=self.device.type == "cuda")]
        return Pairs(kept[:, 0], kept[:, 1], *batch["answer_mask"].sum(-1).chunk(2))

    def loss_sums(self, batch: PreferenceBatch, part: Part) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch, its figures, and the number of its pairs, fillers left out.

        Args:
            batch: The batch of pairs.
            part: Its split.

        Returns:
            Sums over the pairs, and the number of pairs. The cross-entropy of the chosen answers is the mean over their
            tokens in the batch, as in TRL, and is weighted by the number of pairs in the batch.
        """
        if "answer_ids" not in batch:
            raise ParleyError(f"{type(self).__name__} learns from pairs of answers; give PreferenceDataModule.")
        config, reference = self.config, None
        if config.needs_reference:  # before the policy: weights must not be swapped while a graph waits
            reference = self._reference_pairs(batch, part)
        learns_prompts = bool(config.sft_weight) and config.learns_prompts and not self.is_encoder_decoder
        with cast_once(self.policy, frozen_only=True, spare_head=True):
            found = self._logprobs(self.policy, batch, with_prompts=learns_prompts)
        real = (
            (~torch.tensor(batch["is_filler"]))
            .nonzero()
            .flatten()
            .to(self.device, non_blocking=self.device.type == "cuda")
        )
        policy = self._sums(batch, found).select(real)
        loss = pair_loss(policy, None if reference is None else reference.select(real), config)
        total, figures = loss.losses.sum(), {name: figure.sum() for name, figure in loss.figures.items()}
        if config.sft_weight:
            likelihood, tokens = policy.chosen.sum(), policy.chosen_length.sum()
            if found.prompts is not None:
                mask = batch["prompt_attention_mask"][real]
                likelihood = likelihood + found.prompts[real].sum()
                tokens = tokens + (mask[:, 1:] * mask[:, :-1]).sum()
            nll = -likelihood / tokens.clamp(min=1) * len(real)
            total, figures["nll_loss"] = total + config.sft_weight * nll, nll.detach()
        return total, {"loss": total.detach()} | figures, torch.full((), len(real), device=self.device)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The loss, so scaled that a step's gradient is of the mean over the pairs of all processes and batches."""
        loss, figures, pairs = self.loss_sums(batch, "train")
        torch.clear_autocast_cache()
        total = pairs
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(pairs.clone(), reduce_op="sum")
        # The strategy averages gradients over processes; this undoes it.
        backward, _ = self._token_mean.add(loss * self.trainer.world_size, total)
        self._step.add(figures, pairs)
        shown = self._step.means(self.trainer)
        in_bar = shows_progress(self.trainer)
        self.log("train/loss", shown.pop("loss"), prog_bar=in_bar, batch_size=1)
        self.log("rewards/accuracies", shown.pop("rewards/accuracies"), prog_bar=in_bar, batch_size=1)
        self.log_dict(shown, batch_size=1)
        return backward

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale the gradients to those of the step's mean loss, and check that the loss is finite."""
        self._step.reset()
        loss = self._token_mean.settle(self.parameters(), self.trainer.accumulate_grad_batches)
        if loss is not None:
            self._breakdown.note(loss, self.trainer)

    def tokens(self, batch: PreferenceBatch) -> Tensor:
        """Tokens of the batch's prompts and answers."""
        return batch["prompt_attention_mask"].sum() + batch["answer_mask"].sum()

    # Evaluation

    def _evaluate(self, batch: PreferenceBatch | Batch, part: Part) -> dict[str, Any]:
        if "answer_ids" in batch:
            with torch.no_grad():
                _, figures, pairs = self.loss_sums(batch, part)  # type: ignore[arg-type]
            self._split.add(figures, pairs)
        return self.compare(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Loss and rewards of the pairs; answers of policy and reference to their prompts."""
        return self._evaluate(batch, "validation")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As in validation; prompts alone will do."""
        return self._evaluate(batch, "test")

    def start_split(self) -> None:
        """Reset all metrics, at the start of a validation or test."""
        super().start_split()
        self._split.reset()

    def summarise(self, stage: str) -> dict[str, Any]:
        """Figures of the pairs and of the answers.

        Args:
            stage: The prefix of each name: `val/loss`, `val/rewards/accuracies`, `val/rouge1` …
        """
        pairs = self._split.means(self.trainer)
        return {f"{stage}/{name}": figure for name, figure in pairs.items()} | super().summarise(stage)
