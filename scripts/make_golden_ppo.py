"""Makes tests/golden/ppo.json: what TRL 0.11.4's own PPO says about made-up figures.

TRL dropped PPO for encoder-decoders after that release, so the tests compare with what it said. Run it from the
project's root with the overlays that `make peers` lays out, whose older transformers it needs:

    PYTHONPATH=.peers/trl-0.11:.peers/transformers-4.45 .venv/bin/python scripts/make_golden_ppo.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import PPOConfig, PPOTrainer  # type: ignore[attr-defined]
from trl.trainer import AdaptiveKLController  # type: ignore[attr-defined]

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "ppo.json"
ROWS, TIME, VOCABULARY = 4, 9, 7
CASES: list[dict[str, Any]] = [
    {},
    {"kl_penalty": "abs"},
    {"kl_penalty": "mse"},
    {"gamma": 0.99, "lam": 0.9, "cliprange": 0.1, "cliprange_value": 0.3, "vf_coef": 0.5, "target": 0.5},
    # TRL whitens the rewards of padding too, and carries them into the responses: here there is no padding.
    {"whiten_rewards": True, "horizon": 50.0},
]
SETTINGS = ("kl_penalty", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef", "whiten_rewards")
CONTROLLER = ("init_kl_coef", "target", "horizon")


def case(number: int, changes: dict[str, Any]) -> dict[str, Any]:
    """One batch: what was put in, what came out."""
    config = PPOConfig(**changes)
    trainer = object.__new__(PPOTrainer)  # its figures need no model
    trainer.config = config
    trainer.kl_ctl = AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 1e4).round() / 1e4

    lengths = [TIME] * ROWS if config.whiten_rewards else [TIME, 4, 1, 6]
    given = {
        "scores": draw(ROWS),
        "logprobs": -2 + draw(ROWS, TIME) / 2,
        "ref_logprobs": -2 + draw(ROWS, TIME) / 2,
        "values": draw(ROWS, TIME),
        "mask": (torch.arange(TIME) < torch.tensor(lengths).unsqueeze(1)).long(),
        "new_logprobs": -2 + draw(ROWS, TIME) / 2,
        "new_values": draw(ROWS, TIME),
        "logits": draw(ROWS, TIME, VOCABULARY),
    }
    given["new_logprobs"] = given["logprobs"] + 0.3 * (given["new_logprobs"] + 2)
    mask = given["mask"]
    scored = trainer.compute_rewards(given["scores"], given["logprobs"], given["ref_logprobs"], mask)
    values, advantages, returns = trainer.compute_advantages(given["values"], scored[0], mask)
    new = (given["logits"], given["new_values"], given["new_logprobs"])
    policy, value, stats = trainer.loss(given["logprobs"], values, *new, mask, advantages, returns)
    mean_kl = (scored[2] * mask).sum(-1).mean().item()
    trainer.kl_ctl.update(mean_kl, ROWS)
    expected = {
        "rewards": scored[0] * mask,
        "kl": scored[2] * mask,
        "advantages": advantages * mask,
        "returns": returns * mask,
        "mean_kl": mean_kl,
        "kl_coef": trainer.kl_ctl.value,
        "policy_loss": policy.item(),
        "value_loss": value.item(),
        "stats": {name: figure.item() for name, figure in stats.items() if figure.numel() == 1},
    }
    settings = {name: getattr(config, name) for name in (*SETTINGS, *CONTROLLER)}
    return {"settings": settings, "given": plain(given), "expected": plain(expected)}


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON; seven digits are what float32 has."""
    return {
        name: json.loads(json.dumps(figure.tolist()), parse_float=lambda text: float(f"{float(text):.7g}"))
        if isinstance(figure, Tensor)
        else figure
        for name, figure in figures.items()
    }


if __name__ == "__main__":
    made = [case(number, changes) for number, changes in enumerate(CASES)]
    OUTPUT.write_text("[\n" + ",\n".join(json.dumps(each) for each in made) + "\n]\n", encoding="utf-8")
