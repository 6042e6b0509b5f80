"""A method of one's own is one class: REINFORCE with a moving-average baseline, which nothing in `src` knows of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from src.models.rollout import RolloutOptions
from src.modules import OnlineModule
from src.modules.online.base import MethodLoss
from src.rewards import LengthReward
from src.rl.config import OnlineConfig
from src.rl.masked import masked_mean


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(OnlineConfig):
    decay: float = 0.8


class ReinforceModule(OnlineModule):
    def __init__(self, model_name_or_path, reward, reinforce=None, **kwargs):
        super().__init__(model_name_or_path, reward, config=reinforce or ReinforceConfig(), **kwargs)
        self.baseline = 0.0

    def advantages(self, rollout):
        advantages = (rollout.shaped_scores - self.baseline).unsqueeze(-1) * rollout.response_mask
        self.baseline += (1 - self.config.decay) * (float(rollout.shaped_scores.mean()) - self.baseline)
        return replace(rollout, advantages=advantages), {"reinforce/baseline": self.baseline}

    def loss(self, minibatch, new):
        loss = -masked_mean(new.logprobs * minibatch.rollout.advantages, minibatch.rollout.response_mask)
        return MethodLoss(loss, {"reinforce/loss": loss.detach()})

    def state(self):
        return super().state() | {"baseline": self.baseline}

    def load_state(self, state):
        super().load_state(state)
        self.baseline = state["baseline"]


@pytest.mark.slow
def test_it_learns_and_its_checkpoint_has_its_state(make, tmp_path):
    config = ReinforceConfig(minibatch_size=16, num_generations=4)
    lengths = RolloutOptions(min_new_tokens=8, output_min_length=8, output_max_length=8)
    given = {"method": ReinforceModule, "reinforce": config, "rollout": lengths, "reward": LengthReward(8)}
    module, data, trainer = make(trainer={"max_steps": 60, "max_epochs": -1, "gradient_clip_val": 1.0}, **given)
    scores, fill = [], module.advantages
    module.advantages = lambda rollout: scores.append(float(rollout.scores.mean())) or fill(rollout)
    trainer.fit(module, data)
    assert sum(scores[-5:]) > sum(scores[:5]) + 0.5
    trainer.save_checkpoint(tmp_path / "reinforce.ckpt")
    again, _, _ = make(**given)
    again.configure_model()
    again.on_load_checkpoint(torch.load(tmp_path / "reinforce.ckpt", weights_only=True))
    assert again.baseline == module.baseline != 0
