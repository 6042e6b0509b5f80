"""What is learned from rows on the disk is what is learned from rows in memory, by every kind of Module."""

from __future__ import annotations

import csv

import pytest

from scripts.crash_tasks import TASKS, Dealing, pairs_of, words_of, write_pairs
from src.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seq2seq", "causal", "ppo", "grpo", "dpo", "reward"])
def test_the_same_figures_step_by_step_where_the_buffer_holds_all(name, tiny_base, tmp_path):
    task, base = TASKS[name], tmp_path / "base"
    base.symlink_to(tiny_base(task.architecture), target_is_directory=True)
    write_pairs(pairs_of(base))

    def figures(streaming: str) -> list[dict[str, str]]:
        root = tmp_path / streaming
        words = words_of(task, Dealing(1, 1, 1), base=base, cache=tmp_path / "cache", root=root, epochs=1)
        wandb = words.index("--trainer.logger+=WandbRun")
        del words[wandb : wandb + 5]  # with its settings
        words += ["--data.init_args.streaming", streaming, "--data.init_args.group_by_length", "false"]
        assert main([*words, "--trainer.max_steps", "6"]) == 0
        with next(root.glob("version_*/metrics.csv")).open(encoding="utf-8") as stream:
            return [
                {key: value for key, value in row.items() if not key.startswith("time/") and "per_second" not in key}
                for row in csv.DictReader(stream)
            ]

    streamed = figures("true")
    assert streamed == figures("false")
    assert len([row for row in streamed if any(key.startswith("train/") for key in row)]) >= 6
