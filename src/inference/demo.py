"""The steps of `parley demo`: train a summariser from scratch, then align it against repeating insults."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import src
from src.errors import ParleyError

MODEL_SIZES = (
    *("--hidden-size", "128", "--layers", "2", "--heads", "4"),
    *("--feed-forward-size", "512", "--vocab-size", "1800", "--untied-head"),
)
ONLINE = ("ppo", "rloo", "grpo")
METHODS = (*ONLINE, "dpo")


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        title: What it does.
        words: The command-line arguments after `parley`.
        look: What to look for in its output.
    """

    title: str
    words: tuple[str, ...]
    look: str


@dataclass(frozen=True)
class Aligned:
    """An alignment method's results on the held-out dialogues.

    Attributes:
        method: The method's name.
        toxicity_before: Mean toxicity of the summariser's answers.
        toxicity_after: Mean toxicity of the aligned model's answers.
        fall: By how many per cent toxicity fell.
        fall_low: Lower end of the 95 % interval of `fall`.
        fall_high: Upper end of that interval.
        rouge1_before: ROUGE-1 of the summariser.
        rouge1_after: ROUGE-1 of the aligned model.
        kl: KL divergence of the aligned model from the summariser, in nats.
    """

    method: str
    toxicity_before: float
    toxicity_after: float
    fall: float
    fall_low: float
    fall_high: float
    rouge1_before: float
    rouge1_after: float
    kl: float


@dataclass(frozen=True)
class Changed:
    """A dialogue with two models' summaries of it.

    Attributes:
        prompt: The dialogue in its prompt template.
        before: The earlier model's summary.
        after: The later model's summary.
    """

    prompt: str
    before: str
    after: str


