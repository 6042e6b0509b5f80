"""Results of parts come together in one file, and a part that fails stops no other."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import whole
from benchmarks.__main__ import main
from benchmarks.results import Outcome, add, as_markdown, read
from benchmarks.turns import Turns
from src.errors import ParleyError

REALLY = whole.run_apart


def outcome(name: str, **given: object) -> Outcome:
    return Outcome(f"python -m benchmarks {name}", "2026-01-02T03:04:05+00:00", 61.4, **given)  # type: ignore[arg-type]


def test_two_parts_come_together(tmp_path):
    file = tmp_path / "new" / "gpu.json"
    add(file, "NVIDIA H200", outcome("ppo", rows=[{"method": "Parley", "s": 1.5}]))
    add(file, "NVIDIA H200", outcome("dpo", rows=[{"method": "Parley", "s": 2.5}]))
    add(file, "NVIDIA H200", outcome("ppo", rows=[{"method": "Parley", "s": 1.0}]))
    device, outcomes = read(file)
    assert device == "NVIDIA H200"
    assert [(each.command.split()[-1], each.rows[0]["s"]) for each in outcomes] == [("dpo", 2.5), ("ppo", 1.0)]
    assert [each.name for each in file.parent.iterdir()] == ["gpu.json"]


def test_parts_that_end_at_once_lose_nothing(tmp_path):
    file = tmp_path / "gpu.json"
    parts = [threading.Thread(target=add, args=(file, "GPU", outcome(f"part{number}"))) for number in range(16)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert len(read(file)[1]) == 16


def test_figures_of_another_device_are_not_mixed_in(tmp_path):
    file = tmp_path / "gpu.json"
    add(file, "NVIDIA H200", outcome("ppo"))
    with pytest.raises(ParleyError, match="has figures of NVIDIA H200, not of AMD EPYC"):
        add(file, "AMD EPYC", outcome("ppo"))
    file.write_text("{}")
    with pytest.raises(ParleyError, match="is no file of benchmarks' results"):
        read(file)


def test_a_table_names_device_command_and_what_is_left_out():
    rows = [{"method": "Parley", "tokens/s": 12345.6, "share": 0.51234}, {"method": "a|b", "tokens/s": 3}]
    found = [
        outcome("ppo", title="PPO, 64 prompts", rows=rows, left_out=["TRL: not there"], versions={"torch": "2.11.0"}),
        outcome("dpo", failed="ended after 480 seconds, which is the limit"),
    ]
    assert as_markdown("NVIDIA H200", found).splitlines() == [
        "## NVIDIA H200",
        "",
        "### ppo: PPO, 64 prompts",
        "",
        "`python -m benchmarks ppo`, 2026-01-02T03:04:05+00:00, 61 s, torch 2.11.0",
        "",
        "| method | tokens/s | share |",
        "| --- | --- | --- |",
        "| Parley | 12,346 | 0.512 |",
        "| a\\|b | 3 |  |",
        "",
        "Left out: TRL: not there",
        "",
        "### dpo",
        "",
        "`python -m benchmarks dpo`, 2026-01-02T03:04:05+00:00, 61 s",
        "",
        "No table: ended after 480 seconds, which is the limit.",
    ]


def test_tables_are_printed_by_a_command(tmp_path, capsys):
    assert main(["table", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith(f"python -m benchmarks: there is no file {tmp_path / 'none.json'}")
    for device in ("A", "B"):
        add(tmp_path / f"{device}.json", device, outcome("ppo", rows=[{"s": 1}]))
    assert main(["table", str(tmp_path / "A.json"), str(tmp_path / "B.json")]) == 0
    out = capsys.readouterr().out
    assert out.index("## A\n") < out.index("## B\n")


@pytest.mark.slow
def test_a_benchmark_adds_its_table(tmp_path, capsys):
    file = tmp_path / "cpu.json"
    sizes = ["--prompts", "2", "--new-tokens", "2", "--hidden-size", "16", "--layers", "1", "--rounds", "1", "--json"]
    assert main(["generation", *sizes, "--results", str(file)]) == 0
    shown = json.loads(capsys.readouterr().out)
    _, (found,) = read(file)
    assert found.rows == shown
    assert found.command == f"python -m benchmarks generation {' '.join(sizes[:-1])}"
    assert {"torch", "transformers", "trl", "lightning", "python"} == set(found.versions)
    assert found.seconds > 0
    assert not found.failed


def run_parts(monkeypatch: pytest.MonkeyPatch, file: Path, codes: dict[str, str], *words: str) -> int:
    """All of some benchmarks, each of which is a line of Python instead."""

    def instead(command, environment, limit):
        return REALLY([sys.executable, "-c", codes[command[3]]], environment, limit)

    monkeypatch.setattr(whole, "run_apart", instead)
    return whole.run_all(list(codes), ["--results", str(file), *words])


def test_one_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
    file, trace = tmp_path / "cpu.json", tmp_path / "trace"
    wrote = f"open({str(trace)!r}, 'a').write('x')"
    codes = {"seq2seq": wrote, "ppo": f"{wrote}; raise SystemExit(3)", "dpo": wrote}
    assert run_parts(monkeypatch, file, codes) == 1
    assert trace.read_text() == "xxx"
    assert capsys.readouterr().err.splitlines()[-1] == "ppo: ended with status 3"
    _, (failed,) = read(file)
    assert failed.failed == "ended with status 3"
    assert failed.command == "python -m benchmarks ppo --device cpu"
    assert run_parts(monkeypatch, file, {"seq2seq": "pass"}) == 0


def test_one_that_takes_too_long_is_ended_with_what_it_started(monkeypatch, tmp_path):
    file, beat = tmp_path / "cpu.json", tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'w').write(str(time.time())); time.sleep(0.01)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_parts(monkeypatch, file, {"ppo": code}, "--limit-seconds", "2") == 1
    _, (failed,) = read(file)
    assert failed.failed == "ended after 2 seconds, which is the limit"
    assert beat.exists()
    ended = time.time()
    assert float(beat.read_text() or ended) <= ended


@pytest.mark.slow
def test_methods_take_turns_and_a_peer_that_cannot_run_is_left_out(capsys):
    said: list[str] = []

    def absent() -> int:
        raise ImportError("No module named 'trl'\nand more")

    turns = Turns({"ours": lambda: said.append("ours") or 1, "TRL": absent, "plain": lambda: said.append("plain") or 2},
                  lambda name: name != "ours")  # fmt: skip
    assert turns.play(3) == [{"ours": 1, "plain": 2}] * 3
    assert said == ["ours", "plain", "plain", "ours", "ours", "plain"]
    assert turns.left_out == ["TRL: ImportError: No module named 'trl'"]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "turn" not in line] == ["left out: TRL: ImportError: No module named 'trl'"]
    turns_said = [line.partition(" of 3: ")[0] for line in lines if "turn" in line]
    assert turns_said == [f"{name}, turn {1 + place // 2}" for place, name in enumerate(said)]
    with pytest.raises(ImportError):
        Turns({"ours": absent}, lambda name: False).play(1)
