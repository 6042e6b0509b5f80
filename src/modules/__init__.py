"""LightningModules; YAML may name them by class name alone."""

from src.modules.base import ModelModule
from src.modules.online.base import OnlineModule
from src.modules.online.grpo import GRPOModule
from src.modules.online.ppo import PPOModule
from src.modules.online.rloo import RLOOModule
from src.modules.preference.dpo import DPOModule
from src.modules.preference.reward import RewardModule
from src.modules.schedules import WarmupSchedule
from src.modules.supervised.base import SupervisedModule
from src.modules.supervised.causal import CausalLMModule
from src.modules.supervised.seq2seq import Seq2SeqModule

__all__ = [
    "CausalLMModule",
    "DPOModule",
    "GRPOModule",
    "ModelModule",
    "OnlineModule",
    "PPOModule",
    "RLOOModule",
    "RewardModule",
    "Seq2SeqModule",
    "SupervisedModule",
    "WarmupSchedule",
]
