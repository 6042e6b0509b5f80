import importlib.util
import socket
import sys

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from src.errors import ParleyError
from src.metrics.improvement import percent_improvement
from src.metrics.measurement import ToxicityMeasurement

TEXTS = ["you are a stupid fucking idiot", "have a lovely day", "see you at noon", ""]
needs_profanity = pytest.mark.skipif(
    importlib.util.find_spec("profanity_check") is None, reason="alt-profanity-check is not installed"
)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def classifier(make_classifier):
    return make_classifier(["nothate", "hate"], roberta=False)


@needs_profanity
def test_it_works_without_a_network(no_network):
    scores = ToxicityMeasurement().compute(predictions=TEXTS)["toxicity"]
    assert scores[0] > 0.9
    assert all(0 <= score < 0.3 for score in scores[1:])


@needs_profanity
def test_aggregations_agree_with_the_scores():
    toxicity = ToxicityMeasurement()
    scores = toxicity.compute(predictions=TEXTS)["toxicity"]
    mean = toxicity.compute(predictions=TEXTS, aggregation="mean")
    assert mean == {"mean_toxicity": pytest.approx(np.mean(scores)), "std_toxicity": pytest.approx(np.std(scores))}
    assert toxicity.compute(predictions=TEXTS, aggregation="maximum") == {"max_toxicity": max(scores)}
    assert toxicity.compute(predictions=TEXTS, aggregation="ratio") == {"toxicity_ratio": 0.25}
    assert toxicity.compute(predictions=TEXTS, aggregation="ratio", threshold=0.0) == {"toxicity_ratio": 1.0}
    with pytest.raises(ParleyError, match="no aggregation 'median'; choose all, mean, maximum or ratio"):
        toxicity.compute(predictions=TEXTS, aggregation="median")


@needs_profanity
def test_no_text_has_no_scores_and_no_mean():
    assert ToxicityMeasurement().compute(predictions=[]) == {"toxicity": []}
    with pytest.raises(ParleyError, match="no text to measure"):
        ToxicityMeasurement().compute(predictions=[], aggregation="mean")


@needs_profanity
def test_batches_can_be_added_one_by_one():
    toxicity = ToxicityMeasurement()
    for text in TEXTS:
        toxicity.add_batch(predictions=[text])
    assert toxicity.compute()["toxicity"] == ToxicityMeasurement().scores(TEXTS)


def test_a_classifier_gives_the_probability_of_its_toxic_label(classifier, no_network):
    from transformers import AutoTokenizer

    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for text in TEXTS[:3]]
    scores = ToxicityMeasurement(classifier, batch_size=2).compute(predictions=TEXTS[:3])["toxicity"]
    assert scores == pytest.approx(expected, abs=1e-5)
    other = ToxicityMeasurement(classifier, toxic_label="nothate").compute(predictions=TEXTS[:3])["toxicity"]
    assert [1 - score for score in other] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ParleyError, match="choose one of: nothate, hate"):
        ToxicityMeasurement(classifier, toxic_label="toxic").compute(predictions=TEXTS[:1])


def test_an_answer_is_measured_with_its_prompt_as_published_or_alone(classifier):
    prompts, responses = ["you are", "have a nice"], ["a fool", "day"]
    published, alone = ToxicityMeasurement(classifier), ToxicityMeasurement(classifier, text="response")
    assert published.of_answers(prompts, responses) == published.scores(["you are a fool", "have a nice day"])
    assert alone.of_answers(prompts, responses) == alone.scores(responses)
    assert published.of_answers(prompts, responses) != alone.of_answers(prompts, responses)
    with pytest.raises(ParleyError, match="no text 'prompt'"):
        ToxicityMeasurement(classifier, text="prompt")


def test_without_its_package_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(ParleyError, match=r"pip install -e '.\[rewards\]'"):
        ToxicityMeasurement().compute(predictions=TEXTS)


def test_the_published_figures_give_the_published_improvement():
    """Two figures each with the published mean and standard deviation."""
    before, after = (
        [mean - std, mean + std]
        for mean, std in (
            (0.04217579639622603, 0.039388845535532825),
            (0.01751735334453935, 0.019176498583731723),
        )
    )
    change = percent_improvement(before, after)
    assert f"{change.mean.percent:.2f}" == "58.47"
    assert f"{change.std.percent:.2f}" == "51.31"
    assert change.mean.after == pytest.approx(0.01751735334453935)


@pytest.mark.parametrize("figure", ["mean", "std"])
def test_the_intervals_are_those_of_scipy(figure):
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    generator = np.random.default_rng(0)
    before = generator.beta(1, 5, 300)
    after = before * generator.uniform(0, 1, 300)
    of = getattr(np, figure)
    whole = percent_improvement(before, after, confidence=0.9, seed=3)
    change = getattr(whole, figure)
    peer = bootstrap(
        (before, after),
        lambda b, a, axis: 100 * (of(b, axis) - of(a, axis)) / of(b, axis),
        paired=True,
        method="percentile",
        confidence_level=0.9,
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert change.low == pytest.approx(peer.low, abs=0.3)
    assert change.high == pytest.approx(peer.high, abs=0.3)
    assert change.low < change.percent < change.high
    assert percent_improvement(before, after, confidence=0.9, seed=3) == whole
    assert getattr(percent_improvement(before, after, confidence=0.99, seed=3), figure).low < change.low


def test_pairs_stay_pairs():
    """Every example halves: whatever is drawn, the improvement is 50 %."""
    before = np.random.default_rng(2).uniform(0.1, 1, 50)
    whole = percent_improvement(before, before / 2)
    for change in (whole.mean, whole.std):
        assert (change.low, change.percent, change.high) == pytest.approx((50, 50, 50))


def test_nothing_to_improve_and_nothing_at_all():
    change = percent_improvement([0.0, 0.0], [0.1, 0.1]).mean
    assert np.isnan([change.percent, change.low, change.high]).all()
    for before, after in (([], []), ([0.1], [0.1, 0.2])):
        with pytest.raises(ParleyError, match="figures before and"):
            percent_improvement(before, after)
