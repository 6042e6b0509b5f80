"""Compare several models on the same examples: their answers side by side, their ROUGE, and the differences.

A MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name. They are loaded one after the
other and decode with the same options; without any options, each with its own generation settings.

  parley compare google/flan-t5-base models/adapter --data knkarthick/dialogsum --limit 100
  parley compare --name original=google/flan-t5-base --name peft=models/adapter --data knkarthick/dialogsum --row 0:10
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands import arguments, asking
from src.commands.naming import add_named_models, named_models
from src.commands.output import show, show_json
from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE

if TYPE_CHECKING:
    from src.inference.examples import ExampleSet
    from src.inference.scoring import Scores

RESERVED = ("id", "prompt", "references")
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_named_models(parser, "a model and what to call it; repeatable, after those without a name")
    shown = arguments.number(int, NOT_NEGATIVE)
    parser.add_argument("--show", type=shown, default=5, metavar="N", help="print the answers to the first N examples")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all answers as .jsonl or .csv")
    parser.add_argument(
        "--quote-formulas", action="store_true", help="in .csv, an apostrophe before what a spreadsheet would compute"
    )
    parser.add_argument(
        "--rouge-tokenizer",
        choices=("standard", "unicode"),
        default="standard",
        help="what a word is: standard keeps a-z and 0-9 only, unicode keeps the letters of any script",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no tables")
    asking.add_data_arguments(parser)
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser, engine=True)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from src.inference.answers import answer_all, check_output, write_answers
    from src.inference.journal import AnswerJournal

    options = arguments.decoding_options(args)
    if options.num_return_sequences != 1:
        raise ParleyError("models are compared by one answer a prompt; set --num-return-sequences 1.")
    models = named_models(args.models, args.named, RESERVED)
    if len(models) < 2:
        raise ParleyError("there is nothing to compare; give two models or more.")
    check_output(args.output, args.input, args.data)
    asked = asking.read_examples(args)
    answers: dict[str, list[str]] = {}
    journals: list[AnswerJournal] = []
    for number, (label, name) in enumerate(models.items(), start=1):
        finished = arguments.load(args, name)
        options = replace(arguments.decoding_options(args, finished), num_return_sequences=1)
        prompts, decoding = asking.encode(args, finished, asked, options)
        journal = None
        if args.output is not None:
            journal = AnswerJournal(Path(f"{args.output}.{number}"), finished, prompts, decoding)
            journals.append(journal)
        generated = answer_all(
            finished, prompts, decoding, batch_size=args.batch_size, track=arguments.progress, journal=journal
        )
        answers[label] = [texts[0] for texts in generated]
        del finished
    if args.output is not None:
        columns = [dict(zip(answers, texts, strict=True)) for texts in zip(*answers.values(), strict=True)]
        write_answers(args.output, asked.examples, columns, quote_formulas=args.quote_formulas)
        for journal in journals:
            journal.finish()
        log.info("Written to %s.", args.output)
    _show(args, asked, answers, _scores(args, asked, answers))


def _scores(args: argparse.Namespace, asked: ExampleSet, answers: dict[str, list[str]]) -> Scores | None:
    from src.inference.scoring import score_systems
    from src.metrics.rouge_scorer import ExampleScorer

    references = [example.references for example in asked.examples]
    if not all(references):
        log.info("Without references there is no ROUGE; name their column with --reference-column.")
        return None
    return score_systems(answers, references, ExampleScorer(tokenizer=args.rouge_tokenizer))


def _show(args: argparse.Namespace, asked: ExampleSet, answers: dict[str, list[str]], scores: Scores | None) -> None:
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(asked.examples):
        said = {name: texts[number] for name, texts in answers.items()}
        rows.append({"id": example.id, "prompt": example.prompt, "references": example.references, **said})
    if args.json:
        means = scores.means() if scores else None
        differences = [asdict(difference) for difference in scores.differences()] if scores else None
        show_json({"examples": rows, "scores": means, "differences": differences})
        return
    for row in rows[: max(args.show, 0)]:
        references = [{"": f"reference {n}", "text": text} for n, text in enumerate(row["references"], start=1)]
        outputs = [{"": name, "text": row[name]} for name in answers]
        show([{"": "prompt", "text": row["prompt"]}, *references, *outputs], title=f"Example {row['id']}")
    if scores is None:
        return
    keys = [key for key in scores.keys if not key.endswith("_best")]
    show(
        [{"model": name, **{key: means[key] for key in keys}} for name, means in scores.means().items()],
        title=f"ROUGE of {len(rows)} answers",
    )
    points = [
        {"model": f"{item.system} - {item.over}"} | {key: f"{round(item.points[key], 2) + 0.0:+.2f}" for key in keys}
        for item in scores.differences()
    ]
    show(points, title="Differences in points")
