import pytest
import yaml
from jsonargparse import ArgumentParser

from src.errors import ParleyError
from src.rl.config import PPOConfig
from src.rl.kl import AdaptiveKLController, FixedKLController


def test_defaults_are_the_published_recipe():
    config = PPOConfig()
    assert (config.ppo_epochs, config.minibatch_size, config.gamma, config.lam) == (1, 4, 1.0, 0.95)
    assert (config.cliprange, config.cliprange_value, config.vf_coef) == (0.2, 0.2, 0.1)
    assert (config.init_kl_coef, config.target, config.horizon, config.adaptive_kl) == (0.2, 6.0, 10_000.0, True)
    assert (config.kl_penalty, config.ratio_threshold, config.target_kl) == ("kl", 10.0, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ppo_epochs", 0),
        ("num_generations", 0),
        ("minibatch_size", 0),
        ("gamma", 1.1),
        ("lam", -0.1),
        ("cliprange", 0.0),
        ("cliprange_value", -1.0),
        ("vf_coef", -0.1),
        ("entropy_coef", float("nan")),
        ("init_kl_coef", float("inf")),
        ("target", 0.0),
        ("horizon", 0.0),
        ("kl_penalty", "full"),
        ("ratio_threshold", 0.0),
        ("target_kl", -1.0),
        ("score_clip", 0.0),
        ("missing_eos_penalty", -1.0),
    ],
)
def test_a_figure_that_makes_no_sense_is_named_in_one_line(field, value):
    with pytest.raises(ParleyError, match=rf"^ppo\.{field} is .*; it must be [^\n]+\.$"):
        PPOConfig(**{field: value})


def test_whitening_scores_needs_scaling():
    with pytest.raises(ParleyError, match=r"set ppo\.use_score_scaling to true"):
        PPOConfig(use_score_norm=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_comes_straight_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--ppo", type=PPOConfig, default=PPOConfig())
    text = yaml.safe_dump({"ppo": {"ppo_epochs": 4, "kl_penalty": "k3", "score_clip": 5}})
    config = parser.instantiate_classes(parser.parse_string(text)).ppo
    assert config == PPOConfig(ppo_epochs=4, kl_penalty="k3", score_clip=5.0)


def test_it_makes_the_controller_and_the_shaper_it_describes():
    adaptive = PPOConfig(init_kl_coef=0.1, target=3.0, horizon=500.0).kl_controller()
    assert isinstance(adaptive, AdaptiveKLController)
    assert (adaptive.value, adaptive.target, adaptive.horizon) == (0.1, 3.0, 500.0)
    fixed = PPOConfig(adaptive_kl=False, init_kl_coef=0.3).kl_controller()
    assert isinstance(fixed, FixedKLController)
    assert fixed.value == 0.3
    shaper = PPOConfig(
        use_score_scaling=True, use_score_norm=True, score_clip=2.0, missing_eos_penalty=1.0
    ).score_shaper()
    assert (shaper.use_score_scaling, shaper.use_score_norm) == (True, True)
    assert (shaper.score_clip, shaper.missing_eos_penalty) == (2.0, 1.0)
