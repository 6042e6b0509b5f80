"""Conversations of any number of turns, of which the assistant's are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from src.contracts import Example, Turn
from src.datamodules.dialogue import DialogueDataModule
from src.datamodules.rows import Row
from src.datamodules.sources import Rows
from src.datamodules.turns import answered, as_text, parse_messages, parse_transcript
from src.errors import ParleyError

MESSAGE_COLUMNS = ("messages", "conversations")  # defaults: the name in chat templates, and ShareGPT's


@dataclass(frozen=True)
class ConversationRow(Row):
    """A conversation; its target is the assistant's last turn.

    Attributes:
        turns: From the user's first turn to the assistant's last, after the system's.
    """

    turns: tuple[Turn, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The texts that must not be empty."""
        return [turn.content for turn in self.turns]


class ConversationDataModule(DialogueDataModule):
    """Conversations: messages with `role` and `content`, ShareGPT's `conversations`, transcripts, or columns of pairs.

    A decoder-only model has one row per conversation and learns every assistant turn with its end token, and nothing
    else (`loss_on: all` learns everything); validation and testing generate the last turn. An encoder-decoder has one
    example per assistant turn, with the turns before as prompt. A conversation that is longer than
    `max_source_length` before its last answer loses its oldest turns, as a whole.

    Assistant turns before the user's first turn are dropped, and so are final user turns without an answer; the log
    counts both. Consecutive messages of one role are joined to one turn.

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A hub name, a directory, a file (.jsonl, .csv, .parquet) or a directory saved by `datasets`.
        messages_column: The column with the conversation; `messages` or `conversations` when left out.
        user_column: The column with a question, if each row of the table is a pair; with `assistant_column`.
        assistant_column: The column with its answer.
        assistant_name: Where the column of messages holds transcripts, a line a turn that begins with the speaker's
            name and a colon, as DialogSum's `dialogue` does: which speaker is the assistant, without the marks around
            the name (`Person2` for `#Person2#`); all others are the user.
        system_column: The column with the system prompt, for conversations that do not contain it.
        system: The system prompt of all conversations that have none.
        max_source_length: The most tokens before the last answer.
        max_target_length: The most tokens of the last answer.
        **kwargs: The other arguments of `DialogueDataModule` and `TextDataModule`.
    """

    fields = frozenset({"history"})
    in_turns = True

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        messages_column: str | None = None,
        user_column: str | None = None,
        assistant_column: str | None = None,
        assistant_name: str = "",
        system_column: str | None = None,
        system: str | None = None,
        max_source_length: int = 1024,
        max_target_length: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name_or_path,
            path=path,
            template="{history}",
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            **kwargs,
        )
        if (user_column is None) != (assistant_column is None):
            raise ParleyError("a pair has two columns; give user_column and assistant_column both, or neither.")
        if messages_column is not None and user_column is not None:
            raise ParleyError(
                "messages_column is for whole talks, user_column and assistant_column are for pairs; leave one out."
            )
        if assistant_name and messages_column is None:
            raise ParleyError("assistant_name is for transcripts; name the column that has them by messages_column.")
        self.messages_column = messages_column
        self.pair = (user_column, assistant_column) if user_column and assistant_column else None
        self.assistant_name = assistant_name
        self.system_column = system_column
        self.system = system

    def to_rows(self, source: Rows) -> Iterator[ConversationRow]:
        """One Row per conversation."""
        rows: list[ConversationRow] = []
        unanswered: list[str] = []
        greetings: list[str] = []
        questions: list[str] = []
        for number, cells in enumerate(source.rows):
            name = source.name(number) if cells.get("id") is None else str(cells["id"])
            whole = self._talk(source, number)
            talk = answered(whole)
            if not talk:
                unanswered.append(name)
                continue
            said = [turn.role for turn in whole if turn.role != "system"]
            greetings += [name] if said[0] == "assistant" else []
            questions += [name] if said[-1] == "user" else []
            size = sum(len(turn.content) for turn in talk)
            rows.append(ConversationRow({"history": as_text(talk[:-1])}, talk[-1].content, name, size, talk))
        if unanswered and self.strict:
            raise ParleyError(
                f"{source.origin}: in conversation {unanswered[0]!r} the assistant answers nothing; drop it, or drop "
                "strict to skip such."
            )
        for names, what in (
            (unanswered, "are dropped: the assistant answers nothing in them"),
            (greetings, "begin with the assistant: that turn is dropped"),
            (questions, "end with the user: that turn is dropped"),
        ):
            source.notes.add(f"{{count}} of {{of}} conversations {what}", names, of=len(source.rows))
        yield from rows

    def _talk(self, source: Rows, number: int) -> tuple[Turn, ...]:
        """A row's whole conversation, with its system prompt."""
        if self.pair is not None:
            question, answer = (source.text(number, column) for column in self.pair)
            talk: tuple[Turn, ...] = (Turn("user", question), Turn("assistant", answer))
        else:
            column = self._column_of_messages(source, number)
            if self.assistant_name:
                talk = parse_transcript(source.text(number, column), self.assistant_name)
            else:
                talk = parse_messages(source.rows[number][column], f"{source.places[number]}, {column}")
        if talk[:1] and talk[0].role == "system":
            return talk
        system = source.text(number, self.system_column) if self.system_column is not None else ""
        system = system if system.strip() else self.system or ""
        return (Turn("system", system), *talk) if system else talk

    def _column_of_messages(self, source: Rows, number: int) -> str:
        columns = source.rows[number]
        wanted = MESSAGE_COLUMNS if self.messages_column is None else (self.messages_column,)
        found = next((column for column in wanted if column in columns), None)
        if found is None:
            raise ParleyError(
                f"{source.places[number]} has no column {' or '.join(map(repr, wanted))}; its columns are "
                f"{', '.join(columns)}: name one by messages_column, or two by user_column and assistant_column."
            )
        return found

    def examples(self, part: str) -> list[Example]:
        """Read, filter and cut a split.

        Args:
            part: `train` gives every answer; `validation` and `test` give one example per history, with all answers to
                it as references.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """
        return self.last_turns(part, every_turn=self.is_encoder_decoder)

    def examples_of(self, row: Row) -> list[Example]:
        """What is learned from a conversation."""
        return _examples(row, every_turn=self.is_encoder_decoder)

    def last_turns(self, part: str, *, every_turn: bool = False) -> list[Example]:
        """A split's conversations, with the last turn of each as the target; needs no model.

        Args:
            part: As for `examples`.
            every_turn: One example for each of the assistant's turns instead.

        Raises:
            ParleyError: As for `examples`.
        """
        rows = [row for group in self.groups(part) for row in group]
        examples = [example for row in rows for example in _examples(row, every_turn=every_turn)]
        if part == "train":
            return examples
        by_history: dict[tuple[Turn, ...], list[Example]] = {}
        for example in examples:
            by_history.setdefault(example.turns, []).append(example)
        return [replace(same[0], references=[example.target for example in same]) for same in by_history.values()]


def _examples(row: Row, *, every_turn: bool) -> list[Example]:
    assert isinstance(row, ConversationRow)
    answers = [place for place, turn in enumerate(row.turns) if turn.role == "assistant"]
    return [
        Example(
            as_text(row.turns[:place]),
            row.turns[place].content,
            [row.turns[place].content],
            f"{row.id}_{number}" if every_turn else row.id,
            row.turns[:place],
        )
        for number, place in enumerate(answers, start=1)
        if every_turn or place == answers[-1]
    ]
