"""`parley generate` as a user runs it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.models.loading import load_model, load_tokenizer

SHORT = ["--max-new-tokens", "6", "--device", "cpu"]


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert main(["generate", *words, *SHORT, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def gpt2(tiny_base: Callable[..., Path]) -> str:
    return str(tiny_base("gpt2"))


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_one_prompt_is_what_transformers_says(
    architecture: str, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base(architecture))
    model, tokenizer = load_model(name), load_tokenizer(name)
    encoded = tokenizer("안녕, you", return_tensors="pt")
    torch.manual_seed(4)
    output = model.generate(**encoded, max_new_tokens=6, do_sample=True, top_k=50)[0]
    output = output if model.config.is_encoder_decoder else output[encoded.input_ids.shape[1] :]
    expected = tokenizer.decode(output, skip_special_tokens=True).strip()
    words = ["generate", name, "--prompt", "안녕, you", "--top-k", "50", "--seed", "4", *SHORT]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_standard_input_is_one_prompt(
    gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("안녕\n하세요\n".encode())))
    [piped] = answers(capsys, gpt2)
    assert piped["prompt"] == "안녕\n하세요"
    assert piped == answers(capsys, gpt2, "--prompt", "안녕\n하세요")[0]


def test_an_empty_answer_is_explained(
    gpt2: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(gpt2), load_tokenizer(gpt2)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 1000
        model.transformer.ln_f.bias.copy_(model.get_input_embeddings().weight[tokenizer.eos_token_id])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--prompt", "Hi", *SHORT]) == 0
    assert capsys.readouterr().out == "\n"
    assert "the model ended at once" in caplog.text


def test_several_answers_are_numbered(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", gpt2, "--prompt", "Hi", "--preset", "top-k-top-p", "--seed", "1", *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines if line[1:3] == ": "] == ["1: ", "2: ", "3: "]
    [row] = answers(capsys, gpt2, "--prompt", "Hi", "--preset", "top-k-top-p", "--num-return-sequences", "2")
    assert list(row) == ["id", "prompt", "prediction1", "prediction2"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_split_becomes_a_file_that_score_reads(
    tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    file = tmp_path / f"answers{suffix}"
    data = ["--data", str(sample), "--split", "test[:9]", "--template", "flan", "--batch-size", "2", "--limit", "4"]
    rows = answers(capsys, str(tiny_base("t5")), *data, "--output", str(file))
    assert len(rows) == len({row["id"] for row in rows}) <= 4
    assert all(row["prompt"].startswith("Dialogue:\n") for row in rows)
    columns = ["references"] if suffix == ".jsonl" else [f"reference{n + 1}" for n in range(len(rows[0]["references"]))]
    words = ["score", str(file), "--prediction-column", "prediction", "--allow-empty", "--json"]
    assert main([*words, *(word for column in columns for word in ("--reference-column", column))]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(rows)


def test_a_file_keeps_its_order_and_characters(gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["짧다", "a much longer prompt, with <b>tags</b> & more of it", "중간 길이의 글", "x"]
    file = tmp_path / "prompts.csv"
    file.write_text("q\n" + "".join(f'"{prompt}"\n' for prompt in prompts), encoding="utf-8")
    rows = answers(capsys, gpt2, "--input", str(file), "--column", "q", "--batch-size", "3")
    assert [row["prompt"] for row in rows] == prompts
    alone = [answers(capsys, gpt2, "--prompt", prompt)[0]["prediction"] for prompt in prompts]
    assert [row["prediction"] for row in rows] == alone
    assert main(["generate", gpt2, "--input", str(file), "--column", "q", *SHORT]) == 0
    assert all(prompt[:9] in capsys.readouterr().out for prompt in prompts[:0] or ["짧다"])


def test_shots_stop_at_the_stop_sequence(
    gpt2: str, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.inference import answers as module

    seen: list = []

    def spy(finished, prompts, options, **_):
        seen.append((finished.tokenizer.decode(prompts[0]), options.stop_strings))
        return [["said"]] * len(prompts)

    monkeypatch.setattr(module, "answer_all", spy)
    data = ["--data", str(sample), "--split", "test", "--limit", "1", "--template", "flan"]
    answers(capsys, gpt2, *data, "--shots", "2")
    answers(capsys, gpt2, *data, "--shots", "1", "--shots-split", "test", "--shot-separator", "\n##\n")
    text, stops = seen[0]
    assert text.count("Dialogue:\n") == 3
    assert text.count("\n\n\n\n\n") == 2
    assert text.endswith("What was going on?")
    assert stops == ["\n\n\n"]
    assert (seen[1][0].count("\n##\n"), seen[1][1]) == (1, ["\n##\n"])


def test_the_tour_goes_through_every_preset(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answers(capsys, gpt2, "--prompt", "Hi", "--tour", "--seed", "1")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["preset"]] = counts.get(row["preset"], 0) + 1
    assert counts == {
        "greedy": 1, "beams-5": 1, "beams-5-no-repeat": 1, "beams-5-all": 5, "sampling": 1,
        "temperature": 1, "top-k": 1, "top-p": 1, "top-k-top-p": 3,
    }  # fmt: skip
    assert main(["generate", gpt2, "--prompt", "Hi", "--tour", *SHORT]) == 0
    assert "beams-5-no-repeat" in capsys.readouterr().out


def test_a_chat_template_is_used_where_there_is_one(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(tiny_base("llama")), load_tokenizer(tiny_base("llama"))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    said = answers(capsys, str(tmp_path / "chat"), "--prompt", "Hi", "--chat-template", "--system", "Be kind.")
    raw = answers(capsys, str(tiny_base("llama")), "--prompt", "<system>Be kind.<user>Hi<assistant>", "--format", "raw")
    assert said[0]["prediction"] == raw[0]["prediction"]
    assert answers(capsys, str(tmp_path / "chat"), "--prompt", "Hi") == answers(
        capsys, str(tmp_path / "chat"), "--prompt", "Hi", "--format", "chat"
    )


def test_bad_input_is_one_line(
    gpt2: str, tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(sample)]
    cases = [
        ([gpt2, "--prompt", " "], "the prompt is empty"),
        ([gpt2, "--prompt", "x", *data], "exclude each other"),
        ([gpt2, "--input", "x.csv", *data], "one of them"),
        ([gpt2, *data, "--column", "x"], "are for --input"),
        ([gpt2, *data, "--limit", "0"], "--limit is 0"),
        ([gpt2, *data, "--split", "nowhere"], "nowhere"),
        ([gpt2, *data, "--shots", "-1", "--limit", "1"], "--shots is -1"),
        ([gpt2, *data, "--shots", "2000", "--limit", "1"], "lower it"),
        ([gpt2, "--prompt", "x", "--shots", "1"], "--shots-data"),
        ([gpt2, "--prompt", "x", "--preset", "none"], "there is no preset 'none'"),
        ([gpt2, "--prompt", "x", "--temperature", "0"], "temperature is 0.0"),
        ([gpt2, "--prompt", "x", "--top-k", "many"], "--top-k"),
        ([gpt2, "--prompt", "x", "--output", "x.txt"], "give one of .jsonl, .csv"),
        ([gpt2, "--prompt", "x", "--max-new-tokens", "5000"], "max_new_tokens is 5000"),
        ([gpt2, "--prompt", "x", "--chat-template"], "no chat template"),
        ([gpt2, "--prompt", "x", "--system", "x"], "--system"),
        ([gpt2, "--tour", *data, "--split", "test"], "--tour is for one prompt"),
        ([gpt2, "--tour", "--prompt", "x", "--preset", "greedy"], "leave --preset"),
        ([str(tiny_base("t5")), "--prompt", "x", "--format", "published"], "encoder-decoder"),
        ([str(tmp_path / "none"), "--prompt", "x"], "there is no model directory"),
        ([], "MODEL"),
    ]
    for words, said in cases:
        assert main(["generate", *words, "--device", "cpu"]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parley generate: ")]
        assert len(error) == 1
        assert said in error[0]
