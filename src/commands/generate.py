"""Generate answers: to one prompt, to a file of prompts, to a split of a dataset.

MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name. The prompt comes from --prompt or
from standard input; many come from --input or --data. With --tour one prompt goes through every decoding preset.

What goes to --output is kept in FILE.part as it comes: the same command goes on where it was stopped.

  parley generate runs/lora/checkpoints/last.ckpt --data knkarthick/dialogsum --output answers.jsonl
  parley generate skt/kogpt2-base-v2 --prompt "이순신은" --preset top-k-top-p --seed 1
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands import arguments
from src.commands.output import show
from src.commands.visible import say
from src.errors import ParleyError

if TYPE_CHECKING:
    from src.inference.examples import ExampleSet
    from src.inference.loading import FinishedModel
    from src.models.generation import GenerationOptions

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, an adapter or model directory, or a hub name")
    parser.add_argument("--prompt", metavar="TEXT", help="one prompt; standard input when nothing says what to ask")
    parser.add_argument("--tour", action="store_true", help="the prompt through every preset, side by side")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write .jsonl or .csv for `parley score`")
    parser.add_argument(
        "--quote-formulas", action="store_true", help="in .csv, an apostrophe before what a spreadsheet would compute"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text or a table")
    arguments.add_data_arguments(parser)
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from src.inference.answers import check_output

    options = arguments.decoding_options(args)
    if args.tour and (args.preset or args.output):
        raise ParleyError("--tour goes through every preset and prints a table; leave --preset and --output out.")
    check_output(args.output, args.input, args.data)
    asked = _asked(args)
    finished = arguments.load(args, args.model)
    if args.tour:
        _tour(args, finished, asked, options)
    else:
        _answer(args, finished, asked, arguments.decoding_options(args, finished))


def _asked(args: argparse.Namespace) -> ExampleSet:
    from src.inference.examples import from_text

    many = args.input is not None or args.data is not None
    if many and args.prompt is not None:
        raise ParleyError("--prompt, --input and --data exclude each other; give one of them.")
    if many:
        asked = arguments.read_examples(args)
        if args.tour and len(asked.examples) > 1:
            raise ParleyError("--tour is for one prompt; give --prompt, or --limit 1.")
        return asked
    prompt = args.prompt
    if prompt is None:
        if sys.stdin.isatty():
            raise ParleyError(
                "there is nothing to ask; give --prompt TEXT, --input FILE, --data PATH, or pipe a text in."
            )
        prompt = sys.stdin.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")
    if not prompt.strip():
        raise ParleyError("the prompt is empty; give it some text.")
    return from_text(prompt, args.template)


def _answer(args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions) -> None:
    from src.inference.answers import answer_all, prediction_columns, write_answers
    from src.inference.journal import AnswerJournal
    from src.models.endings import TURN_END, TURN_START

    prompts, options = arguments.encode(args, finished, asked, options)
    start = time.perf_counter()
    journal = AnswerJournal(args.output, finished, prompts, options) if args.output is not None else None
    answers = answer_all(
        finished, prompts, options, batch_size=args.batch_size, track=arguments.progress, journal=journal
    )
    seconds = time.perf_counter() - start
    columns = [prediction_columns(texts) for texts in answers]
    if len(prompts) > 1:
        log.info("%d prompts answered in %.1f s (%.2f a second).", len(prompts), seconds, len(prompts) / seconds)
    if journal is not None:
        names = write_answers(args.output, asked.examples, columns, quote_formulas=args.quote_formulas)
        journal.finish()
        flags = "".join(f" --reference-column {name}" for name in names)
        hint = f"; score it: parley score {args.output}{flags} --prediction-column {next(iter(columns[0]))}"
        log.info("Written to %s%s", args.output, hint if names else ".")
        if not args.json:
            return
    pairs = list(zip(asked.examples, columns, strict=True))
    if args.json:
        rows: list[dict[str, Any]] = []
        for item, texts in pairs:
            references = {"references": item.references} if item.references else {}
            rows.append({"id": item.id, "prompt": item.prompt, **references, **texts})
        show(rows, as_json=True)
    elif len(pairs) > 1:
        show([{"id": item.id, "prompt": item.prompt, **texts} for item, texts in pairs])
    else:
        said = answers[0]
        if not any(text.strip() for text in said):
            turns = finished.tokenizer.get_vocab().keys() >= {TURN_START, TURN_END} and not finished.is_encoder_decoder
            log.warning(
                "The answer is empty: the model ended at once. --min-new-tokens makes it go on%s.",
                "; a chatbot trained on <s>question</s><s>answer</s> is asked with --format published, or by "
                "`parley chat`" * turns,
            )
        numbered = [f"{number}: {text}" for number, text in enumerate(said, start=1)] if len(said) > 1 else said
        say("\n".join(numbered) + "\n")


def _tour(args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions) -> None:
    from src.inference.answers import answer_all
    from src.inference.decoding import preset_names, with_preset

    rows = []
    for name in arguments.progress(preset_names(), "Touring"):
        prompts, decoding = arguments.encode(args, finished, asked, with_preset(options, name))
        start = time.perf_counter()
        [texts] = answer_all(finished, prompts, decoding, batch_size=1)
        seconds = round(time.perf_counter() - start, 2)
        for number, text in enumerate(texts, start=1):
            rows.append({"preset": name, "answer": number, "text": text, "seconds": seconds})
    if args.json:
        show(rows, as_json=True)
        return
    shown = [{**row, "preset": row["preset"] if row["answer"] == 1 else ""} for row in rows]
    show([{key: row[key] for key in ("preset", "answer", "text")} for row in shown], title=asked.examples[0].prompt)
