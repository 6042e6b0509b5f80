"""Preference pairs, for reward models and DPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from src.contracts import (
    Example,
    LearnsFromPreferences,
    LearnsFromRollouts,
    Preference,
    PreferenceBatch,
    ReadsWholeTexts,
)
from src.datamodules.base import TextDataModule
from src.datamodules.encoding import encode_examples, pad
from src.datamodules.preference_rows import Columns, PreferenceRow, preference_rows
from src.datamodules.rows import Row
from src.datamodules.sources import Rows
from src.datamodules.templates import fill
from src.errors import ParleyError
from src.models.texts import lost_characters
from src.models.texts_to_classify import TextReader, load_reader, texts_to_score

WHOLE = 10**9  # a token limit above the length of any text


class PreferenceDataModule(TextDataModule):
    """Preference pairs: as `parley prefer` writes them, in TRL's layouts, Anthropic's or OpenAI's.

    All pairs of a prompt are in the same split. Pairs of equal answers are dropped and counted in the log. Online
    methods (PPO, …) use the prompts only. Whole texts, as a reward model reads them, are truncated at their beginning
    to `max_source_length` plus `max_target_length` tokens.

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A hub name, a directory, a file (.jsonl, .csv, .parquet) or a directory saved by `datasets`.
        template: A prompt template's name or text; it has `{prompt}`. It is not applied to conversations.
        prompt_column: The column with the prompt; if it is missing, the prompt is the common beginning of both answers.
        chosen_column: The column with the better answer.
        rejected_column: The column with the other one.
        margin_column: The column with a number of 0 or more by which the better answer is better; it need not exist.
        **kwargs: The arguments of every DataModule (`TextDataModule`).
    """

    fields = frozenset({"prompt"})
    answers = ("chosen", "rejected")

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        template: str = "{prompt}",
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        margin_column: str = "margin",
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, path=path, template=template, **kwargs)
        self.columns = Columns(prompt_column, chosen_column, rejected_column, margin_column)
        self._kept_text: Literal["prompt_and_response", "response"] | None = None

    def to_rows(self, source: Rows) -> Iterator[PreferenceRow]:
        """One Row per pair."""
        rows = list(preference_rows(source, self.columns))
        equal = [row for row in rows if row.target.strip() == row.rejected.strip()]
        if equal and self.strict:
            raise ParleyError(
                f"{source.origin}: the answers of pair {equal[0].id!r} are equal; drop it, or drop strict to skip such."
            )
        source.notes.add(
            "dropped {count} of {of} pairs whose answers are equal (first: {first})",
            [row.id for row in equal],
            of=len(rows),
        )
        yield from (row for row in rows if row.target.strip() != row.rejected.strip())

    def examples(self, part: str) -> list[Preference]:
        """Read and filter a split, and take the part that is asked for; every pair is an example.

        Args:
            part: `train`, `validation` or `test`.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """
        return [pair for group in self.groups(part) for row in group for pair in self.examples_of(row)]

    def examples_of(self, row: Row) -> list[Preference]:
        """A row's pair."""
        assert isinstance(row, PreferenceRow)
        prompt = row.fields["prompt"] if row.turns else fill(self.template, row.fields)
        return [Preference(prompt, row.target, row.rejected, row.margin, row.id, row.turns)]

    def refuse_misfits(self, module: object) -> None:
        """Refuse a Module for supervised fine-tuning, since neither answer of a pair need be right."""
        if module is None or isinstance(module, (LearnsFromPreferences, LearnsFromRollouts)):
            return
        raise ParleyError(
            f"{type(module).__name__} learns right answers, and PreferenceDataModule has pairs of which one is better; "
            "give DPOModule or RewardModule, or another DataModule."
        )

    @property
    def _text(self) -> Literal["prompt_and_response", "response"] | None:
        """Which whole texts the Module reads; None if it reads prompt and answers separately."""
        if self.trainer is None:
            return self._kept_text
        module = self.trainer.lightning_module
        return module.text if isinstance(module, ReadsWholeTexts) else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer, as everywhere, but with what its Module reads."""
        return {**super().__getstate__(), "_kept_text": self._text}

    @property
    def outputs(self) -> int | None:
        """1 if the Module is a classifier of whole texts, which may also be an encoder-only model; otherwise None."""
        return None if self._text is None else 1

    @cached_property
    def _reader(self) -> TextReader:
        return load_reader(
            self.model_name_or_path,
            gguf_file=self.gguf_file,
            max_length=self.max_source_length + self.max_target_length,
            trust_remote_code=self.trust_remote_code,
        )

    def cache_key(self) -> list[Any]:
        """The part of the cache key that does not depend on the pairs."""
        return [*super().cache_key(), self._text]

    def encode(self, examples: Sequence[Preference]) -> Sequence[Mapping[str, Any]]:
        """Tokenise pairs, one cache row each."""
        rows = self._whole_texts(examples) if self._text is not None else self._answers(examples)
        return [
            {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "id": pair.id, **row}
            | {"margin": pair.margin or 0.0}
            for pair, row in zip(examples, rows, strict=True)
        ]

    def _answers(self, examples: Sequence[Preference]) -> list[dict[str, Any]]:
        """Prompt and answers separately, as in generation."""
        sides = {}
        for name in self.answers:
            sides[name] = encode_examples(
                [Example(pair.prompt, getattr(pair, name), turns=pair.turns) for pair in examples],
                self.tokenizer,
                is_encoder_decoder=self.is_encoder_decoder,
                format=self.resolved_format,
                max_source_length=self.max_source_length,
                max_target_length=self.max_target_length,
            )
        kinds = ("ids", "truncated", "lost")
        return [
            {"turns_dropped": chosen["turns_dropped"]}
            | {f"prompt_{kind}": chosen[f"prompt_{kind}"] for kind in kinds}  # type: ignore[literal-required]
            | {f"chosen_{kind}": chosen[f"target_{kind}"] for kind in kinds}  # type: ignore[literal-required]
            | {f"rejected_{kind}": rejected[f"target_{kind}"] for kind in kinds}  # type: ignore[literal-required]
            for chosen, rejected in zip(sides["chosen"], sides["rejected"], strict=True)
        ]

    def _whole_texts(self, examples: Sequence[Preference]) -> list[dict[str, Any]]:
        """Prompt and answer as one text, encoded by the same code as in `ClassifierReward`."""
        assert self._text is not None
        reader, prompts = self._reader, [pair.prompt for pair in examples]
        rows: list[dict[str, Any]] = [
            {"prompt_ids": [], "prompt_truncated": False, "prompt_lost": 0, "turns_dropped": 0} for _ in examples
        ]
        for name in self.answers:
            texts = texts_to_score(prompts, [getattr(pair, name) for pair in examples], self._text)
            whole = replace(reader, max_length=WHOLE).ids(texts)
            lost = lost_characters(texts, whole, reader.tokenizer)
            for row, ids, all_ids, missing in zip(rows, reader.ids(texts), whole, lost, strict=True):
                row |= {f"{name}_ids": ids, f"{name}_truncated": len(ids) < len(all_ids), f"{name}_lost": missing}
        return rows

    def limits(self) -> dict[str, int]:
        """The most tokens of a prompt and of each kind of answer."""
        if self._text is None:
            return super().limits()
        return dict.fromkeys(self.answers, self._reader.max_length)

    def lengths(self, part: str, *, in_all: bool) -> list[int]:
        """Tokens of the longer answer of each pair, with its prompt if both are read as one."""
        return super().lengths(part, in_all=in_all or self._text is not None)

    def collator(self, *, training: bool) -> Callable[[Sequence[Any]], Any]:  # noqa: ARG002
        """The collate function, from rows to a `PreferenceBatch`."""
        tokenizer = self.tokenizer if self._text is None else self._reader.tokenizer
        assert isinstance(tokenizer.pad_token_id, int)
        return PreferenceCollator(tokenizer.pad_token_id, self.is_encoder_decoder, self.pad_to_multiple_of)


@dataclass(frozen=True)
class PreferenceCollator:
    """Pads encoded pairs into a `PreferenceBatch`.

    Args:
        pad_token_id: The padding of the ids.
        is_encoder_decoder: Whether the model has an encoder; prompts are then padded on the right.
        pad_to_multiple_of: Round lengths up to a multiple, which is efficient on tensor cores.
    """

    pad_token_id: int
    is_encoder_decoder: bool
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> PreferenceBatch:
        """Make a batch from rows of `EncodedDataset`."""
        multiple = self.pad_to_multiple_of
        prompts, answers = (
            pad([row["prompt_ids"] for row in rows], self.pad_token_id, multiple, left=not self.is_encoder_decoder),
            pad([row[f"{name}_ids"] for name in ("chosen", "rejected") for row in rows], self.pad_token_id, multiple),
        )
        return PreferenceBatch(
            prompt_ids=prompts[0],
            prompt_attention_mask=prompts[1],
            answer_ids=answers[0],
            answer_mask=answers[1],
            margin=torch.tensor([row["margin"] for row in rows], dtype=torch.float32),
            id=[row["id"] for row in rows],
            prompt=[row["prompt"] for row in rows],
            chosen=[row["chosen"] for row in rows],
            rejected=[row["rejected"] for row in rows],
            references=[[row["chosen"]] for row in rows],
            is_filler=[row["is_filler"] for row in rows],
            index=[row["index"] for row in rows],
        )
