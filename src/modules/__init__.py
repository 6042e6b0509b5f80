"""LightningModules, by short name in YAML."""

from src.modules.base import DialogueModule
from src.modules.causal import CausalLMModule
from src.modules.ppo import PPOModule
from src.modules.schedules import WarmupSchedule
from src.modules.seq2seq import Seq2SeqModule

__all__ = ["CausalLMModule", "DialogueModule", "PPOModule", "Seq2SeqModule", "WarmupSchedule"]
