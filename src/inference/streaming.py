"""Streams text while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from src.models.endings import until_end
from src.models.generation import until_stop

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream(BaseStreamer):
    """Passes text on as soon as it is final; the pieces together are what `generate_text` returns.

    transformers' `TextStreamer` waits for the end of a word. This one holds back only incomplete characters, whose
    bytes are spread over several tokens (as in Korean), possible beginnings of a stop string, and trailing white space.

    Args:
        tokenizer: The model's.
        write: Called with each piece.
        endings: The tokens that end an answer.
        stop_strings: Texts that end an answer and are not part of it.
        prefix: Token ids that the answer continues, so that a blank between the two is kept; needs `strip` off.
        strip: Strip white space at both ends, as `generate_text` does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        write: Callable[[str], object],
        endings: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
        prefix: Sequence[int] = (),
        strip: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.endings = endings
        self.stop_strings = stop_strings
        self.ids: list[int] = []
        self.shown = ""
        self.saw_prompt = False
        self.prefix = list(prefix)
        self.strip = strip
        self._before = str(tokenizer.decode(self.prefix, skip_special_tokens=True)) if self.prefix else ""

    @property
    def has_stopped(self) -> bool:
        """Whether the text contains a stop string."""
        text = self._decoded() if self.stop_strings else ""
        return any(stop in text for stop in self.stop_strings)

    def put(self, value: Tensor) -> None:
        """Receive tokens from `generate`: first the prompt, which is skipped, then the answer's."""
        if not self.saw_prompt:
            self.saw_prompt = True
            return
        self.add(value.flatten().tolist())

    def add(self, ids: Sequence[int]) -> None:
        """Add tokens of the answer, and pass on the text that is final."""
        self.ids += ids
        self._show(self._certain(self._decoded()))

    def end(self) -> None:
        """Pass on the text that was held back."""
        self._show(self._stripped(until_stop(self._decoded(), self.stop_strings)))

    def _decoded(self) -> str:
        ids = [*self.prefix, *until_end(self.ids, self.endings)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))[len(self._before) :]

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strip else text

    def _certain(self, text: str) -> str:
        text = until_stop(text, self.stop_strings).rstrip(UNFINISHED)
        beginnings = (stop[:length] for stop in self.stop_strings for length in range(1, len(stop)))
        held = max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
        return self._stripped(text[: len(text) - held])

    def _show(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text
