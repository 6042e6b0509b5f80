"""The slash commands of `parley chat`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from src.errors import ParleyError
from src.inference.chat import Talk
from src.inference.decoding import OWN, describe, parse_option, preset_names, with_changes, with_preset
from src.models.generation_options import GenerationOptions

HELP = """\
/candidates N      show N answers from now on; the talk goes on with the first, or with what /pick says
/pick N            go on with answer N of the last ones
/retry             answer the last question again
/set NAME VALUE    change a decoding option, such as /set temperature 0.7; /set alone shows them
/preset NAME       decode by a preset; /preset alone names them
/history           what was said; in brackets what no longer fits the window
/reset             begin anew
/save FILE         write the talk, .jsonl as messages, anything else as text
/quit              leave; so do Ctrl-D and Ctrl-C
//...              say something that begins with a slash"""


class ChatCommands:
    """Carries out the slash commands.

    Args:
        talk: The conversation.
        ask: Asks a question and shows the answer.
        write: Shows a command's output.
        notice: Shows a message about what was done.
    """

    def __init__(
        self,
        talk: Talk,
        ask: Callable[[str], object],
        write: Callable[[str], object],
        notice: Callable[[str], object],
    ) -> None:
        self.talk = talk
        self.ask = ask
        self.write = write
        self.notice = notice
        self.saved: set[Path] = set()

    def run(self, line: str) -> bool:
        """Carry out a line that begins with a slash.

        Returns:
            False if the command ends the chat.

        Raises:
            ParleyError: There is no such command, or it cannot be done.
        """
        name, _, rest = line[1:].strip().partition(" ")
        if name in ("quit", "exit"):
            return False
        commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: self.write(f"{HELP}\n"),
            "candidates": self._candidates,
            "pick": self._pick,
            "retry": lambda _: self.talk.retry(self.ask),
            "set": self._set,
            "preset": self._preset,
            "history": lambda _: self._history(),
            "reset": lambda _: self._reset(),
            "save": self._save,
        }
        if name not in commands:
            raise ParleyError(f"there is no command /{name}; /help shows them (// begins a text with a slash).")
        commands[name](rest.strip())
        return True

    def _decode(self, options: GenerationOptions, candidates: int | None) -> GenerationOptions:
        """Set options and candidates, after checking that they do not contradict each other; returns their merge."""
        decoding = replace(self.talk, options=options, candidates=candidates).decoding
        self.talk.options, self.talk.candidates = options, candidates
        return decoding

    def _candidates(self, text: str) -> None:
        number = _number(text, "/candidates")
        options = self._decode(self.talk.options, number)
        beams = f", the best of {options.num_beams} beams" if options.num_beams > 1 else ""
        self.notice(f"{number} answer{'s' * (number > 1)} from now on{beams}")

    def _pick(self, text: str) -> None:
        number = _number(text, "/pick")
        if not self.talk.exchanges:
            raise ParleyError("nothing has been said yet; say something first.")
        last = self.talk.exchanges[-1]
        if number > len(last.answers):
            raise ParleyError(f"there were {len(last.answers)} answers; pick one of them.")
        last.chosen = number - 1
        self.notice(f"going on with: {last.answer}")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name:
            option = name.replace("-", "_")
            counts = option in ("num_return_sequences", "num_beams")
            changed = with_changes(self.talk.options, {option: parse_option(option, value.strip())})
            self._decode(changed, None if counts else self.talk.candidates)
        self.notice(f"decoding: {describe(self.talk.decoding)}")

    def _preset(self, text: str) -> None:
        if not text:
            self.write("\n".join([*preset_names(), OWN]) + "\n")
            return
        options = with_preset(self.talk.options, text, self.talk.finished.model)
        self.notice(f"decoding: {describe(self._decode(options, None))}")

    def _history(self) -> None:
        for number, exchange in enumerate(self.talk.exchanges):
            lines = f"user: {exchange.question}\nassistant: {exchange.answer}"
            self.write(f"({lines})\n" if number < self.talk.forgotten else f"{lines}\n")

    def _reset(self) -> None:
        self.talk.reset()
        self.notice("everything forgotten")

    def _save(self, text: str) -> None:
        if not text:
            raise ParleyError("/save needs a file: /save talk.jsonl.")
        file = Path(text).expanduser()
        if file.exists() and file not in self.saved:
            raise ParleyError(f"there is a {file} already; name another file.")
        self.talk.save(file)
        self.saved.add(file)
        self.notice(f"written to {file}")


def _number(text: str, command: str) -> int:
    if not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise ParleyError(f"{command} needs a number from 1 to 999999: {command} 3.")
    return int(text)
