"""Answers in batches, and files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from src.contracts import Example
from src.errors import ParleyError
from src.files import read_rows
from src.inference.answers import answer_all, check_output, prediction_columns, write_answers
from src.inference.loading import FinishedModel
from src.inference.predictions import read_predictions
from src.inference.prompts import PromptEncoder
from src.models.generation_options import GenerationOptions

PROMPTS = ["Hi", "Anna: Are you coming at 7:30, or are you not?", "안녕", "What", "a b c d e f g", "Yes & <no>"]


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=10),
        GenerationOptions(max_new_tokens=10, do_sample=True, seed=3, num_return_sequences=2),
    ],
    ids=["greedy", "seeded"],
)
def test_batches_change_nothing(
    architecture: str, options: GenerationOptions, finished: Callable[[str], FinishedModel]
) -> None:
    model = finished(architecture)
    prompts = PromptEncoder(model, "plain", 10).encode([Example(prompt, "") for prompt in PROMPTS])
    one, four = (answer_all(model, prompts, options, batch_size=size) for size in (1, 4))
    assert one == four
    assert {len(answers) for answers in one} == {options.num_return_sequences}
    assert len({answers[0] for answers in one}) > 3


def test_long_prompts_first_and_every_batch_tracked(finished: Callable[[str], FinishedModel]) -> None:
    model = finished("gpt2")
    prompts = PromptEncoder(model, "raw", 2).encode([Example(prompt, "") for prompt in PROMPTS])
    seen: list[list[int]] = []

    def track(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    answer_all(model, prompts, GenerationOptions(max_new_tokens=2), batch_size=4, track=track)
    assert sorted(number for batch in seen for number in batch) == list(range(6))
    lengths = [len(prompts[number]) for batch in seen for number in batch]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(ParleyError, match="batch_size is 0"):
        answer_all(model, prompts, GenerationOptions(), batch_size=0)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_files_hold_every_character(tmp_path: Path, suffix: str) -> None:
    odd = ['안녕, "하세요"\n둘째 줄', "<s>Q</s>\t[bold]\u2028 😀", "plain"]
    examples = [Example(text, "", [f"{text} 1", f"{text} 2"], str(number)) for number, text in enumerate(odd)]
    file = tmp_path / f"answers{suffix}"
    columns = write_answers(file, examples, [prediction_columns([text[::-1]]) for text in odd])
    assert columns == (["reference1", "reference2"] if suffix == ".csv" else ["references"])
    table = read_predictions(file, columns, ["prediction"])
    assert table.predictions["prediction"] == [text[::-1] for text in odd]
    assert table.references == [example.references for example in examples]
    assert [row.cells["prompt"] for row in read_rows(file)] == odd


def test_without_references_there_is_no_such_column(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv"):
        file = tmp_path / f"answers{suffix}"
        assert write_answers(file, [Example("a", "")], [prediction_columns(["b", "c"])]) == []
        [row] = read_rows(file)
        assert list(row.cells) == ["id", "prompt", "prediction1", "prediction2"]


def test_files_that_cannot_be(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("x")
    check_output(None)
    check_output(tmp_path / "out.csv", source, None)
    for path, said in (
        (tmp_path / "out.txt", "give one of .jsonl, .csv"),
        (tmp_path / "none" / "out.csv", "there is no directory"),
        (source, "read from"),
    ):
        with pytest.raises(ParleyError, match=said):
            check_output(path, source, None)
