"""What the crash test trains, and how it is dealt to processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scripts.crash_processes import ROOT

SAMPLE = ROOT / "src" / "datamodules" / "sample"
EVERY_N_STEPS = 6
STEPS_AN_EPOCH = 48  # a multiple of the above: a checkpoint falls on an epoch's last batch, before its validation
BATCHES_AN_ITERATION = 4  # of an online method, so that every second checkpoint falls between two of them
BATCH_SIZE = 4  # of the most processes that a run has


@dataclass(frozen=True)
class Task:
    """A recipe made small.

    Attributes:
        architecture: Of the base.
        recipe: In `configs/`.
        options: What is set otherwise.
        monitor: The metric of `best.ckpt`; more of it is better.
        minibatch: Of an online method: the option's name and responses on each process, where there are most.
        certain: What takes the chance out of training, where a run goes on with other random numbers.
        learns_pairs: From preference pairs, which `write_pairs` makes.
    """

    architecture: str
    recipe: str
    options: tuple[str, ...]
    monitor: str = "val/rouge1"
    minibatch: tuple[str, int] | None = None
    certain: tuple[str, ...] = ("--model.init_args.dropout", "0.0")
    learns_pairs: bool = False


def _online(method: str, minibatch_size: int, *own: str) -> Task:
    """A method that learns from its own answers, with several training steps an iteration."""
    options = f"--model.init_args.{method}"
    return Task(
        "t5",
        f"demo/dialogsum_{method}.yaml",
        (
            *("--model.init_args.reward", "LengthReward", "--model.init_args.reward.init_args.target", "6"),
            *(f"{options}.use_score_scaling", "true"),
            *("--model.init_args.rollout.output_min_length", "4", "--model.init_args.rollout.output_max_length", "8"),
            *("--model.init_args.rollout.min_new_tokens", "2", *own),
        ),
        monitor="val/reward",
        minibatch=(f"{options}.minibatch_size", minibatch_size),
        certain=(),
    )


def _groups_of_two(method: str) -> Task:
    options = f"--model.init_args.{method}"
    return _online(method, 4, f"{options}.num_generations", "2", f"{options}.num_iterations", "2")


TASKS = {
    "seq2seq": Task("t5", "dialogsum_seq2seq.yaml", ("--model.init_args.optimizer.init_args.lr", "0.01")),
    "lora": Task(
        "t5",
        "dialogsum_lora.yaml",
        ("--model.init_args.optimizer.init_args.lr", "0.01"),
        certain=("--model.init_args.dropout", "0.0", "--model.init_args.lora.lora_dropout", "0.0"),
    ),
    "causal": Task(
        "gpt2",
        "dialogsum_causal_lora.yaml",
        (
            *("--model.init_args.lora", "null"),
            *("--model.init_args.dropout", "0.1"),
            *("--data.init_args.format", "plain"),
        ),
    ),
    "conversation": Task(
        "gpt2",
        "conversation_causal.yaml",
        (
            *("--model.init_args.lora", "null", "--model.init_args.dropout", "0.1"),
            *("--data.init_args.packing", "false", "--data.init_args.messages_column", "dialogue"),
            *("--data.init_args.assistant_name", "Person2", "--data.init_args.system", "Be kind."),
        ),
    ),
    "ppo": _online(
        "ppo",
        2,
        *("--model.init_args.ppo.adaptive_kl", "true", "--model.init_args.ppo.horizon", "50"),
        *("--model.init_args.ppo.ppo_epochs", "2", "--model.init_args.ppo.use_score_norm", "false"),
    ),
    "reward": Task(
        "gpt2",
        "demo/dialogsum_reward.yaml",
        (
            *("--model.init_args.optimizer.init_args.lr", "0.001", "--model.init_args.dropout", "0.1"),
            *("--model.init_args.label_smoothing", "0.1"),
        ),
        monitor="val/margin",
        learns_pairs=True,
    ),
    "dpo": Task(
        "t5",
        "demo/dialogsum_dpo.yaml",
        (
            *("--model.init_args.optimizer.init_args.lr", "0.001", "--model.init_args.dpo.label_smoothing", "0.1"),
            *("--model.init_args.dpo.reference", "cached", "--model.init_args.generation.max_new_tokens", "4"),
        ),
        monitor="val/rewards/margins",
        certain=(),
        learns_pairs=True,
    ),
    "rloo": _groups_of_two("rloo"),
    "grpo": _groups_of_two("grpo"),
}


@dataclass(frozen=True)
class Dealing:
    """How a step's examples reach processes; the examples are the same however they are dealt.

    Attributes:
        processes: Of this start.
        most: A multiple of the processes of every start of the run.
        accumulate: Batches a step, on each process.
    """

    processes: int
    most: int
    accumulate: int

    @property
    def times(self) -> int:
        """How many times as much a process does as if there were `most` of them."""
        return self.most // self.processes


def pairs_of(base: Path) -> Path:
    """Where a task's preference pairs are."""
    return base.with_name("pairs.jsonl")


