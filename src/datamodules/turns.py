"""Conversations: parsing of the layouts in datasets, rendering as text, and shortening."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from src.contracts import Turn
from src.errors import ParleyError

# Names of roles: those of chat templates, and ShareGPT's.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_MARKS = " \t#*[]()<>\"'"  # around a speaker's name
_KEYS = (("role", "content"), ("from", "value"))


def parse_messages(cell: Any, place: str) -> tuple[Turn, ...]:
    """Parse a conversation from a dataset's cell.

    The layouts are a list of messages with `role` and `content`, ShareGPT's list with `from` and `value`, a list of
    texts (alternately the user's and the assistant's), and any of these as JSON text. A message's content may be a list
    of parts, each with a `text`. Consecutive messages of one role become one turn, separated by a line end.

    Args:
        cell: The cell.
        place: The cell's place, for messages.

    Returns:
        The turns: the system's first, if there is one, then user and assistant alternately. Empty turns are kept.

    Raises:
        ParleyError: It has none of these layouts, a role is unknown, or a system turn comes after others.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise ParleyError(f"{place} is a text, not messages with role and content; mend it.") from None
    if not isinstance(cell, list):
        raise ParleyError(f"{place} is {type(cell).__name__}, not a list of messages with role and content; mend it.")
    turns: list[Turn] = []
    for number, message in enumerate(cell, start=1):
        turn = _turn(message, number, f"{place}, message {number}")
        if turn.role == "system" and any(before.role != "system" for before in turns):
            raise ParleyError(f"{place}, message {number} is the system's, after others have spoken; put it first.")
        if turns and turns[-1].role == turn.role:
            turn = Turn(turn.role, "\n".join(text for text in (turns.pop().content, turn.content) if text.strip()))
        turns.append(turn)
    return tuple(turns)


def parse_transcript(text: str, assistant: str) -> tuple[Turn, ...]:
    """Parse a conversation from a transcript, with one turn per line, each beginning with the speaker and a colon.

    Args:
        text: The lines; a line without a colon continues the turn before.
        assistant: The name of the speaker who is the assistant, with or without the marks around it (`#Person2#`);
            everyone else is the user.
    """
    messages: list[dict[str, str]] = []
    for line in text.splitlines():
        name, colon, words = line.partition(":")
        if colon:
            role = "assistant" if name.strip(_MARKS) == assistant.strip(_MARKS) else "user"
            messages.append({"role": role, "content": words.strip()})
        elif messages and line.strip():
            messages[-1]["content"] += f"\n{line.strip()}"
    return parse_messages(messages, "")


def _turn(message: Any, number: int, place: str) -> Turn:
    if isinstance(message, str):
        return Turn("user" if number % 2 else "assistant", message)
    keys = message.keys() if isinstance(message, dict) else ()
    found = next(((role, content) for role, content in _KEYS if role in keys), None)
    if found is None:
        raise ParleyError(f"{place} has neither role and content nor from and value; mend it.")
    role, content = str(message[found[0]]), message.get(found[1])
    if role.lower() not in ROLES:
        raise ParleyError(f"{place} has the role {role!r}; the roles are {', '.join(ROLES)}: drop it or rename it.")
    return Turn(ROLES[role.lower()], _text(content, place))


def _text(content: Any, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ParleyError(f"{place} holds {type(content).__name__} {str(content)[:40]!r}, not text; drop it.")
    return content


def as_text(turns: Sequence[Turn]) -> str:
    """A conversation as one text, for encoder-decoders and tables.

    A single user turn gives its content alone, so that a prompt has the same text as a prompt and as a conversation.
    Otherwise each turn is a line that begins with its role: since T5's tokenizer turns a line end into a blank, only
    the roles separate the turns there.
    """
    if [turn.role for turn in turns] == ["user"]:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def answered(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The part of a conversation that can be learned from: from the user's first turn to the assistant's last.

    Assistant turns before the first user turn are dropped, and so is a final user turn without an answer.

    Returns:
        The turns, including the system's; empty if nothing is answered.
    """
    system, said = _system_apart(turns)
    first = next((place for place, turn in enumerate(said) if turn.role == "user"), len(said))
    last = max((place for place, turn in enumerate(said) if turn.role == "assistant"), default=-1)
    return (*system, *said[first : last + 1]) if first < last else ()


def shortened(turns: Sequence[Turn]) -> Iterator[tuple[Turn, ...]]:
    """Drop more and more of a conversation's oldest turns; the system's is kept, and the rest begins with the user's.

    Yields:
        Ever shorter conversations, down to the user's last turn.
    """
    system, said = _system_apart(turns)
    for place, turn in enumerate(said):
        if place and turn.role == "user":
            yield (*system, *said[place:])


def _system_apart(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    count = 1 if turns and turns[0].role == "system" else 0
    return tuple(turns[:count]), tuple(turns[count:])
