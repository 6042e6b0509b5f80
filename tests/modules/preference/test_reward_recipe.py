"""The command, from pairs in a file to PPO on what was learned from them; on two processes as on one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.callbacks.storage import read_checkpoint
from src.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, sample):
    """Of an odd number, so that two processes need a filler."""
    rows = [json.loads(line) for line in (sample / "train.jsonl").read_text().splitlines()[:46]]
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w") as stream:
        for number, row in enumerate(rows[:45]):
            pair = {"prompt": row["dialogue"], "chosen": row["summary"], "rejected": rows[number + 1]["summary"]}
            stream.write(json.dumps({**pair, "margin": number % 3 / 4}) + "\n")
    return file


def words(base, pairs, root, *more):
    return [
        *("fit", "-c", str(ROOT / "configs" / "demo" / "dialogsum_reward.yaml")),
        *("--model.init_args.model_name_or_path", str(base), "--data.init_args.path", str(pairs)),
        *("--data.init_args.train_split", "train[:30]", "--data.init_args.validation_split", "train[30:]"),
        *("--data.init_args.cache_dir", str(root / "cache"), "--data.init_args.max_source_length", "32"),
        *("--trainer.max_epochs", "2", "--trainer.default_root_dir", str(root), "--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *more),
    ]


def results(root):
    run = root / "version_0"
    with (run / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    return read_checkpoint(sorted((run / "checkpoints").glob("step*.ckpt"))[-1]), rows, run


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny_base, pairs, tmp_path):
    for processes in (1, 2):
        more = ("--data.init_args.batch_size", str(8 // processes), "--trainer.devices", str(processes))
        more += ("--trainer.strategy", "ddp") if processes > 1 else ()
        line = words(tiny_base("gpt2"), pairs, tmp_path / str(processes), *more)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "src", *line],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    (one, ours, run), (two, theirs, other) = (results(tmp_path / name) for name in ("1", "2"))
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-5, rtol=1e-4)
    for row, same in zip(ours, theirs, strict=True):
        figures = {name for name, value in row.items() if value and name.startswith("val/")}
        assert {"val/loss", "val/accuracy", "val/accuracy_low", "val/margin", "val/calibration_error"} <= figures
        for name in figures:
            assert float(row[name]) == pytest.approx(float(same[name]), abs=1e-4)
    tables = [sorted(directory.glob("samples/*.jsonl"))[-1].read_text().splitlines() for directory in (run, other)]
    assert [json.loads(line)["id"] for line in tables[0]] == [json.loads(line)["id"] for line in tables[1]]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_ppo_learns_from_what_the_reward_model_learned(tiny_base, pairs, sample, tmp_path, architecture):
    base, root = tiny_base(architecture), tmp_path / "runs"
    assert main(words(base, pairs, root)) == 0
    checkpoint = sorted((root / "version_0" / "checkpoints").glob("step*.ckpt"))[-1]
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "reward")]) == 0
    reward = json.dumps(
        {"class_path": "ClassifierReward", "init_args": {"model_name_or_path": str(tmp_path / "reward"), "label": None}}
    )
    line = [
        *("fit", "-c", str(ROOT / "configs" / "demo" / "dialogsum_ppo.yaml")),
        *("--model.init_args.model_name_or_path", str(base), "--data.init_args.path", str(sample)),
        *("--model.init_args.reward", reward, "--model.init_args.metrics", "{}"),
        *("--model.init_args.ppo.value_head_init", str(tmp_path / "reward")),
        *("--model.init_args.ppo.minibatch_size", "4", "--data.init_args.batch_size", "4"),
        *("--model.init_args.rollout.output_min_length", "6", "--model.init_args.rollout.output_max_length", "8"),
        *("--data.init_args.max_source_length", "32", "--data.init_args.format", "plain"),
        *("--trainer.fast_dev_run", "1", "--trainer.default_root_dir", str(tmp_path / "ppo")),
    ]
    assert main(line) == 0


@pytest.mark.slow
def test_an_encoder_that_no_language_model_is_made_of(tiny_base, pairs, tmp_path):
    """DistilBERT, with a second fresh layer below its head, as an adapter in bfloat16."""
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_base("llama"))
    tokenizer.save_pretrained(tmp_path / "base")
    sizes = {"vocab_size": len(tokenizer), "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    DistilBertForMaskedLM(DistilBertConfig(**sizes, pad_token_id=tokenizer.pad_token_id)).save_pretrained(
        tmp_path / "base"
    )
    more = ("--model.init_args.lora.r", "2", "--model.init_args.lora.target_modules", "all-linear")
    more += ("--trainer.precision", "bf16-true")
    assert main(words(tmp_path / "base", pairs, tmp_path / "runs", *more)) == 0
    checkpoint, _, _ = results(tmp_path / "runs")
    saved = {name for name in checkpoint["state_dict"] if "modules_to_save" in name}
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in saved} == {"pre_classifier", "classifier"}
