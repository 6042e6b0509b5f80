"""Ranges of a run's numeric settings, checked when the configuration is read.

Parley's classes check their own arguments; here are those that Lightning, torch and numpy would check late or never.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from src.datamodules.base import RANGES as DATA
from src.errors import ParleyError
from src.models.generation_options import RANGES as DECODING
from src.models.rollout import RANGES as ROLLOUT
from src.ranges import ANY, COUNT, NOT_NEGATIVE, OR_NO_LIMIT, POSITIVE, SHARE, UNIT, Range

COMPUTE = "model.init_args.quantization.bnb_4bit_compute_dtype"
OPTIMIZER, SCHEDULE = (f"model.init_args.{part}.init_args" for part in ("optimizer", "lr_scheduler"))
RANGES = {
    "seed_everything": Range(0, 2**32),  # what numpy takes
    **{f"data.init_args.{name}": allowed for name, allowed in DATA.items()},
    **{f"model.init_args.generation.{name}": allowed for name, allowed in DECODING.items()},
    **{f"model.init_args.rollout.{name}": allowed for name, allowed in ROLLOUT.items()},
    "data.init_args.pack_length": COUNT,
    "model.init_args.dropout": SHARE,
    "model.init_args.label_smoothing": SHARE,
    "model.init_args.max_skipped_updates": COUNT,
    "model.init_args.lora.init_args.r": COUNT,
    "model.init_args.lora.init_args.lora_alpha": COUNT,
    "model.init_args.lora.init_args.lora_dropout": SHARE,
    **{
        f"{OPTIMIZER}.{name}": NOT_NEGATIVE
        for name in ("lr", "weight_decay", "eps", "momentum", "alpha", "rho", "lr_decay", "initial_accumulator_value")
    },
    f"{OPTIMIZER}.betas": SHARE,
    **{
        f"{SCHEDULE}.{name}": COUNT
        for name in (
            *("num_training_steps", "total_steps", "epochs", "steps_per_epoch", "step_size", "T_max", "T_0", "T_mult"),
            *("total_iters", "step_size_up", "step_size_down", "milestones"),
        )
    },
    **{
        f"{SCHEDULE}.{name}": NOT_NEGATIVE
        for name in ("warmup", "gamma", "eta_min", "power", "patience", "cooldown", "threshold", "min_lr", "base_lr")
    },
    **{f"{SCHEDULE}.{name}": POSITIVE for name in ("max_lr", "div_factor", "final_div_factor")},
    **{f"{SCHEDULE}.{name}": UNIT for name in ("factor", "end_factor", "pct_start")},
    f"{SCHEDULE}.start_factor": Range(0, most=1, above=True),
    "model.init_args.reward.init_args.batch_size": COUNT,
    "model.init_args.reward.init_args.max_length": COUNT,
    "model.init_args.metrics.toxicity.init_args.batch_size": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.max_epochs": OR_NO_LIMIT,
    "trainer.max_steps": OR_NO_LIMIT,
    "trainer.min_epochs": NOT_NEGATIVE,
    "trainer.min_steps": NOT_NEGATIVE,
    "trainer.fast_dev_run": NOT_NEGATIVE,
    "trainer.overfit_batches": NOT_NEGATIVE,
    "trainer.reload_dataloaders_every_n_epochs": NOT_NEGATIVE,
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.gradient_clip_val": NOT_NEGATIVE,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.val_check_interval": POSITIVE,
    "trainer.log_every_n_steps": NOT_NEGATIVE,
    "trainer.num_sanity_val_steps": OR_NO_LIMIT,
    **{f"trainer.limit_{part}_batches": NOT_NEGATIVE for part in ("train", "val", "test", "predict")},
    "trainer.callbacks.SampleTable.num_samples": NOT_NEGATIVE,
    "trainer.callbacks.EarlyStopping.patience": NOT_NEGATIVE,
    "trainer.callbacks.GradientAccumulationScheduler.scheduling": COUNT,
    "trainer.callbacks.GradientAccumulationScheduler.scheduling's epoch": NOT_NEGATIVE,
    "trainer.logger.init_args.flush_logs_every_n_steps": COUNT,
    "trainer.logger.RunLogger.flush_logs_every_n_steps": COUNT,
}


DTYPES = ("float32", "bfloat16", "float16")


class Setting(NamedTuple):
    """A single value of the configuration.

    Attributes:
        name: Its path, dotted. Items of a list have the list's name, objects in a list that of their class, and values
            by epoch (`{4: 2}`) the mapping's.
        value: Its value.
        default: The default in its class; None where there is none.
    """

    name: str
    value: Any
    default: Any = None


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, and values that switch off what Parley needs.

    Args:
        settings: The configuration of a subcommand, nested.

    Raises:
        ParleyError: There is one; the message names the setting, its value and what it may be.
    """
    for name, value, default in _leaves(settings):
        allowed = RANGES.get(name, ANY)
        allowed.refuse(name, value)
        if name == COMPUTE and value not in (None, *DTYPES):  # transformers looks it up among all that torch has
            raise ParleyError(f"{name} is {value!r}; it must be {', '.join(DTYPES)}.")
        if value is None and isinstance(default, (int, float, tuple)):
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "a list")
            within = "" if allowed is ANY else f", {allowed}"
            raise ParleyError(f"{name} is null; it must be {kind}{within} (its default is {default}).")
    trainer = settings.get("trainer") or {}
    _refuse_strategy(trainer.get("strategy"))
    if trainer.get("barebones"):
        raise ParleyError(
            "trainer.barebones leaves out the logs and checkpoints that a run here is made of; leave it out "
            "(--trainer.fast_dev_run 5 tries a run without them)."
        )
    if trainer.get("enable_checkpointing") is False:
        raise ParleyError(
            "trainer.enable_checkpointing is false, and a run here can always be resumed; leave it out "
            "(--trainer.callbacks+=Checkpoints --trainer.callbacks.keep_last 1 keeps one file)."
        )


