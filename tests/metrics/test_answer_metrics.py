"""Metrics of answers: ours, torchmetrics' and one's own, in Modules of both kinds."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.text import CHRFScore, ExtendedEditDistance

from src.cli import main
from src.errors import ParleyError
from src.metrics.answers import AnswerMetric, update_all
from src.metrics.diversity import Diversity

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


class Words(AnswerMetric):
    names = ("words",)

    def each(self, answers):
        return [{"words": len(answer.prediction.split()) + len(answer.prompt.split())} for answer in answers]


def test_a_split_s_figure_is_the_mean_over_its_answers() -> None:
    texts = ["a", "b c", "d e f g", "", "h"]
    whole, parts = Words(), Words()
    whole.update(texts, [["x"]] * 5, ["p q"] * 5)
    for text in reversed(texts):
        parts.update([text], [["x"]], ["p q"])
    parts.update([], [], [])
    assert whole.compute() == parts.compute() == {"words": statistics.fmean([3, 4, 6, 2, 3])}


@pytest.mark.parametrize("given", [{}, {"words": float("nan")}, {"word": 1.0}], ids=str)
def test_a_figure_that_is_missing_or_not_finite_is_said(given: dict[str, float]) -> None:
    class Bad(Words):
        def each(self, answers):
            return [given for _ in answers]

    with pytest.raises(ParleyError, match=r"metric Bad gave .* for the answer 'Hello'; .*: words\."):
        Bad().update(["Hello"], [["x"]])


def test_diversity_is_that_of_sets_of_n_grams() -> None:
    texts = ["the cat saw the cat", "the dog saw 안녕 안녕", "", "one"]
    words = [text.split() for text in texts]
    metric = Diversity(orders=(1, 2, 3))
    for text in texts:
        metric.update([text])
    for order in (1, 2, 3):
        grams = [tuple(text[at : at + order]) for text in words for at in range(len(text) - order + 1)]
        assert metric.compute()[f"distinct{order}"] == len(set(grams)) / len(grams)
    assert torch.tensor(list(Diversity().compute().values())).isnan().all()
    with pytest.raises(ParleyError, match="each once"):
        Diversity(orders=[1, 1])


def test_no_answers_only_reach_metrics_that_take_none() -> None:
    """A process that has nothing but fillers: ours then have an empty state to gather, others are left alone."""
    given = {"eed": ExtendedEditDistance(), "words": Words(), "d": Diversity()}
    metrics = MetricCollection(given, compute_groups=False)
    update_all(metrics, [], [], [])
    assert metrics["words"].units[0].shape == (0, 1)
    update_all(metrics, ["a b"], [["a c"]], ["p"])
    assert metrics.compute().keys() == {"eed", "words", "distinct1", "distinct2"}


@pytest.mark.parametrize("recipe", ["dialogsum_seq2seq", "demo/dialogsum_rloo"])
def test_the_documented_metrics_reach_the_log_of_both_kinds(
    recipe: str, tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    """The page's YAML and its class, as they stand there."""
    pytest.importorskip("profanity_check")
    [settings] = re.findall(r"```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    [words] = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_metrics.py").write_text(words, encoding="utf-8")
    (tmp_path / "metrics.yaml").write_text(f"{settings}      words:\n        class_path: my_metrics.Words\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    configs = DOC.parents[1] / "configs"
    given = {
        "model.init_args.model_name_or_path": tiny_base("t5"),
        "data.init_args.path": sample,
        "data.init_args.batch_size": 2,
        "model.init_args.generation.max_new_tokens": 4,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_test_batches": 2,
    }
    files = ["-c", str(configs / f"{recipe}.yaml"), "-c", "metrics.yaml"]
    assert main(["test", *files, *(f"--{name}={value}" for name, value in given.items())]) == 0
    shown = capfd.readouterr().out
    figures = ["rouge1", "toxicity_mean", "distinct1", "chrf", "words"]
    figures += [f"{name}_reference" for name in figures] + ["toxicity_improvement_low"] if "demo" in recipe else []
    assert [name for name in figures if f"test/{name} " not in shown] == []
    if "demo" in recipe:
        [table] = Path("runs").glob("*/before_after.csv")
        assert {"words_before", "words_after", "toxicity_after"} <= set(table.read_text().splitlines()[0].split(","))


def test_a_peer_s_figure_is_its_own() -> None:
    answers, references = ["the cat sat", "a dog"], [["the cat sits", "a cat sat"], ["the dog"]]
    metrics = MetricCollection({"chrf": CHRFScore(), "words": Words()}, compute_groups=False)
    update_all(metrics, answers, references, ["p", "q"])
    assert metrics.compute()["chrf"] == CHRFScore()(answers, references)
