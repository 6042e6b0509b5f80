"""Answers to many prompts, and files of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.contracts import Example
from src.datamodules.encoding import pad
from src.errors import ParleyError
from src.inference.journal import AnswerJournal
from src.inference.loading import FinishedModel
from src.models.generation import GenerationOptions, generate_text
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
) -> list[list[str]]:
    """Generate answers in batches of prompts of similar length, the longest first.

    Args:
        finished: The model.
        prompts: Token ids.
        options: How to decode. A prompt's seeded samples depend on its number in `prompts`, not on its batch.
        batch_size: Prompts at a time.
        track: Goes over the batches, for instance behind a progress bar.
        journal: Takes each batch's answers as they come; those that it has are not generated again.

    Returns:
        For each prompt, in the order given, its `num_return_sequences` answers.
    """
    if batch_size < 1:
        raise ParleyError(f"batch_size is {batch_size}; it must be 1 or more.")
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
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
        texts = generate_text(finished.model, finished.tokenizer, ids, mask, options, numbers=numbers)
        each = options.num_return_sequences
        for place, number in enumerate(numbers):
            answers[number] = texts[place * each : (place + 1) * each]
        if journal is not None:
            journal.add(numbers, [answers[number] for number in numbers])
    return answers


def prediction_columns(answers: Sequence[str], name: str = "prediction") -> dict[str, str]:
    """One answer as `prediction`, several as `prediction1`, `prediction2`, ..."""
    if len(answers) == 1:
        return {name: answers[0]}
    return {f"{name}{number}": text for number, text in enumerate(answers, start=1)}


def check_output(path: Path | None, *sources: str | Path | None) -> None:
    """Refuse, before anything is generated, a file that could not be written.

    Args:
        path: The file to be.
        *sources: Files that are read, which it must not replace.

    Raises:
        ParleyError: Another kind of file, no such directory, or one of the sources.
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
        columns: For each of them its answers by column.
        quote_formulas: In CSV, put an apostrophe before what a spreadsheet would compute.

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
