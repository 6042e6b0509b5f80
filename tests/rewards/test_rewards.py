import sys

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from rouge_score.rouge_scorer import RougeScorer

from src.errors import ParleyError
from src.rewards import (
    LengthReward,
    ProfanityReward,
    Reward,
    RougeReward,
    WeightedSum,
    check_scores,
    score_responses,
)


class TokenShare(Reward):
    """The share of one word: what PPO can learn in a minute."""

    def __init__(self, word: str = "yes"):
        self.word = word

    def __call__(self, prompts, responses):
        shares = [response.split().count(self.word) / max(1, len(response.split())) for response in responses]
        return torch.tensor(shares)


class Returns(Reward):
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, prompts, responses):
        return self.answer


class Remembers(Reward):
    """Notes the device that it was sent to."""

    def __call__(self, prompts, responses):
        return torch.zeros(len(responses))

    def to(self, device):
        self.device = device
        return self


PROMPTS = ["p", "q"]


def test_a_reward_scores_texts():
    assert score_responses(TokenShare(), PROMPTS, ["yes no", ""]).tolist() == [0.5, 0.0]
    assert TokenShare().to("cpu").word == "yes"


@pytest.mark.parametrize(
    "answer",
    [
        [1, 2.0],
        (1.0, 2.0),
        np.array([1.0, 2.0]),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0]).half(),
        torch.tensor([1.0, 2.0], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2.0)],
    ],
)
def test_scores_come_in_several_forms_and_leave_in_one(answer):
    scores = check_scores(answer, 2)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([1.0], r"^Returns returned 1 scores for 2 responses; return one number .* shape \(2,\)\.$"),
        (torch.zeros(3), "returned 3 scores for 2 responses"),
        (torch.zeros(2, 1), r"scores of the shape \(2, 1\)"),
        (torch.tensor(1.0), r"scores of the shape \(\)"),
        (0.5, r"scores of the shape \(\)"),
        (None, "returned a NoneType that does not hold plain numbers"),
        (["good", "bad"], "returned a list that does not hold plain numbers"),
        ({"score": 1.0}, "returned a dict"),
        ([[1.0], [2.0, 3.0]], "returned a list that does not hold plain numbers"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(answer, complaint):
    with pytest.raises(ParleyError, match=complaint) as caught:
        score_responses(Returns(answer), PROMPTS, ["a", "b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_any_reward_computes_in_full_precision(default):
    """A third has 8 bits in bfloat16: 0.3340."""

    class Model(Reward):
        def __call__(self, prompts, responses):
            return torch.tensor([[1.0, 2.0], [3.0, 4.0]]) @ torch.tensor([1 / 3, 1 / 7])

    expected = score_responses(Model(), PROMPTS, ["a", "b"])
    rouge = [["the cat sat"], ["the dog sat down"]]
    figures = score_responses(RougeReward(), PROMPTS, ["a cat sat there", "the dog"], rouge)
    torch.set_default_dtype(default)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(score_responses(Model(), PROMPTS, ["a", "b"]), expected)
            assert torch.equal(score_responses(RougeReward(), PROMPTS, ["a cat sat there", "the dog"], rouge), figures)
    finally:
        torch.set_default_dtype(torch.float32)


def test_scores_that_are_not_finite_pass_for_the_caller_to_count():
    scores = score_responses(Returns([float("nan"), float("inf")]), PROMPTS, ["a", "b"])
    assert torch.isfinite(scores).tolist() == [False, False]


@pytest.mark.parametrize("aggregate", ["mean", "best"])
def test_rouge_is_that_of_the_package(aggregate):
    references = [["the cat sat on the mat", "a cat was sitting"], ["dogs bark loudly"]]
    responses = ["the cat sits on a mat", "a dog barks"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    each = [
        [scorer.score(reference, response)["rougeL"].fmeasure for reference in texts]
        for texts, response in zip(references, responses, strict=True)
    ]
    expected = [max(figures) if aggregate == "best" else sum(figures) / len(figures) for figures in each]
    scores = score_responses(RougeReward(aggregate=aggregate), PROMPTS, responses, references)
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_rouge_reads_korean_with_the_unicode_tokenizer():
    texts = ["오늘 날씨 좋아요"], [["오늘 날씨 나빠요"]]
    assert score_responses(RougeReward("rouge1"), ["p"], *texts).item() == 0
    score = score_responses(RougeReward("rouge1", tokenizer="unicode"), ["p"], *texts).item()
    assert score == pytest.approx(2 / 3)


@pytest.mark.parametrize("references", [None, [["a"], []]])
def test_a_reward_that_needs_references_says_so(references):
    with pytest.raises(ParleyError, match=r"^RougeReward compares with references and this data has none"):
        score_responses(RougeReward(), PROMPTS, ["a", "b"], references)


def test_rouge_arguments_that_make_no_sense():
    with pytest.raises(ParleyError, match="no 'rougeX'; choose one of: rouge1, rouge2"):
        RougeReward("rougeX")
    with pytest.raises(ParleyError, match="no aggregate 'max'"):
        RougeReward(aggregate="max")  # type: ignore[arg-type]


def test_length_falls_off_in_a_straight_line_on_both_sides():
    texts = ["", "w", "w w", "w  w w w", "w w w w w w", "w " * 90]
    prompts = [""] * 6
    assert LengthReward(4)(prompts, texts).tolist() == [0, 0.25, 0.5, 1, 0.5, 0]
    assert LengthReward(4, falloff=2)(prompts, texts).tolist() == [0, 0, 0, 1, 0, 0]
    assert LengthReward(0, falloff=1)(prompts, texts).tolist() == [1, 0, 0, 0, 0, 0]
    for target, falloff in ((0, None), (-1, 2), (3, 0)):
        with pytest.raises(ParleyError, match="it must be"):
            LengthReward(target, falloff)


def test_profanity_tells_offensive_from_friendly():
    pytest.importorskip("profanity_check")
    texts = ["you are a stupid idiot and I hate you", "have a lovely day, my friend", ""]
    scores = score_responses(ProfanityReward(), ["damn"] * 3, texts)
    assert scores[0] < 0.2 < 0.8 < scores[1]
    assert ((scores >= 0) & (scores <= 1)).all()
    odds = score_responses(ProfanityReward("log_odds"), ["damn"] * 3, texts)
    torch.testing.assert_close(odds.sigmoid(), scores, rtol=0, atol=1e-3)
    assert (odds.abs() < 9.3).all()
    both = score_responses(ProfanityReward(text="prompt_and_response"), ["you stupid idiot,"] * 3, texts)
    assert both[1] < scores[1]
    assert ProfanityReward()([], []).shape == (0,)


def test_profanity_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(ParleyError, match=r"`pip install -e '.\[rewards\]'`\.$"):
        ProfanityReward()(["p"], ["r"])


def test_profanity_arguments_that_make_no_sense():
    with pytest.raises(ParleyError, match="no output 'logit'"):
        ProfanityReward("logit")  # type: ignore[arg-type]
    with pytest.raises(ParleyError, match="no text 'prompt'"):
        ProfanityReward(text="prompt")  # type: ignore[arg-type]


def test_a_weighted_sum_is_one():
    total = WeightedSum([TokenShare(), LengthReward(2), RougeReward("rouge1")], [2.0, -1.0, 0.5])
    responses, references = ["yes no", "yes"], [["yes no"], ["no"]]
    assert total.needs_references
    assert score_responses(total, PROMPTS, responses, references).tolist() == [0.5, 1.5]
    assert not WeightedSum([TokenShare()]).needs_references
    assert score_responses(WeightedSum([TokenShare(), LengthReward(2)]), PROMPTS, responses).tolist() == [1.5, 1.5]


def test_a_weighted_sum_moves_its_parts_and_names_the_part_that_fails():
    part = Remembers()
    WeightedSum([part, TokenShare()]).to("meta")
    assert part.device == "meta"
    with pytest.raises(ParleyError, match=r"^Returns returned 1 scores"):
        score_responses(WeightedSum([TokenShare(), Returns([1.0])]), PROMPTS, ["a", "b"])
    for rewards, weights in (([], None), ([TokenShare()], [1.0, 2.0])):
        with pytest.raises(ParleyError, match="weights for"):
            WeightedSum(rewards, weights)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rewards_come_straight_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    text = """
    reward:
      class_path: src.rewards.WeightedSum
      init_args:
        rewards:
          - class_path: src.rewards.ProfanityReward
            init_args: {output: log_odds}
          - class_path: src.rewards.LengthReward
            init_args: {target: 20}
        weights: [1.0, 0.5]
    """
    reward = parser.instantiate_classes(parser.parse_string(text)).reward
    assert isinstance(reward, WeightedSum)
    assert reward.weights == [1.0, 0.5]
    assert (reward.rewards[0].output, reward.rewards[1].target) == ("log_odds", 20)
