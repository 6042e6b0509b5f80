"""Generate answers: to one prompt, to a file of prompts, to a split of a dataset.

MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name. The prompt comes from --prompt or
from standard input; many come from --input or --data. With --tour one prompt goes through every decoding preset. Where
right answers are known they are shown beside the model's; --show-prompt shows what exactly the model is given.

Answers for --output are kept in FILE.part as they are generated: if stopped, the same command continues from there.

  parley generate runs/version_0/checkpoints/step=0001558.ckpt --data knkarthick/dialogsum --output answers.jsonl
  parley generate skt/kogpt2-base-v2 --prompt "이순신은" --preset top-k-top-p --seed 1
  parley generate google/flan-t5-base --data knkarthick/dialogsum --row 40 --template flan-few-shot --shots-rows 80,160
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands import arguments, asking
from src.commands.output import show
from src.commands.visible import say
from src.errors import ParleyError
from src.ranges import COUNT

if TYPE_CHECKING:
    from src.contracts import Example
    from src.inference.examples import ExampleSet
    from src.inference.loading import FinishedModel
    from src.inference.prompts import ShownPrompt
    from src.models.generation_options import GenerationOptions

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
    parser.add_argument(
        "--show-prompt", action="store_true", help="show what the model is given, to the character, and its tokens"
    )
    parser.add_argument(
        "--max-length",
        type=arguments.number(int, COUNT),
        metavar="N",
        help="tokens of prompt and answer together at most, instead of --max-new-tokens",
    )
    parser.add_argument("--echo", action="store_true", help="give prompt and answer as one text (decoder-only models)")
    asking.add_data_arguments(parser)
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser, engine=True)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from src.inference.answers import check_output

    options = arguments.decoding_options(args)
    if args.tour and (args.preset or args.output):
        raise ParleyError("--tour goes through every preset and prints a table; leave --preset and --output out.")
    if args.max_length is not None and hasattr(args, "max_new_tokens"):
        raise ParleyError("--max-length counts the prompt and --max-new-tokens does not; give one of them.")
    check_output(args.output, args.input, args.data)
    asked = _asked(args)
    finished = arguments.load(args, args.model)
    if args.tour:
        _tour(args, finished, asked, options)
    else:
        _answer(args, finished, asked, _within_max_length(args, arguments.decoding_options(args, finished)))


def _within_max_length(args: argparse.Namespace, options: GenerationOptions) -> GenerationOptions:
    """With --max-length, reserve only the shortest possible answer, so that prompts may fill the rest of the window."""
    if args.max_length is None:
        return options
    return replace(options, max_new_tokens=max(options.min_new_tokens, 1))


def _asked(args: argparse.Namespace) -> ExampleSet:
    from src.inference.examples import from_text

    many = args.input is not None or args.data is not None
    if many and args.prompt is not None:
        raise ParleyError("--prompt, --input and --data exclude each other; give one of them.")
    if many:
        asked = asking.read_examples(args)
        if args.tour and len(asked.examples) > 1:
            raise ParleyError("--tour is for one prompt; give --prompt, or --limit 1.")
        return asked
    asking.check_misplaced(args)
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

    encoder, shots, options = asking.prepare(args, finished, asked, options)
    prompts = encoder.encode(asked.examples, shots)
    shown = encoder.shown(asked.examples, shots, prompts) if args.show_prompt else None
    start = time.perf_counter()
    further = [] if args.max_length is None else [{"max_length": args.max_length}]
    further += [{"echo": True}] if args.echo else []
    journal = AnswerJournal(args.output, finished, prompts, options, *further) if args.output is not None else None
    answers = answer_all(
        finished,
        prompts,
        options,
        batch_size=args.batch_size,
        track=arguments.progress,
        journal=journal,
        max_length=args.max_length,
        echo=args.echo,
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
    if args.json:
        rows: list[dict[str, Any]] = []
        for number, (item, texts) in enumerate(zip(asked.examples, columns, strict=True)):
            references = {"references": item.references} if item.references else {}
            given = {"model_input": shown[number].text, "tokens": shown[number].tokens} if shown else {}
            rows.append({"id": item.id, "prompt": item.prompt, **given, **references, **texts})
        show(rows, as_json=True)
        return
    for number, one in enumerate(shown or ()):
        _show_prompt(one, asked.examples[number].id if len(prompts) > 1 else None)
    if len(prompts) > 1:
        show(
            [
                {"id": item.id, "prompt": item.prompt, **_references(item), **texts}
                for item, texts in zip(asked.examples, columns, strict=True)
            ]
        )
    else:
        _show_one(finished, asked.examples[0], answers[0])


def _references(item: Example) -> dict[str, str]:
    if len(item.references) < 2:
        return dict(zip(["reference"], item.references, strict=False))
    return {f"reference{number}": text for number, text in enumerate(item.references, start=1)}


def _show_prompt(prompt: ShownPrompt, id: str | None) -> None:
    cut = f", cut from {prompt.whole}" if prompt.tokens < prompt.whole else ""
    whose = "" if id is None else f" {id}"
    say(f"--- prompt{whose}: {prompt.tokens} tokens{cut} ---\n{prompt.text}\n--- end of the prompt ---\n")


def _show_one(finished: FinishedModel, item: Example, said: list[str]) -> None:
    """Print a single answer, bare (for pipes) or, where references are known, in a table beside them."""
    from src.models.endings import TURN_END, TURN_START

    if not any(text.strip() for text in said):
        turns = finished.tokenizer.get_vocab().keys() >= {TURN_START, TURN_END} and not finished.is_encoder_decoder
        log.warning(
            "The answer is empty: the model ended at once. --min-new-tokens makes it go on%s.",
            "; a chatbot trained on <s>question</s><s>answer</s> is asked with --format published, or by "
            "`parley chat`" * turns,
        )
    if item.references:
        names = ["answer"] if len(said) == 1 else [f"answer{number}" for number in range(1, len(said) + 1)]
        rows = {**_references(item), **dict(zip(names, said, strict=True))}
        show([{"": name, "text": text} for name, text in rows.items()], title=f"Example {item.id}")
        return
    numbered = [f"{number}: {text}" for number, text in enumerate(said, start=1)] if len(said) > 1 else said
    say("\n".join(numbered) + "\n")


def _tour(args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions) -> None:
    from src.inference.answers import answer_all
    from src.inference.decoding import preset_names

    rows: list[dict[str, Any]] = []
    for name in arguments.progress(preset_names(), "Touring"):
        encoder, shots, decoding = asking.prepare(args, finished, asked, _for_tour(args, options, name))
        prompts = encoder.encode(asked.examples, shots)
        if args.show_prompt and not (rows or args.json):
            _show_prompt(encoder.shown(asked.examples, shots, prompts)[0], None)
        start = time.perf_counter()
        [texts] = answer_all(finished, prompts, decoding, batch_size=1, max_length=args.max_length, echo=args.echo)
        seconds = round(time.perf_counter() - start, 2)
        for number, text in enumerate(texts, start=1):
            rows.append({"preset": name, "answer": number, "text": text, "seconds": seconds})
    if args.json:
        show(rows, as_json=True)
        return
    shown = [{**row, "preset": row["preset"] if row["answer"] == 1 else ""} for row in rows]
    show([{key: row[key] for key in ("preset", "answer", "text")} for row in shown], title=asked.examples[0].prompt)


def _for_tour(args: argparse.Namespace, options: GenerationOptions, name: str) -> GenerationOptions:
    from src.inference.decoding import with_preset

    return _within_max_length(args, with_preset(options, name))
