"""Callbacks, by short name in YAML."""

from src.callbacks.ppo import BeforeAfterTable
from src.callbacks.samples import PredictionWriter, SampleTable
from src.callbacks.summary import ParameterSummary
from src.callbacks.throughput import Throughput

__all__ = ["BeforeAfterTable", "ParameterSummary", "PredictionWriter", "SampleTable", "Throughput"]
