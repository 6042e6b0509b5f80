"""Our ROUGE beside the `rouge_score` package, hand-counted cases, and one process beside several."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from src.errors import ParleyError
from src.metrics.rouge import BEST_KEYS, ROUGE_KEYS, ExampleScorer, Rouge, rouge_scores
from src.metrics.rouge_scorer import RougeTokenizer, unicode_words

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PARLEY_DATA", REPO / ".." / "shared" / "data"))

FRAGMENTS = [
    "running", "runs", "ran", "the", "The", "flies", "dying", "generously", "Tom's", "3:30", "a", "is", "...",
    "#Person1#", "don't", "e-mail", "_under_score_", "naïve", "café", "İstanbul", "\u212aelvin", "커피", "\n", "\n\n",
    "\t", " ", "", "½",
]  # fmt: skip


def random_text(rng: random.Random, longest: int = 25) -> str:
    return rng.choice([" ", " ", "", ", "]).join(rng.choice(FRAGMENTS) for _ in range(rng.randint(0, longest)))


def peer(prediction: str, references: list[str], use_stemmer: bool = True) -> dict[str, float]:
    scorer = RougeScorer(list(ROUGE_KEYS), use_stemmer=use_stemmer)
    rows = [scorer.score(reference, prediction) for reference in references]
    mean = {key: sum(row[key].fmeasure for row in rows) / len(rows) for key in ROUGE_KEYS}
    best = scorer.score_multi(references, prediction)
    return mean | {f"{key}_best": best[key].fmeasure for key in ROUGE_KEYS}


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_equals_rouge_score_on_random_texts(use_stemmer: bool) -> None:
    rng = random.Random(0)
    scorer = ExampleScorer(use_stemmer=use_stemmer)
    for _ in range(300):
        prediction = random_text(rng)
        references = [random_text(rng) for _ in range(rng.randint(1, 4))]
        assert scorer(prediction, references) == pytest.approx(peer(prediction, references, use_stemmer), abs=1e-12)


def test_counted_by_hand() -> None:
    # 3 of 4 words shared, 2 of 3 pairs ("the cat", "cat sat"), subsequence "the cat sat".
    scores = rouge_scores("the cat sat down", ["the cat sat up"])
    assert scores == pytest.approx(
        dict(zip(ROUGE_KEYS, (3 / 4, 2 / 3, 3 / 4, 3 / 4), strict=True))
        | dict(zip(BEST_KEYS, (3 / 4, 2 / 3, 3 / 4, 3 / 4), strict=True))
    )
    # Precision 1/1, recall 1/3: F = 1/2; the other reference is met in full.
    scores = rouge_scores("cat", ["a cat sat", "cat"])
    assert scores["rouge1"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["rouge1_best"] == 1.0


def test_sum_variant_splits_at_newlines_only() -> None:
    scores = rouge_scores("b c\na", ["a\nb c"])
    assert scores["rougeLsum"] == 1.0
    assert scores["rougeL"] == pytest.approx(2 / 3)
    scores = rouge_scores("B c. A.", ["A. B c."])
    assert scores["rougeLsum"] == scores["rougeL"] == pytest.approx(2 / 3)


def test_stemming_joins_inflections_of_longer_words() -> None:
    assert rouge_scores("Tom is running", ["Tom is runs"])["rouge1"] == 1.0
    assert rouge_scores("Tom is running", ["Tom is runs"], use_stemmer=False)["rouge1"] == pytest.approx(2 / 3)
    assert rouge_scores("ran", ["run"])["rouge1"] == 0.0


@pytest.mark.parametrize("prediction", ["", "   ", "...", "\n"])
def test_a_prediction_without_words_scores_zero(prediction: str) -> None:
    assert set(rouge_scores(prediction, ["a cat"]).values()) == {0.0}


def test_korean_scores_nothing_by_the_standard_and_fully_by_unicode_words() -> None:
    text = "톰은 커피를 마셨다"
    assert rouge_scores(text, [text])["rouge1"] == 0.0
    assert rouge_scores(text, [text], tokenizer="unicode")["rouge2"] == 1.0
    assert rouge_scores("톰은 차를 마셨다", [text], tokenizer="unicode")["rouge1"] == pytest.approx(2 / 3)
    decomposed = unicodedata.normalize("NFD", text)
    assert rouge_scores(decomposed, [text], tokenizer="unicode")["rougeL"] == 1.0


def test_unicode_words_keep_vowel_signs_and_drop_punctuation() -> None:
    assert unicode_words("हिन्दी में, “Straße”_x ①") == ["हिन्दी", "में", "straße", "x", "①"]


def test_tokenizers_agree_on_ascii() -> None:
    rng = random.Random(1)
    printable = [chr(code) for code in range(128)]
    for _ in range(500):
        text = "".join(rng.choices(printable, k=40)) + " " + random_text(rng).encode("ascii", "ignore").decode()
        for use_stemmer in (True, False):
            standard, unicode = (RougeTokenizer(name, use_stemmer).tokenize(text) for name in ("standard", "unicode"))
            assert standard == unicode


def test_unknown_tokenizer_and_missing_references_are_said() -> None:
    with pytest.raises(ParleyError, match="choose standard or unicode"):
        rouge_scores("a", ["a"], tokenizer="korean")  # type: ignore[arg-type]
    with pytest.raises(ParleyError, match="no reference"):
        Rouge().update(["a"], [[]])
    with pytest.raises(TypeError, match="list of texts"):
        Rouge().update(["a"], ["a"])
    with pytest.raises(ValueError, match="2 predictions but 1"):
        Rouge().update(["a", "b"], [["a"]])


def examples(count: int, seed: int = 3) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)
    predictions = [random_text(rng) for _ in range(count)]
    return predictions, [[random_text(rng) for _ in range(rng.randint(1, 3))] for _ in range(count)]


def test_each_example_counts_once_however_many_references() -> None:
    predictions, references = examples(40)
    metric = Rouge()
    metric.update(predictions, references)
    rows = [peer(prediction, texts) for prediction, texts in zip(predictions, references, strict=True)]
    assert metric.compute() == pytest.approx({key: sum(row[key] for row in rows) / 40 for key in rows[0]}, abs=1e-11)


def test_order_and_batching_do_not_show_in_a_single_bit() -> None:
    predictions, references = examples(60)
    whole, batched = Rouge(), Rouge()
    whole.update(predictions, references)
    order = random.Random(4).sample(range(60), 60)
    for start in range(0, 60, 7):
        part = order[start : start + 7]
        batched.update([predictions[i] for i in part], [references[i] for i in part])
    assert batched.compute() == whole.compute()


def test_the_metric_survives_what_trainers_do_to_it() -> None:
    predictions, references = examples(10)
    metric = Rouge()
    metric.update(predictions[:4], references[:4])
    for other in (
        pickle.loads(pickle.dumps(metric)),
        copy.deepcopy(metric),
        torch.nn.ModuleList([metric]).bfloat16()[0],
    ):
        other.update(predictions[4:], references[4:])
        whole = Rouge()
        whole.update(predictions, references)
        assert other.compute() == whole.compute()


def test_forward_gives_the_batch_and_keeps_the_total() -> None:
    predictions, references = examples(9)
    metric, batch, whole = Rouge(), Rouge(), Rouge()
    metric(predictions[:5], references[:5])
    batch.update(predictions[5:], references[5:])
    whole.update(predictions, references)
    assert metric(predictions[5:], references[5:]) == batch.compute()
    assert metric.compute() == whole.compute()
    metric.reset()
    assert metric.units == []


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_example_gives_no_figure() -> None:
    assert all(math.isnan(value) for value in Rouge().compute().values())


WORKER = """
import json, os, sys
import torch.distributed as dist
from src.metrics.rouge import Rouge
predictions, references = json.load(open(sys.argv[1]))
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mine = slice(0, 3) if rank == 0 else slice(3, None)
metric = Rouge()
metric.update(predictions[mine], references[mine])
print(json.dumps(metric.compute()))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_unequal_shares_give_the_figure_of_one(tmp_path: Path) -> None:
    predictions, references = examples(20)
    (tmp_path / "examples.json").write_text(json.dumps([predictions, references]))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "examples.json"), str(tmp_path / "meeting")]
    processes = [
        subprocess.Popen(
            command,
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    alone = Rouge()
    alone.update(predictions, references)
    assert [json.loads(output.splitlines()[-1]) for output in outputs] == [alone.compute()] * 2


@pytest.mark.skipif(not (DATA / "dialogsum").is_dir(), reason="DialogSum is not in PARLEY_DATA")
def test_equals_rouge_score_on_dialogsum_references() -> None:
    lines = (DATA / "dialogsum" / "dialogsum.test.jsonl").read_text(encoding="utf-8").splitlines()[::5]
    rows = [json.loads(line) for line in lines]
    metric = Rouge()
    metric.update([row["summary1"] for row in rows], [[row["summary2"], row["summary3"]] for row in rows])
    scorer = RougeScorer(list(ROUGE_KEYS), use_stemmer=True)
    # As the hub lays it out: one row a reference, plainly averaged.
    scored = [scorer.score(row[name], row["summary1"]) for row in rows for name in ("summary2", "summary3")]
    hub = {key: sum(score[key].fmeasure for score in scored) / len(scored) for key in ROUGE_KEYS}
    best = [scorer.score_multi([row["summary2"], row["summary3"]], row["summary1"]) for row in rows]
    hub |= {f"{key}_best": sum(score[key].fmeasure for score in best) / len(best) for key in ROUGE_KEYS}
    assert metric.compute() == pytest.approx(hub, abs=1e-9)
