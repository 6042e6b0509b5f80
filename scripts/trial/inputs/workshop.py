"""What the cases work on: small bases, a trained run, an adapter, files; all made by the command itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.trial.tools.forks import ask

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "src" / "datamodules" / "sample"
SIZES = "--hidden-size 32 --layers 1 --heads 2 --feed-forward-size 64 --vocab-size 400"
RECIPES = {
    "seq2seq": ("dialogsum_seq2seq.yaml", "t5"),
    "lora": ("dialogsum_lora.yaml", "t5"),
    "causal": ("dialogsum_causal_lora.yaml", "gpt2"),
    "ppo": ("demo/dialogsum_ppo.yaml", "t5"),
    "rloo": ("demo/dialogsum_rloo.yaml", "t5"),
    "grpo": ("demo/dialogsum_grpo.yaml", "t5"),
}
SMALL = {
    "model.init_args.generation.max_new_tokens": "4",
    "data.init_args.path": str(SAMPLE),
    "data.init_args.batch_size": "2",
    "data.init_args.max_source_length": "32",
    "data.init_args.max_target_length": "16",
    "data.init_args.train_split": "train[:8]",
    "data.init_args.validation_split": "validation[:4]",
    "data.init_args.test_split": "test[:4]",
    "trainer.accelerator": "cpu",
    "trainer.limit_train_batches": "2",
    "trainer.limit_val_batches": "1",
    "trainer.num_sanity_val_steps": "0",
    "trainer.max_epochs": "1",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}
REWARD = "model.init_args.reward"
ONLINE = {
    REWARD: "LengthReward",
    f"{REWARD}.init_args.target": "6",
    "model.init_args.rollout.output_min_length": "4",
    "model.init_args.rollout.output_max_length": "8",
    "model.init_args.rollout.min_new_tokens": "2",
}


@dataclass(frozen=True)
class Workshop:
    """A directory with everything in it.

    Attributes:
        root: The directory.
    """

    root: Path

    def prepare(self) -> None:
        """Make bases, a run with its checkpoint, an adapter's run, and files.

        Raises:
            SystemExit: One of the commands that make them failed.
        """
        self.make_bases()
        self._make_runs()

    def make_bases(self) -> None:
        """Make the base models, which is all that some tables need."""
        for architecture in ("t5", "gpt2"):
            made = str(self.base(architecture))
            self._do("init", "--architecture", architecture, "--output", made, *SIZES.split())

    def _make_runs(self) -> None:
        for recipe in ("seq2seq", "lora"):
            self._do(*self.words(recipe, {"trainer.default_root_dir": str(self.root / "runs" / recipe)}))
        self._do("export", "--checkpoint", str(self.checkpoint("lora")), "--output", str(self.root / "adapter"))
        rows = [{"id": str(n), "prompt": "what is it", "reference": "a day", "prediction": "a day"} for n in range(3)]
        self.write("predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _do(self, *words: str) -> None:
        answer = ask(words, self.root / "preparing", patience=300)
        if answer.status != 0:
            raise SystemExit(f"the trial cannot be prepared: parley {words[0]} said {answer.err[-500:]}")

    def base(self, architecture: str) -> Path:
        """A base model."""
        return self.root / f"base-{architecture}"

    def run(self, recipe: str = "seq2seq") -> Path:
        """A finished run's directory."""
        return self.root / "runs" / recipe / "version_0"

    def checkpoint(self, recipe: str = "seq2seq") -> Path:
        """A finished run's checkpoint."""
        return max((self.run(recipe) / "checkpoints").glob("*.ckpt"))

    def words(self, recipe: str, settings: dict[str, str] | None = None, command: str = "fit") -> tuple[str, ...]:
        """The command line that trains two small steps by a recipe, with these settings besides."""
        file, architecture = RECIPES[recipe]
        cache = {"data.init_args.cache_dir": str(self.root / "cache")}
        model = {"model.init_args.model_name_or_path": str(self.base(architecture))}
        online = ONLINE if recipe in ("ppo", "rloo", "grpo") else {}
        own = {f"model.init_args.{recipe}.minibatch_size": "2"} if online else {}
        chosen = SMALL | cache | model | online | own | (settings or {})
        if chosen.get(REWARD, "LengthReward") != "LengthReward":  # another has no such argument
            del chosen[f"{REWARD}.init_args.target"]
        given = [f"--{name}={value}" for name, value in chosen.items()]
        return (command, "-c", str(ROOT / "configs" / file), *given)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file with this content."""
        file = self.root / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a directory, to be broken."""
        target = self.root / "copies" / name
        shutil.copytree(source, target, dirs_exist_ok=True)
        return target

    def model(self, name: str, architecture: str = "t5", **config: Any) -> Path:
        """A copy of a base with other values in its config.json."""
        directory = self.copy(self.base(architecture), name)
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return directory
