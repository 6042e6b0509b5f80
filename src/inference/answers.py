"""Generates answers to many prompts and writes them to files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from src.contracts import Example
from src.datamodules.encoding import pad
from src.errors import ParleyError
from src.inference.journal import AnswerJournal
from src.inference.loading import FinishedModel
from src.models.endings import ending_ids
from src.models.generation import continued_text, generate_ids, generate_text
from src.models.generation_options import GenerationOptions
from src.writing import as_text, whole_file

OUTPUT_SUFFIXES = (".jsonl", ".csv")


def answer_all(
    finished: FinishedModel,
    prompts: Sequence[list[int]],
    options: GenerationOptions,
    *,
    batch_size: int,
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
    journal: AnswerJournal | None = None,
    max_length: int | None = None,
    echo: bool = False,
) -> list[list[str]]:
    """Generate answers in batches of prompts of similar length, the longest first.

    Args:
        finished: The model.
        prompts: The token ids of each prompt.
        options: How to decode. With a seed, a prompt's samples depend on its index in `prompts`, not on its batch.
        batch_size: Prompts at a time.
        track: Wraps the iteration over batches, for instance in a progress bar.
        journal: Stores each batch's answers; answers that it has already are not generated again.
        max_length: The most tokens of prompt and answer together, as transformers counts them: for an encoder-decoder,
            the answer's and the decoder's start token. It replaces `options.max_new_tokens`, and a batch then has
            prompts of equal length.
        echo: Return each prompt and its answer as one text; decoder-only models only.

    Returns:
        For each prompt, in the order given, its `num_return_sequences` answers.

    Raises:
        ParleyError: A prompt leaves no token within `max_length`.
    """
    if batch_size < 1:
        raise ParleyError(f"batch_size is {batch_size}; it must be 1 or more.")
    if echo and finished.is_encoder_decoder:
        raise ParleyError("--echo is for decoder-only models: an encoder-decoder does not go on where the prompt ends.")
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    batches = _batches(order, prompts, batch_size, alike=max_length is not None and not finished.is_encoder_decoder)
    known = journal.answers if journal is not None else {}
    batches = [batch for batch in ([number for number in batch if number not in known] for batch in batches) if batch]
    answers: list[list[str]] = [known.get(number, []) for number in range(len(prompts))]
    for numbers in track(batches):
        ids, mask = pad(
            [prompts[number] for number in numbers],
            finished.tokenizer.pad_token_id,
            left=not finished.is_encoder_decoder,
        )
        ids, mask = ids.to(finished.device), mask.to(finished.device)
        decoding = options if max_length is None else within(options, max_length, prompts[numbers[0]], finished)
        each = options.num_return_sequences
        if echo:
            new = generate_ids(finished.model, finished.tokenizer, ids, mask, decoding, numbers=numbers).tolist()
            endings = ending_ids(finished.tokenizer, finished.model)
            texts = [
                continued_text(finished.tokenizer, prompts[numbers[row // each]], answer, endings, options.stop_strings)
                for row, answer in enumerate(new)
            ]
        else:
            texts = generate_text(finished.model, finished.tokenizer, ids, mask, decoding, numbers=numbers)
        for place, number in enumerate(numbers):
            answers[number] = texts[place * each : (place + 1) * each]
        if journal is not None:
            journal.add(numbers, [answers[number] for number in numbers])
    return answers


def _batches(
    order: Sequence[int], prompts: Sequence[Sequence[int]], batch_size: int, *, alike: bool
) -> list[list[int]]:
    """Cut prompt indices into batches; if `alike`, each batch has prompts of equal length."""
    groups = [list(group) for _, group in groupby(order, key=lambda number: len(prompts[number]))]
    return [
        group[start : start + batch_size]
        for group in (groups if alike else [list(order)])
        for start in range(0, len(group), batch_size)
    ]


def within(
    options: GenerationOptions, max_length: int, prompt: Sequence[int], finished: FinishedModel
) -> GenerationOptions:
    """The options with `max_new_tokens` set so that prompt and answer together have at most `max_length` tokens.

    Raises:
        ParleyError: No token is left for the answer, or the model has fewer positions than `max_length`.
    """
    if finished.positions is not None and max_length > finished.positions:
        raise ParleyError(
            f"--max-length is {max_length}, but {finished.name} has {finished.positions} positions; lower it."
        )
    taken = 1 if finished.is_encoder_decoder else len(prompt)
    if taken >= max_length:
        what = "the token that an answer begins from counts" if finished.is_encoder_decoder else f"a prompt has {taken}"
        raise ParleyError(f"--max-length is {max_length} tokens, the prompt included, and {what}; raise it.")
    return replace(options, max_new_tokens=max_length - taken)


def prediction_columns(answers: Sequence[str], name: str = "prediction") -> dict[str, str]:
    """Answers by column: one answer as `prediction`, several as `prediction1`, `prediction2`, ..."""
    if len(answers) == 1:
        return {name: answers[0]}
    return {f"{name}{number}": text for number, text in enumerate(answers, start=1)}


def check_output(path: Path | None, *sources: str | Path | None) -> None:
    """Refuse an output file that could not be written, before anything is generated.

    Args:
        path: The file to write.
        *sources: Files that are read, which it must not replace.

    Raises:
        ParleyError: It has another suffix, its directory does not exist, or it is one of the sources.
    """
    if path is None:
        return
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ParleyError(f"{path} ends in {path.suffix or 'nothing'!r}; give one of {', '.join(OUTPUT_SUFFIXES)}.")
    if not path.parent.is_dir():
        raise ParleyError(f"there is no directory {path.parent}; make it first.")
    if path.is_dir() or any(source and path.resolve() == Path(source).expanduser().resolve() for source in sources):
        raise ParleyError(f"{path} is what the prompts are read from, or a directory; name another file.")


def write_answers(
    path: Path, examples: Sequence[Example], columns: Sequence[Mapping[str, str]], *, quote_formulas: bool = False
) -> list[str]:
    """Write prompts, references and answers to a file that `parley score` reads.

    Args:
        path: `.jsonl`, with the references as a list, or `.csv`, with a column for each.
        examples: The prompts.
        columns: For each prompt its answers by column.
        quote_formulas: In CSV, put an apostrophe before cells that a spreadsheet would take for formulas.

    Returns:
        The reference columns' names.

    Raises:
        ParleyError: The file cannot be written.
    """
    width = max(len(example.references) for example in examples)
    as_csv = path.suffix.lower() == ".csv"
    names = [f"reference{number + 1}" for number in range(width)] if as_csv else ["references"] * bool(width)
    rows: list[dict[str, Any]] = []
    for example, answers in zip(examples, columns, strict=True):
        texts = [*example.references, *[""] * (width - len(example.references))] if as_csv else [example.references]
        references = dict(zip(names, texts, strict=False))
        rows.append({"id": example.id, "prompt": example.prompt, **references, **answers})
    with whole_file(path, parents=False) as file:
        if as_csv:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {name: as_text(cell) for name, cell in row.items()} if quote_formulas else row for row in rows
            )
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return names
