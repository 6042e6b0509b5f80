"""Compute ROUGE for a predictions file, several prediction columns side by side.

The file is CSV, TSV, JSONL or Parquet. Scores are F-measures from 0 to 1, with stemming, as `rouge_score` and the
`evaluate` library give them. Where a row has several references (a column given more than once, or a list in a cell) a
score is the mean over references, and `_best` the best of them. Differences are in points, 100 times the difference of
two scores, of every column against each one named before it.

  parley score test.csv --reference-column human --prediction-column original --prediction-column peft
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands.output import show, show_json
from src.errors import ParleyError

if TYPE_CHECKING:
    from src.inference.predictions import PredictionTable
    from src.inference.scoring import Difference, Scores

RESAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    several: dict[str, Any] = {"action": "append", "required": True, "metavar": "NAME", "default": argparse.SUPPRESS}
    parser.add_argument("file", type=Path, metavar="FILE", help="predictions: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--reference-column", **several, help="column with a reference; may be given several times")
    parser.add_argument("--prediction-column", **several, help="column with predictions; may be given several times")
    parser.add_argument(
        "--tokenizer",
        choices=("standard", "unicode"),
        default="standard",
        help="what a word is: standard keeps a-z and 0-9 only, unicode keeps the letters of any script",
    )
    parser.add_argument("--no-stemmer", action="store_true", help="do not strip English suffixes before matching")
    parser.add_argument("--allow-empty", action="store_true", help="score an empty prediction 0 and do not refuse it")
    parser.add_argument(
        "--confidence",
        action="store_true",
        help=f"with differences, give 95%% confidence intervals (paired bootstrap, {RESAMPLES:,} resamples)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no tables")


def run(args: argparse.Namespace) -> None:
    from src.inference.predictions import read_predictions
    from src.inference.scoring import score_systems
    from src.metrics.rouge_scorer import BEST_KEYS, ROUGE_KEYS, ExampleScorer

    if args.confidence and len(set(args.prediction_column)) < 2:
        raise ParleyError("--confidence is about differences; give a second --prediction-column.")
    table = read_predictions(args.file, args.reference_column, args.prediction_column, allow_empty=args.allow_empty)
    scorer = ExampleScorer(use_stemmer=not args.no_stemmer, tokenizer=args.tokenizer)
    scores = score_systems(table.predictions, table.references, scorer, track=_progress)
    differences = scores.differences(resamples=RESAMPLES if args.confidence else 0)
    if args.json:
        show_json(_object(args, table, scores, differences))
        return
    _tables(scores, differences, ROUGE_KEYS, _title(table))
    if len(scores.keys) > len(ROUGE_KEYS):
        sys.stdout.write("\n")
        _tables(scores, differences, BEST_KEYS, "The best reference of each row")


def _tables(scores: Scores, differences: list[Difference], keys: Sequence[str], title: str) -> None:
    show([{"column": name, **{key: means[key] for key in keys}} for name, means in scores.means().items()], title=title)
    if differences:
        sys.stdout.write("\n")
        show([_difference_row(difference, keys) for difference in differences], title="Differences in points")


def _progress(numbers: Sequence[int]) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(numbers, "Scoring", console=console, transient=True, disable=not console.is_terminal)


def _reference_counts(table: PredictionTable) -> tuple[int, int]:
    counts = [len(texts) for texts in table.references]
    return min(counts), max(counts)


def _title(table: PredictionTable) -> str:
    fewest, most = _reference_counts(table)
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    mean = ", mean over references" if most > 1 else ""
    return f"ROUGE of {len(table):,} row{'s' * (len(table) != 1)}, {each} reference{'s' * (most != 1)} each{mean}"


def _difference_row(difference: Difference, keys: Sequence[str]) -> dict[str, str]:
    row = {"column": f"{difference.system} - {difference.over}"}
    for key in keys:
        row[key] = f"{round(difference.points[key], 2) + 0.0:+.2f}"  # + 0.0 turns -0.0 into 0.0
        if difference.interval:
            low, high = difference.interval[key]
            row[key] += f" [{low:+.2f}, {high:+.2f}]"
    return row


def _object(
    args: argparse.Namespace, table: PredictionTable, scores: Scores, differences: list[Difference]
) -> dict[str, Any]:
    fewest, most = _reference_counts(table)
    return {
        "file": str(args.file),
        "rows": len(table),
        "references_per_row": {"fewest": fewest, "most": most},
        "tokenizer": args.tokenizer,
        "stemmer": not args.no_stemmer,
        "scores": scores.means(),
        "differences": [asdict(difference) for difference in differences],
    }
