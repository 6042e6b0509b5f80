"""Prompting as the published documents do: their prompts, their rows, their lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.files import read_rows
from src.models.loading import load_model, load_tokenizer

CPU = ["--device", "cpu"]
SHORT = ["--max-new-tokens", "5", *CPU]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six dialogues with three references each, as DialogSum's authors have them."""
    file = tmp_path / "dialogsum.test.jsonl"
    made = []
    for n in range(6):
        summaries = {f"summary{k}": f"S{n}{k}." for k in (1, 2, 3)}
        made.append({"fname": f"test_{n}", "dialogue": f"A: Is it {n}?\nB: It's {n}.", **summaries})
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return file


@pytest.fixture
def as_the_hub(rows: Path, tmp_path: Path) -> Path:
    """The same as CSV with a row a reference."""
    file = tmp_path / "hub.csv"
    lines = ["id,dialogue,summary"]
    for cells in (row.cells for row in read_rows(rows)):
        lines += [f'{cells["fname"]}_{k},"{cells["dialogue"]}",{cells[f"summary{k}"]}' for k in (1, 2, 3)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def run(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert main(["generate", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"parley {words[0]}: ")]
    assert len(lines) == 1
    return lines[0]


def test_rows_are_those_of_the_hub(
    rows: Path, as_the_hub: Path, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    t5 = str(tiny_base("t5"))
    hub = [row.cells for row in read_rows(as_the_hub)]
    for wanted, numbers in (("7", [7]), ("16,4", [16, 4]), ("0:4", [0, 1, 2, 3])):
        for source in (rows, as_the_hub):
            found = run(capsys, t5, "--data", str(source), "--row", wanted, "--template", "dialogue", *SHORT)
            assert [row["prompt"] for row in found] == [hub[number]["dialogue"] for number in numbers]
            assert [row["references"] for row in found] == [[hub[number]["summary"]] for number in numbers]
            assert [row["id"] for row in found] == [hub[number]["id"] for number in numbers]
    assert hub[7]["dialogue"] == "A: Is it 2?\nB: It's 2."  # dialogue 7 // 3
    assert hub[7]["summary"] == "S22."  # reference 7 % 3, counted from 0


def test_rows_of_the_real_data_are_the_published_ones(real_data: Path) -> None:
    from src.inference.examples import from_dataset

    source = str(real_data / "dialogsum")
    [asked] = from_dataset(source, "test", template="dialogue", rows="40").examples
    assert asked.prompt.startswith("#Person1#: What time is it, Tom?")
    assert asked.references == [asked.target]
    assert asked.target.endswith("Tom tells #Person1# there is plenty of time.")
    [other] = from_dataset(source, "test", template="dialogue", rows="200").examples
    assert other.prompt.startswith("#Person1#: Have you considered upgrading your system?")
    ten = from_dataset(source, "test", rows="0:10").examples
    assert [item.target[:10] for item in ten[:2]] == ["Ms. Dawson", "In order t"]


def test_rows_of_chatbot_data_are_its_lines(tmp_path: Path) -> None:
    from src.inference.examples import from_dataset

    file = tmp_path / "talks.csv"
    file.write_text("Q,A,label\na?,1,0\nb?,2,0\na?,3,0\n", encoding="utf-8")
    found = from_dataset(str(file), "test", rows="2,0,1").examples
    assert [(item.prompt, item.target) for item in found] == [("a?", "3"), ("a?", "1"), ("b?", "2")]


def published_few_shot(dataset: list[dict], indices: list[int]) -> str:
    """The first document's own loop."""
    start_prompt, end_prompt, stop_sequence = "Dialogue:\n", "\nWhat was going on? ", "\n\n\n"
    prompt, num_shots = "", len(indices) - 1
    for i in range(num_shots + 1):
        if i == num_shots:
            prompt = prompt + f"{start_prompt}{dataset[indices[0]]['dialogue']}{end_prompt}"
        else:
            row = dataset[indices[i + 1]]
            prompt = prompt + f"{start_prompt}{row['dialogue']}{end_prompt}{row['summary']}\n{stop_sequence}\n"
    return prompt


def test_shots_by_row_are_the_published_few_shot_prompt(
    rows: Path, as_the_hub: Path, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    t5 = tiny_base("t5")
    expected = published_few_shot([row.cells for row in read_rows(as_the_hub)], [4, 8, 16])
    words = ["--data", str(rows), "--row", "4", "--template", "flan-few-shot", "--shots-rows", "8,16"]
    [found] = run(capsys, str(t5), *words, "--show-prompt", *SHORT)
    assert found["model_input"] == expected
    assert found["tokens"] == len(load_tokenizer(t5)(expected)["input_ids"])
    assert main(["generate", str(t5), *words, "--show-prompt", *SHORT]) == 0
    out = capsys.readouterr().out
    assert f"--- prompt: {found['tokens']} tokens ---\n{expected}\n--- end of the prompt ---\n" in out
    assert "S12." in out.partition("end of the prompt")[2]  # the reference is beside the answer


@pytest.mark.parametrize(
    ("template", "published"),
    [
        ("summarize-prompting", "Summarize the following conversation.\n" + "D" + "\n\nSummary: "),
        ("summarize-zero-shot", "\nSummarize the following conversation.\n\nD\n\nSummary:\n"),
        ("summarize-evaluation", "\nSummarize the following conversation.\n\nD\n\nSummary: "),
        ("summarize", "Summarize the following conversation.\n\n" + "D" + "\n\nSummary: "),
        ("flan", "Dialogue:\n" + "D" + "\nWhat was going on?"),
        ("flan-few-shot", "Dialogue:\n" + "D" + "\nWhat was going on? "),
        ("kogpt2-tour", "<s> " + "D"),
        ("kogpt2-start", "<s>D"),
        ("kogpt2-talk", "<s>철수 : D</s><s>영희 : "),
        ("kogpt2-emotion", "<s>본문 : D</s><s>감정 : "),
        ("kogpt2-question", "<s>질문 : D</s><s>답 : "),
        ("kogpt2-translation", "<s>한국어: D</s><s>English: "),
        ("kogpt2-translation-asked", "<s>한국어: D</s><s>Englisth: "),
    ],
)
def test_templates_are_the_published_prompts(template: str, published: str) -> None:
    from src.inference.examples import from_text

    assert from_text("D", template).examples[0].prompt == published


def test_names_of_special_tokens_are_tokens_when_asked(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third document's few-shot prompt, `<s>` and `</s>` as its tokenizer reads them."""
    gpt2 = tiny_base("gpt2")
    shots = tmp_path / "shots.csv"
    shots.write_text("Q,A,label\n하나?,둘,0\n셋?,넷,0\n", encoding="utf-8")
    published = "<s>질문 : 하나?</s><s>답 : 둘</s><s>질문 : 셋?</s><s>답 : 넷</s><s>질문 : 다섯?</s><s>답 : "
    words = ["--template", "kogpt2-question", "--prompt", "다섯?", "--shots-data", str(shots), "--shots-rows", "0,1"]
    words += ["--shot-separator", "</s>", "--show-prompt"]
    [found] = run(capsys, str(gpt2), *words, "--special-tokens", *SHORT)
    tokenizer, model = load_tokenizer(gpt2), load_model(gpt2)
    ids = tokenizer(published, add_special_tokens=False, return_tensors="pt").input_ids
    assert found["model_input"] == published
    assert found["tokens"] == ids.shape[1]
    output = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert found["prediction"] == tokenizer.decode(output, skip_special_tokens=True).strip()
    [as_text] = run(capsys, str(gpt2), *words, *SHORT)
    assert as_text["tokens"] > found["tokens"]
    words = ["generate", str(gpt2), "--prompt", "x", "--special-tokens", "--format", "published", *SHORT]
    assert "--format raw" in error(capsys, *words)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_max_length_is_transformers_own(
    architecture: str, tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the prompt in it, each prompt by itself, in whatever batch."""
    base = tiny_base(architecture)
    model, tokenizer = load_model(base), load_tokenizer(base)
    prompts = ["이순신은 조선", "you are", "so it goes on and on", "we are"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts), encoding="utf-8")
    found = run(capsys, str(base), "--input", str(file), "--max-length", "40", "--format", "raw", *CPU)
    for prompt, row in zip(prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        if not model.config.is_encoder_decoder and ids[0, -1] == tokenizer.eos_token_id:
            ids = ids[:, :-1]
        output = model.generate(ids, max_length=40, do_sample=False)[0]
        new = output if model.config.is_encoder_decoder else output[ids.shape[1] :]
        assert row["prediction"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_echo_is_the_whole_sequence_as_the_documents_decode_it(
    tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2 = tiny_base("gpt2")
    model, tokenizer = load_model(gpt2), load_tokenizer(gpt2)
    ids = tokenizer("안녕 you", return_tensors="pt").input_ids
    torch.manual_seed(3)
    output = model.generate(ids, max_length=20, do_sample=True, top_k=50)[0]
    words = ["--prompt", "안녕 you", "--echo", "--max-length", "20", "--top-k", "50", "--seed", "3", *CPU]
    [row] = run(capsys, str(gpt2), *words)
    assert row["prediction"] == tokenizer.decode(output, skip_special_tokens=True)
    [three] = run(capsys, str(gpt2), *words, "--num-return-sequences", "3", "--stop", "\\n")
    assert all(three[f"prediction{n}"].startswith("안녕 you") for n in (1, 2, 3))
    tour = run(capsys, str(gpt2), "--prompt", "Hi", "--tour", "--echo", "--max-length", "12", *CPU)
    assert len(tour) == 15
    assert all(row["text"].startswith("Hi") for row in tour)


def test_what_is_cut_is_shown_as_it_is_given(
    tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    t5 = tiny_base("t5")
    tokenizer = load_tokenizer(t5)
    words = ["generate", str(t5), "--prompt", "one two three four five", "--max-source-length", "6", "--show-prompt"]
    assert main([*words, *SHORT]) == 0
    whole = tokenizer("one two three four five")["input_ids"]
    given = tokenizer.decode([*whole[:5], whole[-1]])
    assert f"--- prompt: 6 tokens, cut from {len(whole)} ---\n{given}\n" in capsys.readouterr().out


def test_files_of_prompts_of_several_lines(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2, file = str(tiny_base("gpt2")), tmp_path / "prompts.txt"
    file.write_bytes("첫 줄\r\n둘째 줄\n###\n셋째\n".encode())
    assert [row["prompt"] for row in run(capsys, gpt2, "--input", str(file), "--whole", *SHORT)] == [
        "첫 줄\n둘째 줄\n###\n셋째"
    ]
    parts = run(capsys, gpt2, "--input", str(file), "--separator", "\\n###\\n", *SHORT)
    assert [row["prompt"] for row in parts] == ["첫 줄\n둘째 줄", "셋째"]
    assert len(run(capsys, gpt2, "--input", str(file), *SHORT)) == 4


def test_compare_by_name(
    rows: Path, tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = str(tiny_base("t5")), str(tiny_base("t5", seed=1))
    data = ["--data", str(rows), "--row", "0:10", *SHORT]
    words = ["compare", "--name", f"original={one}", "--name", f"peft={two}", *data]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]) == {"original", "peft"}
    assert [len(row["references"]) for row in result["examples"]] == [1] * 10
    assert main([*words, "--output", str(tmp_path / "both.csv")]) == 0
    assert [*next(iter(read_rows(tmp_path / "both.csv"))).cells][-2:] == ["original", "peft"]
    for names, said in (
        (["--name", one, "--name", f"b={two}"], "write a name and a model"),
        (["--name", f"a={one}", "--name", f"a={two}"], "--name: the name 'a' is taken or given twice"),
        (["--name", f"prompt={one}", "--name", f"b={two}"], "is a column"),
        (["--name", f"a={one}"], "nothing to compare"),
    ):
        assert said in error(capsys, "compare", *names, *data)


def test_bad_input_is_one_line(
    rows: Path, tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t5, gpt2, text = str(tiny_base("t5")), str(tiny_base("gpt2")), tmp_path / "x.txt"
    text.write_text("one\n")
    for words, said in (
        ([t5, "--data", str(rows), "--row", "18"], "there are no rows 18"),
        ([t5, "--data", str(rows), "--row", "3:2"], "there are no rows 3:2"),
        ([t5, "--data", str(rows), "--row", "-1"], "rows '-1' are not understood"),
        ([t5, "--data", str(rows), "--row", "x"], "not understood"),
        ([t5, "--data", str(rows), "--row", "1", "--split", "test[:3]"], "counted in the whole split"),
        ([t5, "--prompt", "x", "--row", "1"], "give one with --data"),
        ([t5, "--data", str(rows), "--row", "1", "--shots", "1", "--shots-rows", "2"], "leave one of them out"),
        ([t5, "--prompt", "x", "--shots-rows", "2"], "--shots-data"),
        ([t5, "--data", str(rows), "--whole"], "give one with --input"),
        ([t5, "--input", str(text), "--shots-split", "train"], "--shots-split is about solved examples"),
        ([t5, "--input", str(text), "--shot-separator", "x"], "--shot-separator is about solved examples"),
        ([t5, "--input", str(text), "--whole", "--separator", "x"], "leave one of them out"),
        ([t5, "--input", str(text), "--separator", ""], "is empty"),
        ([t5, "--input", str(rows), "--column", "dialogue", "--whole"], "is a table"),
        ([t5, "--prompt", "x", "--echo"], "--echo is for decoder-only"),
        ([gpt2, "--prompt", "x", "--max-length", "1"], "--max-length is 1"),
        ([gpt2, "--prompt", "x", "--max-length", "99999"], "positions"),
        ([gpt2, "--prompt", "x", "--max-length", "9", "--max-new-tokens", "3"], "give one of them"),
    ):
        assert said in error(capsys, "generate", *words, *CPU)