def _refuse_strategy(strategy: Any) -> None:
    """Refuse strategies that shard a model in another way than Parley's own, which are untested here."""
    name = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy)
    short = name.rpartition(".")[2].lower()
    if short.startswith(("fsdp", "deepspeed", "modelparallel")):
        raise ParleyError(
            f"trainer.strategy is {name}; a model is shared out over processes by -c configs/trainer/fsdp.yaml here."
        )


def _leaves(tree: Any, name: str = "", default: Any = None) -> Iterator[Setting]:
    if isinstance(tree, Mapping):
        defaults = _defaults(tree.get("class_path"))
        for key, value in tree.items():
            inner = f"{name}.{key}" if name else str(key)
            if key == "init_args" and isinstance(value, Mapping):
                for own, argument in value.items():
                    yield from _leaves(argument, f"{inner}.{own}", defaults.get(own))
            elif isinstance(key, int):  # a mapping from epoch to value
                yield Setting(f"{name}'s epoch", key)
                yield from _leaves(value, name)
            else:
                yield from _leaves(value, inner)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            if isinstance(item, Mapping) and "class_path" in item:
                short = str(item["class_path"]).rpartition(".")[2]
                defaults = _defaults(item["class_path"])
                for own, argument in (item.get("init_args") or {}).items():
                    yield from _leaves(argument, f"{name}.{short}.{own}", defaults.get(own))
            else:
                yield from _leaves(item, name)
    else:
        yield Setting(name, tree, default)


def parameters_of(class_path: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a class and its bases, by name; empty if the class cannot be imported or inspected."""
    if not isinstance(class_path, str):
        return {}
    try:
        named = pkgutil.resolve_name(class_path)
        makers = [vars(base)["__init__"] for base in reversed(inspect.getmro(named)) if "__init__" in vars(base)]
        parameters = [item for maker in makers for item in inspect.signature(maker).parameters.items()]
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}  # a function, or it does not exist
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in parameters if name != "self" and one.kind not in unnamed}


def _defaults(class_path: Any) -> dict[str, Any]:
    """The default values of a class's arguments."""
    parameters = parameters_of(class_path).items()
    return {name: one.default for name, one in parameters if one.default is not inspect.Parameter.empty}
