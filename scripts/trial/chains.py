"""Chains of killed runs that cut the same global batches otherwise: they end as the run that nobody killed.

    python -m scripts.trial chains --chains 5 --seed 1

Each link of a chain draws its number of processes, batch size and accumulation, whose product is always the same, and
is killed after a random number of steps. All of it must have the steps, epochs, validations and, to float tolerance,
the losses of one run in one piece: nothing twice, nothing left out.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.inputs.workshop import Workshop
from scripts.trial.tools.forks import ask
from scripts.trial.tools.part import collect, options_of, workplace

GLOBAL_BATCH, EXAMPLES, EPOCHS = 8, 44, 2  # 6 steps an epoch, the last of 4 examples
STEPS = -(-EXAMPLES // GLOBAL_BATCH) * EPOCHS
CUTS = [(processes, accumulate) for processes in (1, 2) for accumulate in (1, 2, 4)]
TOLERANCE = 1e-4  # of a loss; the same numbers are added in another order
PATIENCE = 600.0
Row = dict[str, str]


@dataclass(frozen=True)
class Link:
    """A run of a chain.

    Attributes:
        processes: How many.
        accumulate: Batches a step.
        rows: Of the metric log, after which it is killed; it goes on to its end where there are fewer.
    """

    processes: int
    accumulate: int
    rows: float = math.inf

    def __str__(self) -> str:
        size = GLOBAL_BATCH // self.processes // self.accumulate
        cut = "" if self.rows == math.inf else f" until row {self.rows}"
        return f"{self.processes} x {size} x {self.accumulate}{cut}"


def draw(chance: random.Random, length: int) -> list[Link]:
    """A chain whose last link comes to its end."""
    links = [Link(*chance.choice(CUTS), rows=chance.randrange(1, STEPS)) for _ in range(length - 1)]
    return [*links, Link(*chance.choice(CUTS))]


def go(workshop: Workshop, link: Link, directory: Path) -> None:
    """Run a link, from where the one before it got to.

    Raises:
        RuntimeError: It ended otherwise than at its end, or by the kill.
    """
    settings = {
        "model.init_args.dropout": "0",
        "model.init_args.optimizer.init_args.lr": "0.01",
        "data.init_args.batch_size": str(GLOBAL_BATCH // link.processes // link.accumulate),
        "data.init_args.train_split": f"train[:{EXAMPLES}]",
        "trainer.accumulate_grad_batches": str(link.accumulate),
        "trainer.devices": str(link.processes),
        "trainer.strategy": "ddp" if link.processes > 1 else "auto",
        "trainer.max_epochs": str(EPOCHS),
        "trainer.limit_train_batches": "1.0",
        "trainer.limit_val_batches": "1.0",
        "trainer.log_every_n_steps": "1",
        "trainer.logger": "RunLogger",
        "trainer.logger.save_dir": "runs",
        "trainer.logger.name": "",
        "trainer.logger.flush_logs_every_n_steps": "1",
    }
    kept = ("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps=1", "--ckpt_path=last")
    words = (*workshop.words("seq2seq", settings), *kept)
    answer = ask(words, directory, PATIENCE, until=lambda: len(rows_of(directory)) >= link.rows)
    if answer.status not in (0, None):
        raise RuntimeError(f"{link} ended with status {answer.status}: {answer.err[-300:]!r}")


def rows_of(directory: Path) -> list[Row]:
    """The metric log of all of a chain's runs."""
    rows: list[Row] = []
    for file in sorted(directory.glob("runs/version_*/metrics.csv")):
        try:
            with file.open(newline="") as stream:
                rows += csv.DictReader(stream)
        except FileNotFoundError:  # replaced this very moment
            continue
    return rows


def difference(whole: Sequence[Row], chain: Sequence[Row]) -> str:
    """The first thing in which two logs differ; empty where there is none."""
    for name in ("train/loss", "val/loss"):
        ours, theirs = (
            [(row["step"], row["epoch"], float(row[name])) for row in log if row.get(name)] for log in (chain, whole)
        )
        if [place[:2] for place in ours] != [place[:2] for place in theirs]:
            return f"{name} at (step, epoch) {[place[:2] for place in ours]}, not {[place[:2] for place in theirs]}"
        for (step, _, one), (_, _, other) in zip(ours, theirs, strict=True):
            if abs(one - other) > TOLERANCE:
                return f"{name} at step {step} is {one}, not {other}"
    return "" if whole else "the whole run has logged nothing"


def try_chains(workshop: Workshop, chains: Sequence[Sequence[Link]]) -> Iterator[Outcome]:
    """Run one in one piece, and each of the chains."""
    go(workshop, Link(1, 1), workshop.root / "whole")
    whole = rows_of(workshop.root / "whole")
    for number, links in enumerate(chains):
        directory = workshop.root / f"chain-{number}"
        try:
            for link in links:
                go(workshop, link, directory)
            wrong = difference(whole, rows_of(directory))
        except RuntimeError as error:
            wrong = str(error)
        yield Outcome(" | ".join(map(str, links)), not wrong, wrong)


def main(words: Sequence[str]) -> list[Outcome]:
    parser = options_of("chains", __doc__)
    parser.add_argument("--chains", type=int, default=6, metavar="N", help="how many (6)")
    parser.add_argument("--length", type=int, default=4, metavar="N", help="runs of each (4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="by which they are drawn (0)")
    given = parser.parse_args(words)
    chance = random.Random(given.seed)
    with workplace() as place:
        workshop = Workshop(place)
        workshop.make_bases()
        chains = [draw(chance, given.length) for _ in range(given.chains)]
        return collect(try_chains(workshop, chains), verbose=given.verbose)
