"""Times the training loops of Lightning and of transformers, from the first batch to the end of the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from benchmarks.device import CPU, Device, device_named


@dataclass
class Clock:
    """Wall and CPU seconds of a stretch of this process, and its peak memory where that can be told.

    Attributes:
        wall: Seconds.
        cpu: Of the processor.
        device: What works meanwhile.
        peak: The most that was held in the stretch, in MiB; None on a CPU.
    """

    wall: float = 0.0
    cpu: float = 0.0
    device: Device = CPU
    peak: float | None = None

    def start(self) -> None:
        self.device.forget_peak()
        self._started = self.device.now(), self.device.processor_now()

    def lap(self) -> None:
        """Take down what there was since the start, until the next lap."""
        self.wall = self.device.now() - self._started[0]
        self.cpu = self.device.processor_now() - self._started[1]
        self.peak = self.device.peak_of_stretch_mib()


class FitClock(Callback):
    """Times Lightning's training loop, to the end of its last batch."""

    latest = Clock()
    examples = 0  # seen by the latest run

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        FitClock.latest, FitClock.examples = Clock(device=device_named(trainer.strategy.root_device.type)), 0
        self.latest.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        FitClock.examples += len(batch["id"])
        if trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:  # reading it waits for a GPU
            self.latest.lap()


def timer_of(clock: Clock) -> Any:
    """A callback of transformers' Trainer, and of TRL's, that runs a clock."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == state.max_steps:
                clock.lap()

    return Timer()
