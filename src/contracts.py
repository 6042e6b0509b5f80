"""Data types and protocols shared by DataModules and Modules, which do not import each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn

IGNORE_INDEX = -100  # the label of tokens that take no part in the loss
CHECKPOINT_FORMAT = 1  # raise it when older versions of Parley cannot read what this one writes


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: The text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One example, whatever dataset it is from.

    Attributes:
        prompt: What the model is given.
        target: What it should answer.
        references: Everything that counts as a right answer; `target` is one of them.
        id: Names the example in tables and files.
        turns: The conversation, where the prompt is one; `prompt` is then its text.
    """

    prompt: str
    target: str
    references: list[str] = field(default_factory=list)
    id: str = ""
    turns: tuple[Turn, ...] = ()


class Batch(TypedDict):
    """What a DataModule hands to a Module.

    Attributes:
        input_ids: (batch, source) right-padded; for a decoder-only model prompt and target together.
        attention_mask: (batch, source) 1 where `input_ids` is not padding.
        position_ids: (batch, source) only where rows are packed with several examples: each starts at 0. The names and
        texts below are then the examples', one after the other, and there are no prompts to generate from.
        labels: (batch, target) or, decoder-only, (batch, source); -100 for tokens that take no part in the loss.
        learned: (2, tokens) rows and columns of the positions whose next token (or label, with an encoder)
        is to be learned. They are found on the CPU: a GPU stalls the host that asks how many there are.
        prompt_ids: (batch, prompt) what generation starts from; left-padded for a decoder-only model.
        prompt_attention_mask: (batch, prompt).
        id: The examples' names.
        prompt: The prompts as text.
        references: The right answers as text, at least one an example.
        is_filler: True for a row that was added so that all processes have equally many: it has no labels and is not to
            be counted.
        index: The row in the split.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: NotRequired[Tensor]
    labels: Tensor
    learned: NotRequired[Tensor]
    prompt_ids: Tensor
    prompt_attention_mask: Tensor
    id: list[str]
    prompt: list[str]
    references: list[list[str]]
    is_filler: list[bool]
    index: list[int]


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which one is better.

    Attributes:
        prompt: What both answer.
        chosen: The better one.
        rejected: The other.
        margin: By how much the better one is better, where the source says so.
        id: Names the pair in tables and files.
        turns: The conversation, where the prompt is one; `prompt` is then its text.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float | None = None
    id: str = ""
    turns: tuple[Turn, ...] = ()


class PreferenceBatch(TypedDict):
    """What a DataModule of preferences hands to a Module: everything that a batch of prompts has, and their answers.

    Attributes:
        prompt_ids: (batch, prompt) left-padded for a decoder-only model; (batch, 0) where whole texts are read.
        prompt_attention_mask: (batch, prompt).
        answer_ids: (2 × batch, answer) right-padded: the chosen answers and then the rejected ones, each with the token
            that ends it; or whole texts of prompt and answer, as a classifier reads them.
        answer_mask: (2 × batch, answer) 1 where `answer_ids` is not padding.
        margin: (batch,) float32; 0 where the source has none.
        id: The pairs' names.
        prompt: The prompts as text.
        chosen: The better answers as text.
        rejected: The others.
        references: The better answer again, as the one right answer to the prompt.
        is_filler: True for a pair that was added so that all processes have equally many: it is neither trained on nor
            counted.
        index: The row in the split.
    """

    prompt_ids: Tensor
    prompt_attention_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    margin: Tensor
    id: list[str]
    prompt: list[str]
    chosen: list[str]
    rejected: list[str]
    references: list[list[str]]
    is_filler: list[bool]
    index: list[int]


@runtime_checkable
class LearnsFromPreferences(Protocol):
    """A Module that learns from pairs of answers.

    Attributes:
        reads: `answers`: each after its prompt, as the model would write it; `texts`: prompt and answer as one text,
            as a classifier reads it.
    """

    reads: Literal["answers", "texts"]


@runtime_checkable
class ReadsWholeTexts(LearnsFromPreferences, Protocol):
    """A Module that reads prompt and answer as one text.

    Attributes:
        text: Which: prompt, a space and the response, or the response alone.
    """

    text: Literal["prompt_and_response", "response"]


@runtime_checkable
class LearnsFromRollouts(Protocol):
    """A Module that answers a batch of prompts and then takes several training steps on the answers.

    Its DataModule deals every batch of prompts that many times in a row, so that a training step is one of Lightning's
    batches and a batch of prompts is one iteration.
    """

    def minibatches_per_rollout(self, prompts: int) -> int:
        """Training steps per batch of prompts, on each process.

        Args:
            prompts: Prompts in a batch of one process.
        """


@runtime_checkable
class CountsTokens(Protocol):
    """A Module that trains on other tokens than those of its batches, and counts them itself."""

    def tokens(self, batch: Batch) -> Tensor:
        """Tokens of the last training step on this process, a scalar on its device.

        Args:
            batch: What the step was given.
        """


@dataclass(frozen=True)
class RolloutRecord:
    """One response that a Module learned from.

    Attributes:
        iteration: Counted from 1.
        index: The prompt's row in its split.
        prompt: As text.
        response: As text, without the token that ended it.
        score: What the reward gave.
        advantage: The mean over the response's tokens, as the method learns from it.
        ended: False where the response was cut off.
    """

    iteration: int
    index: int
    prompt: str
    response: str
    score: float
    advantage: float
    ended: bool


@runtime_checkable
class ShowsRollouts(Protocol):
    """A Module that reports the responses that it trains on."""

    def rollout_records(self) -> list[RolloutRecord]:
        """The responses of the iteration that the last training step started; empty if it started none."""


@dataclass(frozen=True)
class Share:
    """Which part of a sharded checkpoint a process writes.

    Attributes:
        rank: This process's rank.
        processes: The number of processes.
        token: Identifies this save; the same on all processes.
    """

    rank: int
    processes: int
    token: str


@dataclass(frozen=True)
class Writing:
    """How to write a checkpoint.

    Attributes:
        asynchronous: Write in a background thread while training continues.
        share: Which shards this process writes; None where rank 0 writes a single file.
    """

    asynchronous: bool = False
    share: Share | None = None


@runtime_checkable
class MapsTensors(Protocol):
    """A reader of checkpoints that can leave weights and optimiser states where they are, on disk."""

    def load_mapped(self, path: str | Path) -> dict[str, Any]:
        """A checkpoint whose large tensors are read as they are looked at."""


@runtime_checkable
class Shardable(Protocol):
    """A Module that says which of its submodules may be sharded over processes, and what a checkpoint keeps."""

    def sharded_roots(self) -> list[nn.Module]:
        """The submodules whose parameters are sharded; each must be called through its own forward pass."""

    def on_sharded(self) -> None:
        """Called once they are sharded."""

    def kept_state(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entries of the Module's state dict that a checkpoint keeps."""


def batches_per_global_batch(loader_state: Mapping[str, int]) -> int:
    """Batches that each process takes of one global batch (that of an optimiser step, or of an iteration's rollout).

    Args:
        loader_state: The training data loader's state in a checkpoint.
    """
    return loader_state["accumulate"] * loader_state["uses"]


def converted_batches(batches: int, before: int, now: int) -> int:
    """Convert a batch count for a run that splits the global batch into another number of batches.

    A position within a global batch that has no exact counterpart is rounded up to the start of the next one.

    Args:
        batches: Batches done, in the old count.
        before: Batches per global batch, in the old count.
        now: Batches per global batch, in the new count.
    """
    done, within = divmod(batches, before)
    place, rest = divmod(within * now, before)
    return done * now + (now if rest else place)
