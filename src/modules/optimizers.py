"""Optimiser and schedule: made from the configuration, then moved to a checkpoint's position.

The sources of a resumed run's state (docs/resuming.md has the same table):

    from the checkpoint                           from the configuration
    weights, the optimiser's moments              learning rate, weight decay, betas, every option of the optimiser
    the schedule's position, in steps or epochs   schedule, warm-up, decay, horizon (epochs, steps)
    the metric history of a plateau schedule      the metric, patience, factor
    moments of parameters, by name                which parameters have weight decay

If no setting has changed, the checkpoint's state is restored bit for bit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.errors import ParleyError
from src.internals import is_attached
from src.modules.schedules import WarmupSchedule, refuse_too_short

log = logging.getLogger(__name__)

# Options of a parameter group that schedules change.
SCHEDULED = {"lr", "initial_lr", "betas", "momentum", "max_lr", "min_lr", "max_momentum", "base_momentum"}


def parameter_groups(module: torch.nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trained parameters with their names, in groups with and without weight decay, as in transformers' Trainer.

    Args:
        module: The module.
        rates: Separate learning rates, by the prefix of parameters' names; each gets its own groups.
    """
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, module))  # type: ignore[arg-type]
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for start in ("", *rates):
        own = {"lr": rates[start]} if start else {}
        part = [one for one in trained if next((s for s in rates if one[0].startswith(s)), "") == start]
        groups += [
            {"params": [one for one in part if one[0] in decayed], **own},
            {"params": [one for one in part if one[0] not in decayed], "weight_decay": 0.0, **own},
        ]
    return [group for group in groups if group["params"]]