def write_pairs(file: Path) -> None:
    """Preference pairs of the sample: a dialogue's own summary against the next one's, with a margin."""
    rows = [json.loads(line) for line in (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    with file.open("w", encoding="utf-8") as stream:
        for number, (row, other) in enumerate(zip(rows, [*rows[1:], rows[0]], strict=True)):
            pair = {"prompt": row["dialogue"], "chosen": row["summary"], "rejected": other["summary"]}
            stream.write(json.dumps({**pair, "margin": number % 3 / 4, "id": row["fname"]}) + "\n")


STRATEGIES = {  # of several processes
    "ddp": ("--trainer.strategy", "ddp"),
    "sharded": ("--trainer.strategy", "sharded"),
    "sharded-checkpoints": (
        *("--trainer.strategy.class_path", "src.parallel.strategy.ShardedStrategy"),
        *("--trainer.strategy.init_args.checkpoints", "shards"),
    ),
}


def words_of(
    task: Task, dealing: Dealing, *, base: Path, cache: Path, root: Path, epochs: int, strategy: str = "ddp"
) -> list[str]:
    """The command line of a run.

    Args:
        task: What is trained.
        dealing: On how many processes.
        base: The model that it starts from.
        cache: Of tokens.
        root: Where it writes.
        epochs: How long it is.
        strategy: Of `STRATEGIES`, where there are several processes.
    """
    examples = STEPS_AN_EPOCH * BATCH_SIZE * dealing.most * dealing.accumulate
    words = [
        *("fit", "-c", str(ROOT / "configs" / task.recipe), "--model.init_args.model_name_or_path", str(base)),
        *("--data.init_args.path", str(pairs_of(base) if task.learns_pairs else SAMPLE)),
        *("--data.init_args.train_split", f"train[:{examples // (BATCHES_AN_ITERATION if task.minibatch else 1)}]"),
        *("--data.init_args.batch_size", str(BATCH_SIZE * dealing.times)),
        *("--data.init_args.validation_split", "train[764:]" if task.learns_pairs else "validation[:4]"),
        *("--data.init_args.cache_dir", str(cache)),
        *("--data.init_args.max_source_length", "48", "--data.init_args.max_target_length", "16"),
        *(() if task.learns_pairs else ("--model.init_args.generation.max_new_tokens", "4")),
        *("--trainer.accelerator", "cpu", "--trainer.devices", str(dealing.processes)),
        *("--trainer.max_epochs", str(epochs), "--trainer.log_every_n_steps", "1"),
        *("--trainer.logger+=RunLogger", "--trainer.logger.save_dir", str(root), "--trainer.logger.name", ""),
        *("--trainer.logger.flush_logs_every_n_steps", "1", "--trainer.default_root_dir", str(root)),
        *("--trainer.logger+=WandbRun", "--trainer.logger.save_dir", str(root), "--trainer.logger.offline", "true"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", str(EVERY_N_STEPS)),
        *("--trainer.callbacks.monitor", task.monitor, "--ckpt_path", "last", *task.options),
    ]
    if task.minibatch:
        name, size = task.minibatch
        words += [name, str(size * dealing.times)]
    if dealing.accumulate > 1:
        words += ["--trainer.accumulate_grad_batches", str(dealing.accumulate)]
    if dealing.processes > 1:
        words += STRATEGIES[strategy]
    return words
