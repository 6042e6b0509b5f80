"""Make preference pairs of a model's own answers: the best against the worst of each prompt's, by any reward.

MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name. Answers are sampled, unless the
decoding options say otherwise. Answers are kept in FILE.part as they are generated: if stopped, the same command
continues from there. `PreferenceDataModule` reads the file, for `RewardModule` and `DPOModule`; so do TRL's trainers.

  parley prefer models/sft --data knkarthick/dialogsum --split train --reward ProfanityReward --output pairs.jsonl
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from src.commands import arguments, asking
from src.commands.output import show, show_json
from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE, Range

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, an adapter or model directory, or a hub name")
    parser.add_argument("--reward", required=True, metavar="REWARD", help=arguments.REWARD_HELP)
    count = arguments.number(int, Range(2))
    parser.add_argument("--num-generations", type=count, default=8, metavar="N", help="answers to each prompt")
    parser.add_argument(
        "--min-difference",
        type=arguments.number(float, NOT_NEGATIVE),
        default=0.0,
        metavar="X",
        help="scores that differ by less count as a tie, and give no pair",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the pairs, as .jsonl")
    parser.add_argument(
        "--margins", action="store_true", help="also write the difference of the scores, for a reward model's loss"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asking.add_data_arguments(parser, split="train")
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser, engine=True)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from src.inference.answers import answer_all, check_output
    from src.inference.journal import AnswerJournal
    from src.inference.preferences import choose_pairs, score_answers, unique_prompts, write_pairs

    if hasattr(args, "num_return_sequences"):
        raise ParleyError("the number of answers is --num-generations here; leave --num-return-sequences out.")
    if args.output.suffix.lower() != ".jsonl":
        raise ParleyError(f"{args.output} ends in {args.output.suffix or 'nothing'!r}; pairs are written as .jsonl.")
    check_output(args.output, args.input, args.data)
    args.num_return_sequences = args.num_generations
    if not args.preset:
        args.do_sample = getattr(args, "do_sample", True)
    args.seed = getattr(args, "seed", 42)
    if not getattr(args, "do_sample", True) and getattr(args, "num_beams", 1) < args.num_generations:
        raise ParleyError("without sampling all answers to a prompt are one; leave --no-do-sample out, or add beams.")
    arguments.decoding_options(args)  # refuse wrong options before anything is loaded
    reward = arguments.reward(args.reward)
    asked = asking.read_examples(args)
    asked = replace(asked, examples=unique_prompts(asked.examples))
    if reward.needs_references and not all(example.references for example in asked.examples):
        raise ParleyError(f"{type(reward).__name__} needs right answers; name their columns with --reference-column.")
    score_answers(reward, asked.examples[:1], [["An answer."]], 1)  # fail before generating, not after
    finished = arguments.load(args, args.model)
    reward.to(finished.device)
    start = time.perf_counter()
    prompts, options = asking.encode(args, finished, asked, arguments.decoding_options(args, finished))
    journal = AnswerJournal(args.output, finished, prompts, options)
    answers = answer_all(
        finished, prompts, options, batch_size=args.batch_size, track=arguments.progress, journal=journal
    )
    scores = score_answers(
        reward, asked.examples, answers, args.batch_size, lambda batches: arguments.progress(batches, "Scoring")
    )
    chosen = choose_pairs(asked.examples, answers, scores, args.min_difference)
    if not chosen.pairs:
        raise ParleyError(
            f"no prompt has a better and a worse answer ({chosen.ties} ties, {chosen.unusable} prompts with fewer than "
            "two answers); raise --temperature or --num-generations, or name another reward."
        )
    write_pairs(args.output, chosen.pairs, margins=args.margins)
    journal.finish()
    count = len(chosen.pairs)
    summary = {
        "prompts": len(prompts),
        "pairs": count,
        "ties": chosen.ties,
        "unusable": chosen.unusable,
        "mean_score": chosen.mean_score,
        "score_chosen": sum(pair.score_chosen for pair in chosen.pairs) / count,
        "score_rejected": sum(pair.score_rejected for pair in chosen.pairs) / count,
    }
    log.info("%d pairs written to %s in %.1f s.", count, args.output, time.perf_counter() - start)
    if args.json:
        show_json(summary)
        return
    show([summary])
