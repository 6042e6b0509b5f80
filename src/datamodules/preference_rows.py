"""Reads the layouts of preference data into prompt, better answer and other answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.contracts import Turn
from src.datamodules.rows import Row
from src.datamodules.sources import Rows
from src.datamodules.turns import as_text, parse_messages
from src.errors import ParleyError

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_MARK = re.compile(r"\n\n(Human|Assistant):")  # in Anthropic's hh-rlhf data


@dataclass(frozen=True)
class PreferenceRow(Row):
    """A pair of answers; `target` is the better one.

    Attributes:
        rejected: The other one.
        margin: By how much the better one is better; None if the source does not say.
        turns: The conversation, if the prompt is one.
    """

    rejected: str = ""
    margin: float | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The texts that must not be empty."""
        return [*super().texts, self.rejected]


@dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Attributes:
        prompt: The column of prompts; it need not exist.
        chosen: The column of better answers.
        rejected: The column of the other answers.
        margin: The column of margins; it need not exist.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str = "margin"


def preference_rows(source: Rows, columns: Columns) -> Iterator[PreferenceRow]:
    r"""Read one row per pair.

    The layouts are: texts in three columns; messages instead of texts, with the prompt in a column or as the common
    beginning of both conversations (TRL's layouts); whole texts with a common beginning, such as Anthropic's
    `\n\nHuman: … \n\nAssistant: …`; and
    OpenAI's summaries (`info`, `summaries`, `choice`).

    Args:
        source: The rows.
        columns: Their names.

    Raises:
        ParleyError: A row has none of these layouts.
    """
    for number, cells in enumerate(source.rows):
        place = source.places[number]
        if "summaries" in cells and "choice" in cells:
            prompt, turns, chosen, rejected = _summaries(cells, place)
        elif isinstance(cells.get(columns.chosen), list):
            prompt, turns, chosen, rejected = _messages(cells, columns, place)
        elif columns.prompt in cells:
            turns, (chosen, rejected) = (), (source.text(number, name) for name in (columns.chosen, columns.rejected))
            prompt = cells[columns.prompt]
            if isinstance(prompt, list):
                turns = parse_messages(prompt, f"{place}, {columns.prompt}")
                prompt = as_text(turns)
            else:
                prompt = source.text(number, columns.prompt)
        else:
            texts = [source.text(number, name) for name in (columns.chosen, columns.rejected)]
            prompt, turns, chosen, rejected = _begin_alike(*texts, place=place)
        yield PreferenceRow(
            {"prompt": prompt},
            chosen,
            str(cells.get("id") or source.name(number)),
            len(prompt),
            rejected,
            _margin(cells.get(columns.margin), place),
            turns,
        )


Pair = tuple[str, tuple[Turn, ...], str, str]


def _summaries(cells: dict[str, Any], place: str) -> Pair:
    """A post and two summaries of it, as OpenAI's `summarize_from_feedback` has them."""
    try:
        info, choice = cells["info"], int(cells["choice"])
        texts = [str(summary["text"]).strip() for summary in cells["summaries"]]
        chosen, rejected = texts[choice], texts[1 - choice]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ParleyError(f"{place} has summaries that cannot be read ({error!r}); mend or drop it.") from error
    if info.get("article"):
        lines = [f"TITLE: {info.get('title') or ''}", f"ARTICLE: {info['article']}", "TL;DR:"]
    else:
        lines = [f"SUBREDDIT: r/{info.get('subreddit') or ''}", f"TITLE: {info.get('title') or ''}"]
        lines += [f"POST: {info.get('post') or ''}", "TL;DR:"]
    return "\n".join(lines), (), chosen, rejected


def _messages(cells: dict[str, Any], columns: Columns, place: str) -> Pair:
    """Conversations that end in the answers; the prompt is in its own column, or their common beginning."""
    chosen, rejected = (
        parse_messages(cells.get(name), f"{place}, {name}") for name in (columns.chosen, columns.rejected)
    )
    shared = _shared(chosen, rejected)
    given = cells.get(columns.prompt)
    before: tuple[Turn, ...] = ()
    if shared == 0 and given is not None:
        before = (
            (Turn("user", given),) if isinstance(given, str) else parse_messages(given, f"{place}, {columns.prompt}")
        )
    ends = [talk[shared:] for talk in (chosen, rejected)]
    if not before + chosen[:shared] or any(len(end) != 1 or end[0].role != "assistant" for end in ends):
        raise ParleyError(
            f"{place}: {columns.chosen} and {columns.rejected} must follow a prompt and differ in one "
            "answer of the assistant, the last; mend or drop the row."
        )
    turns = before + chosen[:shared]
    return as_text(turns), turns, ends[0][0].content, ends[1][0].content


def _shared(chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]) -> int:
    """The number of common first turns; the last of each is always its answer, even if the answers are equal."""
    most = min(len(chosen), len(rejected)) - 1
    return next((place for place in range(most) if chosen[place] != rejected[place]), most)


def _begin_alike(chosen: str, rejected: str, *, place: str) -> Pair:
    """Whole texts with the prompt as their common beginning."""
    talks = [_marked(text) for text in (chosen, rejected)]
    if all(talks):
        cells = {name: [vars(turn) for turn in talk] for name, talk in zip(("chosen", "rejected"), talks, strict=True)}
        return _messages(cells, Columns(), place)
    shared = next(
        (number for number, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]),
        min(len(chosen), len(rejected)),
    )
    cut = max(chosen.rfind(space, 0, shared) for space in (" ", "\n")) + 1
    if not chosen[:cut].strip():
        raise ParleyError(
            f"{place} has no prompt: no such column, and its texts do not begin alike; name prompt_column."
        )
    return chosen[:cut].rstrip(), (), chosen[cut:], rejected[cut:]


def _marked(text: str) -> tuple[Turn, ...]:
    r"""The turns of a text of the form `\n\nHuman: … \n\nAssistant: …`; empty for other texts."""
    before, *rest = _MARK.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip():
        return ()
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return tuple(Turn(_SPEAKERS[speaker], words.strip()) for speaker, words in pairs)


def _margin(cell: Any, place: str) -> float | None:
    if cell is None or cell == "" or cell != cell:
        return None
    try:
        margin = float(cell)
    except (TypeError, ValueError) as error:
        raise ParleyError(f"{place}: the margin {str(cell)[:40]!r} is not a number; mend or drop it.") from error
    if not 0 <= margin < math.inf:
        raise ParleyError(f"{place}: the margin is {margin}; it must be 0 or more and finite.")
    return margin
