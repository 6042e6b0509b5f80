"""Numbers out of range, not finite, of another type or not there, in every numeric setting of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from scripts.trial.inputs.case import Case
from scripts.trial.inputs.workshop import Workshop

NOT_FINITE = (".nan", ".inf", "-.inf")
HUGE = "9" * 21
SHARE = ((*NOT_FINITE, "-0.5", "1.5"), "0.1")
PROBABILITY = ((*NOT_FINITE, "0", "-0.5", "1.5"), "0.9")
UNIT = ((*NOT_FINITE, "-0.5", "1.5"), "1")
POSITIVE = ((*NOT_FINITE, "0", "-1"), "0.5")
NOT_NEGATIVE = ((*NOT_FINITE, "-1"), "0.5")
FINITE = (NOT_FINITE, "0.5")
COUNT = (("0", "-1", "1.5", "three", HUGE), "2")
AMOUNT = (("-1", "1.5", "three", HUGE), "1")
SEED = (("-1", "1.5", "9" * 20), "7")
OR_NO_LIMIT = (("-2", "1.5", HUGE), "1")
Numbers = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Group:
    """Settings that are set together where they are good.

    Attributes:
        recipe: Which of `workshop.RECIPES`.
        prefix: How the settings' names begin.
        numbers: The rest of a name, to what it may not be and may be.
        needs: Settings without which there are no such settings.
        nullable: Those that null is right for.
        is_tried: Whether a run with all the good ones is among the cases.
    """

    recipe: str
    prefix: str
    numbers: dict[str, Numbers]
    needs: dict[str, str] = field(default_factory=dict)
    nullable: tuple[str, ...] = ()
    is_tried: bool = True


OPTIMIZER, SCHEDULE = "model.init_args.optimizer", "model.init_args.lr_scheduler"


def _optimizer(name: str, **numbers: Numbers) -> Group:
    return Group("seq2seq", f"{OPTIMIZER}.init_args.", numbers, {OPTIMIZER: f"torch.optim.{name}"})


def _schedule(name: str, numbers: dict[str, Numbers], others: dict[str, str] | None = None) -> Group:
    needs = {f"{SCHEDULE}.init_args.{key}": value for key, value in (others or {}).items()}
    nullable = ("num_training_steps", "total_steps")
    return Group("seq2seq", f"{SCHEDULE}.init_args.", numbers, {SCHEDULE: name} | needs, nullable)


def _callback(name: str, numbers: dict[str, Numbers], others: dict[str, str] | None = None) -> Group:
    needs = {f"trainer.callbacks.{key}": value for key, value in (others or {}).items()}
    nullable = ("every_n_steps", "every_n_minutes")
    return Group("seq2seq", "trainer.callbacks.", numbers, {"trainer.callbacks": name} | needs, nullable)


ONLINE = {
    "num_generations": COUNT,
    "minibatch_size": COUNT,
    "entropy_coef": NOT_NEGATIVE,
    "target_kl": POSITIVE,
    "score_clip": POSITIVE,
    "missing_eos_penalty": NOT_NEGATIVE,
}
GROUPED = ONLINE | {
    "num_generations": (("0", "1", "-1", HUGE), "2"),
    "num_iterations": COUNT,
    "beta": NOT_NEGATIVE,
    "epsilon": ((*NOT_FINITE, "0", "1", "-1"), "0.1"),
    "epsilon_high": POSITIVE,
}
MAYBE = ("target_kl", "score_clip", "missing_eos_penalty", "epsilon_high", "ratio_threshold", "value_head_lr")
TORCH = "torch.optim.lr_scheduler"
GROUPS = [
    Group("seq2seq", "", {"seed_everything": SEED}, nullable=("seed_everything",)),
    Group("seq2seq", "model.init_args.", {"dropout": SHARE, "label_smoothing": SHARE}, nullable=("dropout",)),
    _optimizer("AdamW", lr=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE, eps=NOT_NEGATIVE),
    _optimizer("SGD", lr=NOT_NEGATIVE, momentum=NOT_NEGATIVE, dampening=FINITE),
    _optimizer("Adam", lr=NOT_NEGATIVE, eps=NOT_NEGATIVE),
    _optimizer("RMSprop", lr=NOT_NEGATIVE, alpha=NOT_NEGATIVE, momentum=NOT_NEGATIVE),
    Group("seq2seq", f"{OPTIMIZER}.init_args.", {"betas": (("[.nan,0.9]", "[0.9,1.5]", "[-1,0.9]"), "[0.8,0.9]")}),
    _schedule("WarmupSchedule", {"warmup": ((*NOT_FINITE, "-1", "1.5"), "0.1"), "num_training_steps": COUNT}),
    _schedule(f"{TORCH}.StepLR", {"step_size": COUNT, "gamma": NOT_NEGATIVE}, {"step_size": "2"}),
    _schedule(f"{TORCH}.ExponentialLR", {"gamma": NOT_NEGATIVE}),
    _schedule(f"{TORCH}.CosineAnnealingLR", {"T_max": COUNT, "eta_min": NOT_NEGATIVE}, {"T_max": "2"}),
    _schedule(f"{TORCH}.CosineAnnealingWarmRestarts", {"T_0": COUNT, "T_mult": COUNT}, {"T_0": "2"}),
    _schedule(f"{TORCH}.LinearLR", {"start_factor": PROBABILITY, "end_factor": UNIT, "total_iters": COUNT}),
    _schedule(f"{TORCH}.PolynomialLR", {"total_iters": COUNT, "power": NOT_NEGATIVE}),
    _schedule(
        f"{TORCH}.OneCycleLR",
        {"max_lr": POSITIVE, "pct_start": UNIT, "total_steps": COUNT, "div_factor": POSITIVE},
        {"max_lr": "0.1", "total_steps": "9"},
    ),
    _schedule(
        "lightning.pytorch.cli.ReduceLROnPlateau",
        {"factor": SHARE, "patience": AMOUNT, "cooldown": AMOUNT, "threshold": NOT_NEGATIVE, "min_lr": NOT_NEGATIVE},
        {"monitor": "val/loss"},
    ),
    Group(
        "seq2seq",
        "model.init_args.generation.",
        {
            "max_new_tokens": COUNT,
            "min_new_tokens": AMOUNT,
            "num_beams": COUNT,
            "temperature": POSITIVE,
            "top_k": AMOUNT,
            "top_p": PROBABILITY,
            "no_repeat_ngram_size": AMOUNT,
            "repetition_penalty": POSITIVE,
            "length_penalty": FINITE,
            "num_return_sequences": (("0", "-1", "2", HUGE), "1"),
            "seed": SEED,
        },
        {"model.init_args.generation.do_sample": "true"},
        nullable=("seed",),
    ),
    Group(
        "seq2seq",
        "data.init_args.",
        {
            "batch_size": COUNT,
            "max_tokens_per_batch": (COUNT[0], "100"),
            "max_source_length": (COUNT[0], "24"),
            "max_target_length": (COUNT[0], "12"),
            "every_nth": COUNT,
            "min_chars": AMOUNT,
            "max_chars": (COUNT[0], "5000"),
            "num_workers": (AMOUNT[0], "0"),
            "seed": SEED,
            "pad_to_multiple_of": COUNT,
        },
        nullable=("max_tokens_per_batch", "max_chars"),
    ),
    Group(
        "causal",
        "data.init_args.",
        {"pack_length": (COUNT[0], "60")},
        {"data.init_args.packing": "true", "model.init_args.lora": "null", "data.init_args.format": "plain"},
        nullable=("pack_length",),
    ),
    Group(
        "seq2seq",
        "trainer.",
        {
            "max_epochs": OR_NO_LIMIT,
            "max_steps": OR_NO_LIMIT,
            "min_epochs": AMOUNT,
            "min_steps": AMOUNT,
            "devices": (("-3", "0", "three", ".nan"), "1"),
            "num_nodes": (COUNT[0], "1"),
            "accumulate_grad_batches": COUNT,
            "gradient_clip_val": NOT_NEGATIVE,
            "check_val_every_n_epoch": (COUNT[0], "1"),
            "val_check_interval": ((*NOT_FINITE, "0", "-1", "1.5", "50"), "0.5"),
            "limit_train_batches": ((*NOT_FINITE, "-1", "1.5"), "2"),
            "limit_val_batches": ((*NOT_FINITE, "-1", "1.5"), "1"),
            "limit_test_batches": ((*NOT_FINITE, "-1", "1.5"), "1"),
            "limit_predict_batches": ((*NOT_FINITE, "-1", "1.5"), "1"),
            "log_every_n_steps": AMOUNT,
            "num_sanity_val_steps": OR_NO_LIMIT,
            "overfit_batches": ((*NOT_FINITE, "-1", "1.5"), "2"),
            "reload_dataloaders_every_n_epochs": AMOUNT,
        },
        nullable=(
            *("max_epochs", "min_epochs", "min_steps", "check_val_every_n_epoch", "gradient_clip_val"),
            *("val_check_interval", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
            *("limit_predict_batches", "log_every_n_steps", "num_sanity_val_steps"),
        ),
    ),
    Group("seq2seq", "trainer.", {"fast_dev_run": (("-1", "1.5", ".nan"), "1")}),
    _callback("Checkpoints", {"every_n_steps": COUNT, "every_n_minutes": POSITIVE, "keep_last": COUNT}),
    _callback("SampleTable", {"num_samples": AMOUNT}),
    _callback("EarlyStopping", {"patience": AMOUNT, "min_delta": FINITE}, {"monitor": "val/loss"}),
    Group(
        "seq2seq",
        "trainer.callbacks.",
        {"scheduling": (("{0: 0}", "{0: -1}", "{-1: 2}", "{0: 1.5}"), "{0: 2}")},
        {"trainer.callbacks": "GradientAccumulationScheduler"},
    ),
    Group(
        "seq2seq",
        "trainer.logger.",
        {"flush_logs_every_n_steps": COUNT},
        {"trainer.logger": "RunLogger", "trainer.logger.save_dir": "runs"},
    ),
    Group(
        "lora",
        "model.init_args.lora.",
        {"r": COUNT, "lora_alpha": COUNT, "lora_dropout": SHARE},
    ),
    Group(
        "ppo",
        "model.init_args.ppo.",
        ONLINE
        | {
            "ppo_epochs": COUNT,
            "gamma": UNIT,
            "lam": UNIT,
            "cliprange": POSITIVE,
            "cliprange_value": POSITIVE,
            "vf_coef": NOT_NEGATIVE,
            "init_kl_coef": NOT_NEGATIVE,
            "target": POSITIVE,
            "horizon": POSITIVE,
            "ratio_threshold": POSITIVE,
            "value_head_lr": POSITIVE,
        },
        nullable=MAYBE,
    ),
    Group("rloo", "model.init_args.rloo.", GROUPED, nullable=MAYBE),
    Group("grpo", "model.init_args.grpo.", GROUPED, nullable=MAYBE),
    Group(
        "ppo",
        "model.init_args.rollout.",
        {
            "temperature": POSITIVE,
            "top_k": AMOUNT,
            "top_p": PROBABILITY,
            "min_new_tokens": AMOUNT,
            "output_min_length": COUNT,
            "output_max_length": (("0", "-1", "1", HUGE), "6"),
        },
    ),
    Group("grpo", "model.init_args.", {"max_skipped_updates": COUNT}),
    Group("ppo", "model.init_args.reward.init_args.", {"target": AMOUNT, "falloff": COUNT}, nullable=("falloff",)),
    Group(
        "ppo",
        "model.init_args.reward.init_args.",
        {"batch_size": COUNT, "max_length": COUNT},
        {"model.init_args.reward": "ClassifierReward"},
        nullable=("max_length",),
        is_tried=False,  # there is no classifier without a download
    ),
    Group(
        "ppo",
        "model.init_args.metrics.toxicity.init_args.",
        {"batch_size": COUNT},
        {"model.init_args.metrics.toxicity.init_args.model_name_or_path": "none"},
        is_tried=False,
    ),
]


def cases(workshop: Workshop) -> Iterator[Case]:
    for group in GROUPS:
        kind = f"number ({group.recipe} {group.prefix}{'/'.join(group.numbers) if len(group.numbers) < 3 else '*'})"
        for name, (bad, _) in group.numbers.items():
            missing = () if name in group.nullable else ("null",)
            for value in (*bad, *missing):
                settings = group.needs | {group.prefix + name: value}
                yield Case(
                    kind,
                    f"{group.needs.get(OPTIMIZER, '') or group.needs.get(SCHEDULE, '')} {name} {value}".strip(),
                    workshop.words(group.recipe, settings),
                    rf"\b{name}\b.*(must|[Ee]xpect|has to be|should|not a valid|Invalid)|must.*\b{name}\b",
                )
        if group.is_tried:
            good = {group.prefix + name: value for name, (_, value) in group.numbers.items()}
            yield Case(kind, "good numbers", workshop.words(group.recipe, group.needs | good), accepted=True)
