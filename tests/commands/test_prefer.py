"""`parley prefer` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.contracts import Example
from src.inference.preferences import choose_pairs, unique_prompts
from src.rewards import LengthReward

SHORT = ["--max-new-tokens", "8", "--device", "cpu", "--num-generations", "4"]
LENGTH = "{class_path: LengthReward, init_args: {target: 3}}"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{n}", "prompt": f"Ann: line {n}. Ben: yes.", "right": f"Ben says yes {n}"} for n in range(6)]
    rows.append({**rows[0], "id": "again", "right": "Ann asks"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prefer(*words: str) -> int:
    return main(["prefer", *words, *SHORT])


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_the_best_answer_is_chosen_and_the_worst_rejected(
    architecture: str, tiny_base: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = str(tiny_base(architecture)), tmp_path / "pairs.jsonl"
    assert prefer(model, "--input", str(prompts), "--reward", LENGTH, "--output", str(output), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    pairs = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary["prompts"] == 6, "a prompt that comes twice is one"
    assert summary["pairs"] + summary["ties"] + summary["unusable"] == 6
    assert len(pairs) == summary["pairs"] > 0
    words = ["generate", model, "--input", str(prompts), "--do-sample", "--num-return-sequences", "4", "--seed", "42"]
    assert main([*words, "--limit", "6", *SHORT[:4], "--json"]) == 0
    made = {row["id"]: [row[f"prediction{n}"] for n in range(1, 5)] for row in json.loads(capsys.readouterr().out)}
    reward = LengthReward(target=3)
    for pair in pairs:
        texts = [text for text in made[pair["id"]] if text.strip()]
        scores = reward([""] * len(texts), texts).tolist()
        assert pair["score_chosen"] == max(scores) > pair["score_rejected"] == min(scores)
        assert pair["chosen"] == texts[scores.index(max(scores))]
        assert pair["rejected"] == texts[scores.index(min(scores))]
        assert "margin" not in pair


def test_what_was_generated_is_not_generated_again(
    tiny_base: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two batches; then also as if nothing had happened."""
    words = [str(tiny_base("t5")), "--input", str(prompts), "--reward", LENGTH, "--batch-size", "2"]
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    assert prefer(*words, "--output", str(whole), "--margins") == 0

    import src.inference.answers as answers

    generate, asked = answers.generate_text, []

    def count(model: object, tokenizer: object, ids: object, *rest: object, **options: object) -> list[str]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(ids))  # type: ignore[arg-type]
        return generate(model, tokenizer, ids, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "generate_text", count)
    with pytest.raises(KeyboardInterrupt):
        prefer(*words, "--output", str(stopped), "--margins")
    assert not stopped.exists()
    asked[:] = [0]
    assert prefer(*words, "--output", str(stopped), "--margins") == 0
    assert asked == [0, 2], "one batch was left"
    assert stopped.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))
    for line in whole.read_text().splitlines():
        row = json.loads(line)
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"])


def test_ties_empty_answers_and_scores_that_are_none_are_counted() -> None:
    examples = [Example(str(number), "") for number in range(5)]
    answers = [["a", "b", "c"], ["a", "b", "c"], ["a", " ", ""], ["a", "b", "c"], ["a", "a ", "a"]]
    nan = float("nan")
    scores = [[1, 3, 2], [2, 2, 2], [1, 2, 3], [nan, 1, 2], [1, 2, 3]]
    chosen = choose_pairs(examples, answers, scores)
    assert [(pair.example.prompt, pair.chosen, pair.rejected) for pair in chosen.pairs] == [
        ("0", "b", "a"),
        ("3", "c", "b"),
    ]
    assert (chosen.ties, chosen.unusable) == (2, 1)
    assert chosen.mean_score == pytest.approx(27 / 14)
    fewer = choose_pairs(examples, answers, scores, 2.0)
    assert [pair.example.prompt for pair in fewer.pairs] == ["0"]
    assert (fewer.ties, fewer.unusable) == (3, 1)


def test_a_prompt_that_comes_twice_keeps_all_its_right_answers() -> None:
    examples = [Example("a", "1", ["1"], "x"), Example("b", "2", ["2"], "y"), Example("a", "3", ["3", "1"], "z")]
    assert [(item.id, item.references) for item in unique_prompts(examples)] == [("x", ["1", "3"]), ("y", ["2"])]


def test_a_reward_that_needs_right_answers_gets_them(
    tiny_base: Callable[..., Path], prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tmp_path / "reward.yaml"
    settings.write_text("reward: {class_path: RougeReward, init_args: {rouge_type: rougeLsum, aggregate: best}}\n")
    words = [str(tiny_base("t5")), "--input", str(prompts), "--output", str(tmp_path / "p.jsonl")]
    assert prefer(*words, "--reward", str(settings)) == 2
    status = prefer(*words, "--reward", str(settings), "--reference-column", "right", "--temperature", "2.0")
    assert status in (0, 2), "random answers may all have a ROUGE of 0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reward", "Profanity"], "there is no reward 'Profanity'"),
        (["--reward", "{class_path: LengthReward}"], "target"),
        (["--reward", "{class_path: LengthReward, init_args: {colour: 3}}"], "colour"),
        (["--reward", "{class_path: NoReward}"], "NoReward"),
        (["--reward", "{class_path: [}"], "not YAML"),
        (["--reward", "missing.yaml"], "missing.yaml"),
        (["--reward", LENGTH, "--num-return-sequences", "3"], "--num-generations"),
        (["--reward", LENGTH, "--no-do-sample"], "without sampling"),
        (["--reward", LENGTH, "--num-generations", "1"], "num-generations is 1"),
        (["--reward", LENGTH, "--output", "pairs.csv"], "as .jsonl"),
        (["--reward", "nobody/classifier"], "nobody/classifier"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    tiny_base: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = [str(tiny_base("t5")), "--input", str(prompts), "--output", str(tmp_path / "pairs.jsonl")]
    assert main(["prefer", *first, *SHORT, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("parley prefer: ")
    assert said in lines[-1]
