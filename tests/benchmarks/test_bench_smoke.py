"""The benchmarks run, at the size of a toy: no figure of theirs is tested."""

from __future__ import annotations

import itertools
import json

import pytest

from benchmarks import causal, checkpoints, generation, seq2seq
from benchmarks.__main__ import BENCHMARKS, main


def test_names_are_listed(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS)
    assert main(["lodaing"]) == 2
    assert capsys.readouterr().err == "python -m benchmarks: there is no 'lodaing'; the nearest is loading\n"


@pytest.mark.slow
def test_seq2seq_times_what_it_is_asked_for(capsys, monkeypatch, sample):
    monkeypatch.setattr(seq2seq, "find_data", lambda: sample / "train.jsonl")
    sizes = "--hidden-size 16 --layers 1 --examples 4 --batch-size 2 --rounds 1 --json"
    methods = ["padded", "grouped+bf16", "parley", "parley+options"]
    assert main(["seq2seq", *sizes.split(), "--methods", *methods]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    assert [row["method"] for row in rows] == [seq2seq.METHODS[name][0] for name in methods]
    assert all(row["tokens/s"] > 0 and row["tokens/CPU-s"] > 0 for row in rows)


@pytest.mark.slow
def test_causal_trains_both_ways(capsys, monkeypatch, sample, tmp_path):
    monkeypatch.setattr(causal, "find_data", lambda: sample / "train.jsonl")
    monkeypatch.setattr(causal, "SMOLLM2", tmp_path)
    assert main(["causal", "--examples", "4", "--rounds", "1", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    assert [row["method"] for row in rows] == ["a plain loop", "parley fit"]
    assert all(row["examples/s"] > 0 for row in rows)


@pytest.mark.slow
def test_generation_gives_the_same_answers_every_way(capsys):
    sizes = "--prompts 4 --new-tokens 3 --hidden-size 16 --layers 1 --rounds 1 --json"
    assert main(["generation", *sizes.split(), "--methods", *generation.METHODS]) == 0
    out = capsys.readouterr().out
    assert [row["same answers"] for row in json.loads(out[out.index("[\n") :])] == [4] * len(generation.METHODS)


@pytest.mark.slow
def test_grpo_runs_beside_trl(capsys):
    sizes = "--prompts 2 --num-generations 2 --minibatch-size 2 --tokens 3 --hidden-size 16 --layers 1 --iterations 2"
    assert main(["grpo", *sizes.split(), "--rounds", "1", "--static", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    ours = ["Parley", "Parley, float32", "Parley, static", "Parley, static, float32"]
    assert [row["method"] for row in rows] == [*ours, "TRL, bf16", "TRL, float32"]
    assert all(row["iteration s"] > 0 for row in rows)


@pytest.mark.slow
def test_dpo_runs_beside_trl_without_bf16(capsys):
    sizes = "--steps 4 --batch-size 2 --max-length 256 --hidden-size 16 --layers 1 --vocab-size 400 --rounds 1"
    assert main(["dpo", *sizes.split(), "--float32", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    assert [row["method"] for row in rows] == ["Parley, float32", "TRL, float32"]
    assert all(row["pairs/s"] > 0 and row["peak MiB"] > 0 for row in rows)


@pytest.mark.slow
def test_checkpoints_are_written_every_way(capsys, monkeypatch, sample):
    monkeypatch.setattr(checkpoints, "find_data", lambda: sample / "train.jsonl")
    sizes = "--checkpoints 2 --hidden-size 16 --layers 1 --json"
    assert main(["checkpoints", *sizes.split()]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    ways = [("one file", "in place"), ("one file", "asynchronous"), ("shards", "in place"), ("shards", "asynchronous")]
    assert [(row["checkpoint"], row["written"]) for row in rows] == ways
    assert all(row["MB"] > 0 and row["whole run s"] > row["stop s, longest"] for row in rows)


def test_medians_are_over_rounds():
    rounds = [
        {"padded": seq2seq.Clock(wall, wall), "grouped+bf16": seq2seq.Clock(wall / 2, wall / 4)} for wall in (8, 4, 100)
    ]
    padded, grouped = seq2seq.summarise(rounds, tokens=800)
    assert padded["tokens/s"] == 100
    assert grouped["tokens/s"] == 200
    assert grouped["× padded, wall"] == "2.00"
    assert grouped["× padded, cpu"] == "4.00"


def test_the_sample_stands_in_for_absent_data(monkeypatch, tmp_path):
    monkeypatch.setenv("PARLEY_DATA", str(tmp_path))
    assert seq2seq.find_data().name == "train.jsonl"


@pytest.mark.parametrize("name", seq2seq.TARGETS)
def test_targets_are_methods(name):
    assert name in seq2seq.METHODS


@pytest.mark.slow
def test_streaming_measures_runs_on_the_disk_and_in_memory(capsys):
    assert main(["streaming", "--rows", "30", "--in-memory", "20", "--batch-size", "10", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    assert [(row["rows"], row["streaming"]) for row in rows] == [(30, "yes"), (20, "no")]
    assert all(row["peak MiB"] > 100 for row in rows)


@pytest.mark.slow
def test_loading_measures_every_process(capsys):
    assert main(["loading", "--hidden-size", "32", "--layers", "1", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    ways = itertools.product(("float32", "bfloat16"), ("ddp", "shards"), (0, 1))
    assert [(row["files"], row["strategy"], row["process"]) for row in rows] == list(ways)
    assert all(row["at most, MiB"] >= row["at the first step, MiB"] > 0 for row in rows)
