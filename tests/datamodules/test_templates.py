"""Published prompts to the letter, splits to the row."""

from __future__ import annotations

import pytest

from src.datamodules.splits import SplitSpec
from src.datamodules.templates import fill, named_templates, resolve_template
from src.errors import ParleyError


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("summarize", "Summarize the following conversation.\n\n" + "D" + "\n\nSummary: "),
        ("summarize-zero-shot", "\nSummarize the following conversation.\n\nD\n\nSummary:\n"),
        ("flan", "Dialogue:\n" + "D" + "\nWhat was going on?"),
        ("dialogue", "D"),
    ],
)
def test_published_templates_character_for_character(name: str, published: str) -> None:
    assert fill(resolve_template(name, {"dialogue"}), {"dialogue": "D"}) == published


def test_every_bundled_template_resolves() -> None:
    for name, text in named_templates().items():
        assert resolve_template(name, {"dialogue", "question"}) == text


def test_braces_in_a_dialogue_are_left_alone() -> None:
    text = "{x} {{y}} {0} %s $z"
    assert fill(resolve_template("flan", {"dialogue"}), {"dialogue": text}) == f"Dialogue:\n{text}\nWhat was going on?"
    assert fill(resolve_template("{{as is}} {dialogue}", {"dialogue"}), {"dialogue": text}) == "{as is} " + text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "sumarize",
            "unknown template 'sumarize'; name one of dialogue, flan, flan-few-shot, kogpt2-emotion,",
        ),
        ("", "unknown template ''"),
        ("question", "template 'question' asks for 'question', which this dataset lacks; it has {dialogue}"),
        ("{dialogue", "is malformed"),
        ("{}", "more than a field's name between braces at ''"),
        ("{dialogue} {topic}", "asks for 'topic'"),
        ("{dialogue.upper}", "more than a field's name between braces at 'dialogue.upper'"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(template: str, said: str) -> None:
    with pytest.raises(ParleyError) as error:
        resolve_template(template, {"dialogue"})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "length", "bounds"),
    [
        ("train", 10, (0, 10)),
        ("train[:80%]", 10_022, (0, 8_017)),
        ("train[80%:]", 10_022, (8_017, 10_022)),
        ("validation[100:200]", 500, (100, 200)),
        ("my-split_2[5:]", 3, (3, 3)),
        ("test[:150%]", 7, (0, 7)),
        ("test[10%:20%]", 1_500, (150, 300)),
        ("train[80%:+11]", 10_022, (8_017, 8_028)),
        ("train[50%:+10%]", 30, (15, 18)),
        ("train[80%:+11]", 10, (8, 10)),
        ("train[:+3]", 10, (0, 3)),
    ],
)
def test_slices(text: str, length: int, bounds: tuple[int, int]) -> None:
    assert SplitSpec.parse(text).bounds(length) == bounds


@pytest.mark.parametrize(
    "text", ["", "train[80%]", "train[-5:]", "train[+5:]", "train[:", "train[a:b]", "train[1:2:3]"]
)
def test_slices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ParleyError, match="is not understood; write a name, or a slice"):
        SplitSpec.parse(text)


def test_a_cut_shares_out_every_row() -> None:
    for length in range(200):
        for percent in (1, 33, 50, 80, 99):
            _, stop = SplitSpec.parse(f"train[:{percent}%]").bounds(length)
            start, end = SplitSpec.parse(f"train[{percent}%:]").bounds(length)
            assert (stop, end) == (start, length)


@pytest.mark.parametrize("text", ["rows[3:8]", "rows[:100]", "rows[9:]", "rows[:50%]", "rows[20%:90%]"])
def test_slices_are_those_of_datasets(text: str) -> None:
    from datasets import ReadInstruction

    [peer] = ReadInstruction.from_spec(text).to_absolute({"rows": 10})
    start, stop = SplitSpec.parse(text).bounds(10)
    assert (start, stop) == (peer.from_ or 0, 10 if peer.to is None else peer.to)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (r"Dialogue:\n{dialogue}\n", "Dialogue:\n{dialogue}\n"),
        (r"C:\\new {dialogue} \d", r"C:\new {dialogue} \d"),
        ("flan", "Dialogue:\n{dialogue}\nWhat was going on?"),
    ],
)
def test_a_line_end_can_be_typed(template: str, text: str) -> None:
    assert resolve_template(template, {"dialogue"}) == text