class OptimizerPlan:
    """Makes a Module's optimiser and schedule, and restores both from a checkpoint.

    Args:
        make_optimizer: Makes the optimiser from parameter groups.
        make_schedule: Makes the schedule from the optimiser; a constant rate when left out.
    """

    def __init__(self, make_optimizer: OptimizerCallable, make_schedule: LRSchedulerCallable | None) -> None:
        self._make_optimizer = make_optimizer
        self._make_schedule = make_schedule
        self._schedule: LRScheduler | ReduceLROnPlateau | None = None
        self._settings: dict[str, Any] = {}
        self._saved: dict[str, Any] | None = None
        self._saved_schedules: list[dict[str, Any]] = []
        self._saved_rates: list[Any] = []

    def configure(self, module: LightningModule, rates: Mapping[str, float] | None = None) -> Any:
        """Make both, as Lightning's `configure_optimizers` returns them.

        Args:
            module: The Module whose parameters are trained.
            rates: Separate learning rates, by the prefix of parameters' names.
        """
        optimizer = self._make_optimizer(parameter_groups(module, rates or {}))
        _fuse_on_gpu(optimizer)
        schedule = self._schedule = None if self._make_schedule is None else self._make_schedule(optimizer)
        if isinstance(schedule, WarmupSchedule) and schedule.num_training_steps is None:
            schedule.plan(int(module.trainer.estimated_stepping_batches))
        elif schedule is not None and self._interval == "epoch":
            refuse_too_short(schedule, module.trainer.max_epochs if is_attached(module) else None)
        self._settings = {
            "optimizer": _name(optimizer),
            "groups": [_options(group) for group in deepcopy(optimizer.state_dict()["param_groups"])],
            "schedule": None if schedule is None else _name(schedule),
            "schedule_state": {} if schedule is None else deepcopy(schedule.state_dict()),
        }
        optimizer.register_load_state_dict_pre_hook(self._merge)
        optimizer.register_load_state_dict_post_hook(self._place)
        if schedule is None:
            return optimizer
        config = {"scheduler": schedule, "interval": self._interval, "monitor": getattr(schedule, "monitor", None)}
        return {"optimizer": optimizer, "lr_scheduler": config}

    @property
    def _interval(self) -> str:
        return "step" if isinstance(self._schedule, WarmupSchedule) else "epoch"

    def describe(self, steps: int, epochs: int) -> dict[str, Any]:
        """What a checkpoint stores beside the states of optimiser and schedule.

        Args:
            steps: Optimiser steps so far, as schedules count them.
            epochs: Epochs so far.
        """
        return {**self._settings, "interval": self._interval, "position": {"step": steps, "epoch": epochs}}

    def resume_from(self, checkpoint: dict[str, Any]) -> None:
        """Remove the schedules' states from the checkpoint, since Lightning would restore their old settings too."""
        self._saved = checkpoint.get("optimizer")
        if self._saved is not None:
            self._saved_schedules, checkpoint["lr_schedulers"] = checkpoint.get("lr_schedulers", []), []

    @property
    def _is_rescheduled(self) -> bool:
        assert self._saved is not None
        return any(self._saved[part] != self._settings[part] for part in ("optimizer", "schedule", "schedule_state"))

    def _merge(self, optimizer: Optimizer, saved_state: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint's state with the options that were changed since, parameters matched by name."""
        if self._saved is None:
            return None
        ours, groups = optimizer.state_dict()["param_groups"], saved_state["param_groups"]
        self._saved_rates = [group["lr"] for group in groups]
        if self._saved["optimizer"] != self._settings["optimizer"]:
            log.warning(
                "The checkpoint's optimiser was %s, and this run's is %s, which begins without moments.",
                self._saved["optimizer"],
                self._settings["optimizer"],
            )
            return {"state": {}, "param_groups": ours}
        fresh = SCHEDULED if self._is_rescheduled else set()
        for group, now, then, saved in zip(ours, self._settings["groups"], self._saved["groups"], groups, strict=False):
            kept = {key for key in _options(saved) if now.get(key) == then.get(key)} - fresh
            group.update({key: saved[key] for key in kept})
        ids, state = _ids(ours), saved_state["state"]
        moved = {ids[name]: state[id_] for name, id_ in _ids(groups).items() if name in ids and id_ in state}
        return {**saved_state, "state": moved, "param_groups": ours}

    def _place(self, optimizer: Optimizer) -> None:
        """Move the schedule to the checkpoint's position."""
        schedule, saved = self._schedule, self._saved
        if saved is None or schedule is None:
            return
        state = self._saved_schedules[0] if self._saved_schedules else {}
        if not self._is_rescheduled:
            schedule.load_state_dict(state)
        elif isinstance(schedule, ReduceLROnPlateau):
            if saved["schedule"] == self._settings["schedule"]:
                self._place_plateau(schedule, state)
        else:
            position = saved["position"][self._interval]
            _advance(schedule, state.get("last_epoch", position) if saved["interval"] == self._interval else position)
        self._saved = None

    def _place_plateau(self, schedule: ReduceLROnPlateau, state: dict[str, Any]) -> None:
        """Restore a plateau schedule's history, and apply the factor by which it had reduced the rate."""
        assert self._saved is not None
        now, then = self._settings["schedule_state"], self._saved["schedule_state"]
        schedule.load_state_dict({key: state[key] if now[key] == then.get(key) else now[key] for key in now})
        groups = schedule.optimizer.param_groups
        for group, configured, saved_rate in zip(groups, self._saved["groups"], self._saved_rates, strict=False):
            group["lr"] = group["lr"] * (saved_rate / configured["lr"])
        schedule._last_lr = [group["lr"] for group in groups]


def _fuse_on_gpu(optimizer: Optimizer) -> None:
    """Have Adam and AdamW step by one kernel on a GPU, as transformers' Trainer does, unless their options say how."""
    groups = optimizer.param_groups
    says_how = any(group.get(option) is not None for group in groups for option in ("fused", "foreach"))
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if type(optimizer) in (Adam, AdamW) and on_gpu and not says_how:
        for group in groups:
            group["fused"] = True


def _advance(schedule: LRScheduler, position: int) -> None:
    """Advance a new schedule to a position."""
    if isinstance(schedule, WarmupSchedule):
        schedule.go_to(position)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that no optimiser step came before
            for _ in range(position):
                schedule.step()
    except ValueError as error:
        raise ParleyError(
            f"{_name(schedule)} does not reach position {position} of the checkpoint ({error}); make it longer."
        ) from error


def _ids(groups: list[dict[str, Any]]) -> dict[str, int]:
    return {name: id_ for group in groups for name, id_ in zip(group["param_names"], group["params"], strict=True)}


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
