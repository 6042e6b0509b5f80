"""Callbacks and loggers; YAML may name them by class name alone."""

from src.callbacks.before_after import BeforeAfterTable
from src.callbacks.checkpoints import Checkpoints
from src.callbacks.csv_logger import RunLogger
from src.callbacks.exact_resume import ExactResume
from src.callbacks.rollout_log import RolloutLog
from src.callbacks.run_directory import run_directory
from src.callbacks.run_record import RunRecord
from src.callbacks.samples import PredictionWriter, SampleTable
from src.callbacks.stop_signals import StopOnSignal
from src.callbacks.storage import AtomicCheckpointIO
from src.callbacks.summary import ParameterSummary
from src.callbacks.throughput import Throughput
from src.callbacks.wandb_logger import WandbRun

__all__ = [
    "AtomicCheckpointIO",
    "BeforeAfterTable",
    "Checkpoints",
    "ExactResume",
    "ParameterSummary",
    "PredictionWriter",
    "RolloutLog",
    "RunLogger",
    "RunRecord",
    "SampleTable",
    "StopOnSignal",
    "Throughput",
    "WandbRun",
    "run_directory",
]
