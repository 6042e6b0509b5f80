"""A conversation with a model: its history, what of it fits the context window, and the next answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from src.contracts import Turn
from src.errors import ParleyError
from src.inference.loading import FinishedModel
from src.inference.prompts import Style, turn_ids
from src.inference.streaming import TextStream
from src.models.endings import ending_ids
from src.models.generation import generate_text
from src.models.generation_options import GenerationOptions
from src.writing import whole_file


@dataclass
class Exchange:
    """A question and its candidate answers.

    Attributes:
        question: What the user said.
        answers: The model's answers; several if candidates were asked for.
        chosen: The index of the answer that the conversation continues from.
    """

    question: str
    answers: list[str]
    chosen: int = 0

    @property
    def answer(self) -> str:
        """The answer that the conversation continues from."""
        return self.answers[self.chosen]


@dataclass
class Talk:
    """A conversation with one model.

    Attributes:
        finished: The model.
        style: The prompt format; resolved, not `auto`.
        options: How it decodes; may change between questions.
        system: The system prompt.
        context: The size of the context window in tokens, if it is to be less than the model's.
        memory: The most earlier exchanges in a prompt; as many as fit when None.
        candidates: The number of answers to a question; that of the options when None.
        exchanges: The history.
        forgotten: How many exchanges, from the first on, no longer fit the window.
    """

    finished: FinishedModel
    style: Style
    options: GenerationOptions
    system: str | None = None
    context: int | None = None
    memory: int | None = None
    candidates: int | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    forgotten: int = 0
    _draws: int = 0  # answers so far, so that with a seed each answer is sampled differently

    @property
    def decoding(self) -> GenerationOptions:
        """The options with the number of candidates: these are samples if sampling without beams, else beams."""
        if self.candidates is None:
            return self.options
        if self.options.do_sample and self.options.num_beams == 1:
            return replace(self.options, num_return_sequences=self.candidates)
        beams = max(self.options.num_beams, self.candidates)
        return replace(self.options, num_beams=beams, num_return_sequences=self.candidates)

    def ask(self, question: str, *, write: Callable[[str], object], forgot: Callable[[int], object]) -> Exchange:
        """Generate an answer; it is added to the conversation only when complete.

        Args:
            question: The user's text.
            write: Called with each piece of text as it is generated, if there is one answer without beam search; not
                called otherwise.
            forgot: Called with the number of exchanges that no longer fit the window as of this question.

        Raises:
            ParleyError: The question alone does not fit the window.
        """
        ids, forgotten = self._prompt(question)
        if forgotten > self.forgotten:
            forgot(forgotten - self.forgotten)
            self.forgotten = forgotten
        options = self.decoding
        streams = options.num_return_sequences == options.num_beams == 1
        endings = ending_ids(self.finished.tokenizer, self.finished.model)
        stream = TextStream(self.finished.tokenizer, write, endings, options.stop_strings) if streams else None
        prompt = torch.tensor([ids], device=self.finished.device)
        number, self._draws = self._draws, self._draws + 1
        answers = generate_text(
            self.finished.model,
            self.finished.tokenizer,
            prompt,
            torch.ones_like(prompt),
            options,
            numbers=[number],
            streamer=stream,
        )
        exchange = Exchange(question, answers)
        self.exchanges.append(exchange)
        return exchange

    def reset(self) -> None:
        """Delete the history."""
        self.exchanges.clear()
        self.forgotten = 0

    def retry(self, ask: Callable[[str], object]) -> None:
        """Ask the last question again; if that fails, the old answer stays.

        Args:
            ask: Asks a question by calling `Talk.ask`.

        Raises:
            ParleyError: Nothing has been said yet.
        """
        if not self.exchanges:
            raise ParleyError("nothing has been said yet; say something first.")
        before = list(self.exchanges), self.forgotten
        question = self.exchanges.pop().question
        self.forgotten = min(self.forgotten, len(self.exchanges))
        try:
            ask(question)
        except BaseException:
            self.exchanges, self.forgotten = before
            raise

    def turns(self, first: int = 0) -> list[Turn]:
        """The system prompt and the conversation's turns, from exchange number `first` on."""
        said = [Turn("system", self.system)] if self.system is not None else []
        for exchange in self.exchanges[first:]:
            said += [Turn("user", exchange.question), Turn("assistant", exchange.answer)]
        return said

    def save(self, file: Path) -> None:
        """Write the conversation: to `.jsonl` as one `role` and `content` per line, to any other file as text.

        Raises:
            ParleyError: The file cannot be written.
        """
        if file.suffix.lower() in (".jsonl", ".json"):
            lines = [json.dumps({"role": t.role, "content": t.content}, ensure_ascii=False) for t in self.turns()]
        else:
            lines = [f"{turn.role}: {turn.content}" for turn in self.turns()]
        with whole_file(file, parents=False) as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def _prompt(self, question: str) -> tuple[list[int], int]:
        """The token ids of as much of the conversation as fits, and how many exchanges do not."""
        room = self._room()
        remembered = len(self.exchanges) if self.memory is None else self.memory
        for first in range(self.forgotten, len(self.exchanges) + 1):
            start = max(first, len(self.exchanges) - remembered)
            ids = turn_ids([*self.turns(start), Turn("user", question)], self.finished, self.style)
            if room is None or len(ids) <= room:
                return ids, first
        raise ParleyError(f"that is {len(ids)} tokens and there is room for {room}; say it shorter.")

    def _room(self) -> int | None:
        """The most tokens that a prompt may have; None for any number."""
        windows = [size for size in (self.finished.positions, self.context) if size is not None]
        if not windows:
            return None
        window, answer = min(windows), self.options.max_new_tokens
        room = window if self.finished.is_encoder_decoder else window - answer
        if room < 2 or (self.finished.positions is not None and answer >= self.finished.positions):
            raise ParleyError(f"max_new_tokens is {answer}, but the window has {window} tokens; lower it.")
        return room
