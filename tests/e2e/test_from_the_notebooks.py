"""Every command of docs/from-the-notebooks.md runs, in the page's order, on small models under the models' names."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.files import read_rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-the-notebooks.md"
SOLVED = {"emotions": 1, "questions": 5, "translations": 8}

pytestmark = pytest.mark.slow


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("parley ")]


@pytest.fixture(scope="module")
def clone(
    tiny_base: Callable[..., Path], make_classifier: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A clone of the repository with a small model or a few rows under every name on the page."""
    place = tmp_path_factory.mktemp("clone")
    (place / "configs").symlink_to(ROOT / "configs")
    models = {
        "google/flan-t5-base": tiny_base("t5", untied=True),
        "taeminlee/kogpt2": tiny_base("gpt2"),
        "skt/kogpt2-base-v2": tiny_base("gpt2"),
        "sshleifer/distilbart-cnn-12-6": tiny_base("bart"),
        "EbanLee/kobart-summary-v3": tiny_base("bart", seed=1),
        "facebook/roberta-hate-speech-dynabench-r4-target": Path(make_classifier(["nothate", "hate"], positions=512)),
    }
    for name, base in models.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(base)
    data = place / "knkarthick" / "dialogsum"
    data.mkdir(parents=True)
    for split, count, references in (("train", 201, 1), ("validation", 101, 1), ("test", 70, 3)):
        lines = ["id,dialogue,summary,topic"]
        for n in range(count):
            talk = "".join(f"#Person{1 + k % 2}#: Shall we meet at {n} or {k}, you?\n" for k in range(6))
            lines += [f'{split}_{n}_{k + 1},"{talk.strip()}",They meet {n} {k}.,time' for k in range(references)]
        (data / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    for name, count in SOLVED.items():
        rows = "".join(f"질문 {n}?,답 {n}.,0\n" for n in range(count))
        (place / f"{name}.csv").write_text(f"Q,A,label\n{rows}", encoding="utf-8")
    talks = "".join(f"질문 {n}?,답 {n}.,{n % 3}\n" for n in range(50))
    (place / "ChatbotData.csv").write_text(f"Q,A,label\n{talks}", encoding="utf-8")
    (place / "talk.txt").write_text(
        "<s>철수 : 영희야 안녕!</s><s>영희 : 어!</s><s>철수 : 잘 지냈어?</s><s>영희 : ", "utf-8"
    )
    (place / "article.txt").write_text("\nThe team began the season badly.\n\nIt ended well.\n", encoding="utf-8")
    (place / "article-ko.txt").write_text("\n올림픽은 아테네에서 열렸다.\n\n성공적이었다.\n", encoding="utf-8")
    columns = ["human_baseline_summaries", *(f"{kind}_model_summaries" for kind in ("original", "instruct", "peft"))]
    rows = ["They meet at noon.,They meet.,They meet at noon.,They met at noon."] * 3
    (place / "dialogue-summary-training-results.csv").write_text("\n".join([",".join(columns), *rows]), "utf-8")
    return place


@pytest.fixture(scope="module")
def printed(clone: Path) -> dict[str, str]:
    """What every command printed, by the command."""
    said: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setenv("HF_HOME", str(clone / "cache"))
        for words in commands():
            out, err = io.StringIO(), io.StringIO()
            patch.setattr("sys.stdin", io.StringIO("안녕?\n"))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(words)
            assert status == 0, f"parley {shlex.join(words)}: {err.getvalue()[-3000:]}"
            said[shlex.join(words)] = out.getvalue()
    return said


def test_every_document_has_its_commands_and_they_run(printed: dict[str, str]) -> None:
    assert len(printed) >= 35
    kinds = {command.split()[0] for command in printed}
    assert kinds >= {"generate", "tokenize", "inspect", "fit", "export", "compare", "score", "reward", "report", "chat"}
    quiet = [command for command, out in printed.items() if not out and not command.startswith(("fit", "report"))]
    assert not quiet


def said_by(printed: dict[str, str], *parts: str) -> str:
    [found] = [out for command, out in printed.items() if all(part in command for part in parts)]
    return found


def test_row_40_is_the_fourteenth_dialogue_with_its_second_reference(printed: dict[str, str]) -> None:
    out = said_by(printed, "--row 40 --template dialogue")
    assert "Example test_13_2" in out
    assert "They meet 13 1." in out
    assert "#Person1#: Shall we meet at 13 or 0, you?\n" in out


def test_the_few_shot_prompt_has_rows_80_and_160(printed: dict[str, str]) -> None:
    prompt = said_by(printed, "--shots-rows 80,160").partition("--- end of the prompt")[0]
    starts = [prompt.index(f"Shall we meet at {row // 3} or 0") for row in (80, 160, 40)]
    assert starts == sorted(starts)
    assert f"What was going on? They meet {80 // 3} {80 % 3}.\n\n\n\n\nDialogue:\n" in prompt
    assert prompt.endswith("What was going on? \n")


def test_special_tokens_are_tokens(printed: dict[str, str]) -> None:
    out = said_by(printed, "kogpt2-question")
    solved = "".join(f"<s>질문 : 질문 {n}?</s><s>답 : 답 {n}.</s>" for n in range(5))
    assert f"---\n{solved}<s>질문 : 인공지능의 미래에 대해 어떻게 생각하십니까?</s><s>답 : \n---" in out
    assert "<s>English: 답 7.</s><s>한국어: 이순신은 조선 중기의 무신이다.</s><s>Englisth: \n" in said_by(
        printed, "kogpt2-translation-asked"
    )


def test_the_tour_has_a_row_for_each_of_the_documents_calls(printed: dict[str, str]) -> None:
    out = said_by(printed, "--tour")
    names = ("greedy", "beams-5", "beams-5-no-repeat", "beams-5-all", "sampling", "temperature", "top-k", "top-p")
    assert all(f" {name} " in out for name in (*names, "top-k-top-p"))


def test_the_published_improvements_are_points(clone: Path, printed: dict[str, str]) -> None:
    out = said_by(printed, "score")
    assert "peft_model_summaries - instruct_model_summaries" in out.replace("\n", "")


def test_ppo_measured_both_models_on_the_eleven(clone: Path, printed: dict[str, str]) -> None:
    table = clone / "runs" / "version_2" / "before_after" / "step-0000040.csv"
    rises = [float(row.cells["reward_diff"]) for row in read_rows(table)]
    assert len(rises) == 11
    assert rises == sorted(rises, reverse=True)
    metrics = [row.cells for row in read_rows(clone / "runs" / "version_2" / "metrics.csv")]
    kl = [float(row["objective/kl"]) for row in metrics if row.get("objective/kl")]
    assert len(kl) >= 10
    assert kl[0] == pytest.approx(0, abs=1e-5)


def test_the_chatbot_gives_five_answers(printed: dict[str, str]) -> None:
    lines = said_by(printed, "--num-return-sequences 5").splitlines()
    assert [line[:3] for line in lines if re.match(r"\d: ", line)] == [f"{n}: " for n in range(1, 6)]
