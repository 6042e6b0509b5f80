"""Talks as datasets write them, what can be learned from them, and their oldest turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from src.contracts import Turn
from src.datamodules.turns import answered, as_text, parse_messages, parse_transcript, shortened
from src.errors import ParleyError

TALK = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", "Bye"))


@pytest.mark.parametrize(
    "cell",
    [
        [{"role": turn.role, "content": turn.content} for turn in TALK],
        [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello!"},
            {"from": "human", "value": "Bye"},
        ],
        json.dumps([{"role": turn.role, "content": turn.content} for turn in TALK]),
        [{"role": turn.role, "content": [{"type": "text", "text": turn.content}], "name": None} for turn in TALK],
    ],
)
def test_every_layout_is_the_same_talk(cell: Any) -> None:
    assert parse_messages(cell, "here") == TALK


def test_texts_alone_are_the_users_and_the_assistants_by_turns() -> None:
    assert parse_messages(["Hi", "Hello!", "Bye"], "here") == TALK[1:]


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    said = [("user", "a"), ("user", ""), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", " ")]
    parsed = parse_messages([{"role": role, "content": content} for role, content in said], "here")
    assert parsed == (Turn("user", "a\nb"), Turn("assistant", "c\nd"), Turn("user", " "))


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("just a text", "line 3 is a text, not messages"),
        (7, "line 3 is int, not a list"),
        ([{"role": "tool", "content": "x"}], "line 3, message 1 has the role 'tool'"),
        ([{"role": "user", "content": "x"}, {"text": "y"}], "message 2 has neither role"),
        ([{"role": "user", "content": 5}], "message 1 holds int '5', not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds list"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 2 is the system's, after"),
    ],
)
def test_what_is_no_talk_is_refused_with_its_place(cell: Any, problem: str) -> None:
    with pytest.raises(ParleyError, match=problem):
        parse_messages(cell, "line 3")


def test_a_talk_as_text() -> None:
    assert as_text([Turn("user", "Summarize.")]) == "Summarize."
    assert as_text(TALK) == "system: Be kind.\nuser: Hi\nassistant: Hello!\nuser: Bye"


def test_what_nobody_asked_for_and_nobody_answered_is_not_learned_from() -> None:
    greeting, system = Turn("assistant", "Welcome!"), TALK[0]
    assert answered(TALK) == TALK[:3]
    assert answered([system, greeting, *TALK[1:]]) == TALK[:3]
    assert answered([system, greeting]) == answered([Turn("user", "Hi")]) == answered([]) == ()
    assert answered([greeting, Turn("user", "Hi")]) == ()


def test_the_oldest_go_first_and_whole() -> None:
    talk = (*TALK, Turn("assistant", "See you."), Turn("user", "Still there?"))
    assert list(shortened(talk)) == [(TALK[0], *talk[3:]), (TALK[0], *talk[5:])]
    assert list(shortened(talk[1:])) == [talk[3:], talk[5:]]
    assert list(shortened([Turn("user", "Hi")])) == []


def test_a_transcript() -> None:
    text = "#Person1#: Hi: there\n#Person2#: Hello!\n How are you?\n\n#Person3#: Fine.\n"
    expected = (Turn("user", "Hi: there"), Turn("assistant", "Hello!\nHow are you?"), Turn("user", "Fine."))
    assert parse_transcript(text, "Person2") == parse_transcript(text, "#Person2#") == expected
    assert [turn.role for turn in parse_transcript(text, "Person1")] == ["assistant", "user"]