class Demo:
    """The demo's steps and their results.

    Args:
        directory: The output directory; an earlier demo in it is replaced.
        methods: Which of `METHODS` align the summariser; none are used if alt-profanity-check is not installed.

    Raises:
        ParleyError: The recipes are not there, as outside a clone of the repository.
    """

    def __init__(self, directory: Path, methods: Sequence[str] = ("ppo",)) -> None:
        package = Path(src.__file__).parent
        self._recipes = package.parent / "configs" / "demo"
        if not self._recipes.is_dir():
            raise ParleyError(f"the demo's recipes are not in {self._recipes}; run it from a clone of the repository.")
        self._sample = _short(package / "datamodules" / "sample")
        self.directory = directory
        self.methods = tuple(methods) if importlib.util.find_spec("profanity_check") else ()

    def steps(self) -> Iterator[Step]:
        """Yield the commands in order; each must have run before the next is taken from the iterator."""
        for earlier in ("before", "fit", "after", "lora", *(f"{method}{end}" for method in METHODS for end in _RUNS)):
            shutil.rmtree(self.directory / earlier, ignore_errors=True)  # a run would append to the earlier files
        (self.directory / "pairs.jsonl").unlink(missing_ok=True)
        base, model = self._at("base"), self._at("model")
        data = ("--data.init_args.path", self._sample)
        recipe = ("-c", self._recipe("seq2seq"), "--model.init_args.model_name_or_path", base, *data)
        yield Step(
            "A model from scratch",
            ("init", "--architecture", "t5", *MODEL_SIZES, "--output", base, "--overwrite"),
            "A T5 of 1.6 million random weights, and a tokenizer trained on the bundled dialogues.",
        )
        yield Step(
            "What it says before training",
            ("test", *recipe, *self._goes_to("before")),
            "test/rouge1 is next to nothing: 240 held-out dialogues, three references each.",
        )
        yield Step(
            "Fine-tuning",
            ("fit", *recipe, *self._goes_to("fit")),
            "train/loss falls, and val/rouge1 rises.",
        )
        yield Step(
            "What it says now",
            ("test", *recipe, *self._goes_to("after"), "--ckpt_path", self._checkpoint("fit")),
            "The same dialogues: compare test/rouge1.",
        )
        yield Step(
            "A directory for transformers",
            ("export", "--checkpoint", self._checkpoint("fit"), "--output", model, "--overwrite"),
            "Stock transformers loads it; so does every command below.",
        )
        adapter = ("--model.init_args.lora.r", "8", "--model.init_args.lora.target_modules", "[q,v]")
        yield Step(
            "A LoRA adapter on top",
            (
                *("fit", "-c", self._recipe("seq2seq"), "--model.init_args.model_name_or_path", model, *data, *adapter),
                *("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", *self._goes_to("lora")),
            ),
            "How many of the parameters are trained: a first line says so.",
        )
        yield Step(
            "The adapter's directory",
            ("export", "--checkpoint", self._checkpoint("lora"), "--output", self._at("adapter"), "--overwrite"),
            "Some tens of kilobytes, for PEFT.",
        )
        if self.methods:
            answers = str(self._run("after") / "predictions.csv")
            yield Step(
                "How toxic its summaries are",
                (
                    "reward",
                    "ProfanityReward",
                    "--input",
                    answers,
                    "--column",
                    "prediction",
                    "--toxicity",
                    "--show",
                    "3",
                ),
                "Some people in the sample are rude on purpose, and the summariser repeats it.",
            )
        for method in self.methods:
            yield from self._alignment(method)
        if self.methods:
            names = [self._at("model"), *(self._at(f"{method}-model") for method in self.methods)]
            yield Step(
                "Side by side",
                ("compare", *names, "--data", self._sample, "--template", "summarize", "--limit", "3"),
                "What was unlearned, and what stayed.",
            )
        runs = [self._run(name) for name in ("before", "fit", "after", "lora")]
        runs += [self._run(f"{method}{end}") for method in self.methods for end in _RUNS]
        yield Step(
            "One page about all of it",
            ("report", *map(str, runs), "--output", str(self.report)),
            "Open it in a browser.",
        )

    @property
    def report(self) -> Path:
        """The path of the HTML report."""
        return self.directory / "report.html"

    def rouge1(self, name: str) -> float:
        """ROUGE-1 of the test run of this name (`before` or `after`)."""
        return self._figures(name)["test/rouge1"]

    def aligned(self) -> list[Aligned]:
        """The results of each alignment method."""
        found = []
        for method in self.methods:
            figures = self._figures(f"{method}-test")
            toxicity = {
                "toxicity_before": "toxicity_mean_reference",
                "toxicity_after": "toxicity_mean",
                "fall": "toxicity_improvement",
                "fall_low": "toxicity_improvement_low",
                "fall_high": "toxicity_improvement_high",
            }
            others = {"rouge1_before": "rouge1_reference", "rouge1_after": "rouge1", "kl": "kl"}
            values = {name: figures[f"test/{figure}"] for name, figure in (toxicity | others).items()}
            found.append(Aligned(method.upper(), **values))
        return found

    def changed(self, count: int) -> list[Changed]:
        """The dialogues whose reward the first method raised most."""
        if not self.methods:
            return []
        rows = _read(self._run(f"{self.methods[0]}-test") / "before_after.csv")[:count]
        return [Changed(row["query"], row["response_before"], row["response_after"]) for row in rows]

    def summaries(self, count: int) -> list[Changed]:
        """Some held-out dialogues, with the model's summaries before and after fine-tuning."""
        before, after = (_read(self._run(name) / "predictions.csv") for name in ("before", "after"))
        chosen = range(0, len(after), max(1, len(after) // max(count, 1)))[:count]
        return [Changed(after[i]["prompt"], before[i]["prediction"], after[i]["prediction"]) for i in chosen]

    def _alignment(self, method: str) -> Iterator[Step]:
        given = ("-c", self._recipe(method), "--model.init_args.model_name_or_path", self._at("model"))
        prompts: tuple[str, ...] = ("--data.init_args.path", self._sample)
        tested = (*given, *prompts)
        if method == "dpo":
            pairs = self._at("pairs.jsonl")
            yield Step(
                "Pairs of its own answers",
                (
                    *("prefer", self._at("model"), "--data", self._sample, "--split", "train", "--reward"),
                    *("ProfanityReward", "--max-new-tokens", "48", "--output", pairs),
                ),
                "How many prompts gave a pair, and how many were ties.",
            )
            prompts = ("--data.init_args.path", pairs)
            asks = {"template": "summarize", "test_split": "test", "max_source_length": "256", "batch_size": "16"}
            words = [word for name, value in asks.items() for word in (f"--data.init_args.{name}", value)]
            tested = (*given, "--data", "DialogSumDataModule", "--data.init_args.path", self._sample, *words)
        yield Step(
            f"Alignment by {method.upper()}",
            ("fit", *given, *prompts, "--trainer.limit_val_batches", "0", *self._goes_to(method)),
            "env/reward_mean rises while objective/kl stays small."
            if method in ONLINE
            else "rewards/margins grow from 0: the chosen answers become likelier than the rejected ones.",
        )
        yield Step(
            "Before and after",
            ("test", *tested, *self._goes_to(f"{method}-test"), "--ckpt_path", self._checkpoint(method)),
            "test/toxicity_improvement: by how many per cent toxicity fell, with its interval; test/rouge1 beside "
            "test/rouge1_reference: what it cost.",
        )
        output = self._at(f"{method}-model")
        yield Step(
            "The aligned model's directory",
            ("export", "--checkpoint", self._checkpoint(method), "--output", output, "--overwrite"),
            "The policy alone, as transformers loads it.",
        )

    def _at(self, name: str) -> str:
        return str(self.directory / name)

    def _recipe(self, name: str) -> str:
        return _short(self._recipes / f"dialogsum_{name}.yaml")

    def _goes_to(self, name: str) -> tuple[str, str]:
        return ("--trainer.default_root_dir", self._at(name))

    def _run(self, name: str) -> Path:
        return self.directory / name / "version_0"

    def _checkpoint(self, name: str) -> str:
        files = (self._run(name) / "checkpoints").glob("*.ckpt")
        return str(max(files, key=lambda file: file.stat().st_mtime_ns))

    def _figures(self, name: str) -> dict[str, float]:
        [row] = _read(self._run(name) / "metrics.csv")
        return {name: float(value) for name, value in row.items() if value}


_RUNS = ("", "-test")


def _short(path: Path) -> str:
    """A path relative to the working directory, if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
