"""The base of DataModules: reading and filtering of rows, cached tokens, batches distributed to processes."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from src.contracts import LearnsFromPreferences
from src.datamodules import checks
from src.datamodules.cache import EncodedDataset, cached, default_cache_dir, tokenizer_fingerprint
from src.datamodules.dealing import Dealing
from src.datamodules.for_model import PreparesForModel
from src.datamodules.formats import Format
from src.datamodules.loader import Batches, ResumableDataLoader
from src.datamodules.rows import Row, by_question, without_empty
from src.datamodules.sampler import DealtBatchSampler
from src.datamodules.sources import Rows, read_split
from src.datamodules.splits import SplitSpec
from src.datamodules.streaming import StreamedDataset, StreamedRows
from src.datamodules.templates import resolve_template
from src.errors import ParleyError
from src.internals import uses_distributed_sampler
from src.ranges import COUNT, NOT_NEGATIVE, SEED, refuse_outside

log = logging.getLogger(__name__)

COUNTS = ("batch_size", "max_tokens_per_batch", "max_source_length", "max_target_length", "every_nth", "max_chars")
RANGES = {
    **dict.fromkeys((*COUNTS, "pad_to_multiple_of", "shuffle_buffer"), COUNT),
    **dict.fromkeys(("num_workers", "min_chars"), NOT_NEGATIVE),
    "seed": SEED,
}
CACHE_VERSION = 4  # raise it when the meaning of a cached row changes


class TextDataModule(PreparesForModel):
    """Base of the DataModules; a subclass says what a dataset's rows mean and how they are encoded.

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A hub name, a directory, a file (.jsonl, .csv, .parquet) or a directory saved by `datasets`.
        train_split: The split to train on: a name, or a part such as `train[:80%]` or `train[100:]`. Parts are taken
            after the filters below and count questions (or dialogues), each with all its answers.
        validation_split: The split for validation.
        test_split: The split for testing and predicting.
        template: A prompt template's name (see `templates.yaml`), or a text with a `{field}` in it.
        format: How a decoder-only model is shown prompt and target: by its chat template (`chat`), as plain text
            (`plain`), or as `<s>prompt</s><s>target</s>` (`published`). `auto` takes the chat template where there is
            one. An encoder-decoder has no such choice.
        batch_size: Examples a process takes at a time.
        max_tokens_per_batch: In training, take as many examples at a time as keep their number times the longest one
            (prompt and target together) within this, instead of `batch_size`.
        group_by_length: Batch examples of similar length together.
        max_source_length: Tokens of a prompt at most; longer ones are truncated and counted in the log.
        max_target_length: Tokens of a target at most.
        every_nth: Keep each n-th row of every split, from the first (the published subsample has 100).
        min_chars: Keep rows with more characters than this (the published PPO recipe: 200).
        max_chars: Keep rows with no more characters than this (the published PPO recipe: 1000).
        num_workers: Processes that prepare batches.
        seed: Of the shuffling.
        strict: Refuse an empty cell instead of dropping the row.
        pad_to_multiple_of: Round padded lengths up to a multiple; 8 suits tensor cores.
        streaming: In training, leave rows on the disk until a step takes them, and tokenise them then: for data that is
            larger than memory. Reads JSON lines, Parquet and what `datasets` has on the disk.
        shuffle_buffer: With streaming, examples that are in memory to be shuffled.
        cache_dir: Where tokenised data is kept; beside the caches of `datasets` when left out.
        gguf_file: The GGUF file in the model's directory, where the tokenizer is in one. Linked to the model's.
        trust_remote_code: Run the code that the model's directory brings. Linked to the model's.
    """

    fields: frozenset[str]  # what a template may name
    answers: tuple[str, ...] = ("target",)  # the answers of a cached row, in columns `<name>_ids`

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        train_split: str = "train",
        validation_split: str = "validation",
        test_split: str = "test",
        template: str = "",
        format: Format = "auto",
        batch_size: int = 8,
        max_tokens_per_batch: int | None = None,
        group_by_length: bool = True,
        max_source_length: int = 512,
        max_target_length: int = 128,
        every_nth: int = 1,
        min_chars: int = 0,
        max_chars: int | None = None,
        num_workers: int = 0,
        seed: int = 42,
        strict: bool = False,
        pad_to_multiple_of: int = 1,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        cache_dir: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model_name_or_path, format, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
        self.path = path
        self.splits = {
            name: SplitSpec.parse(text)
            for name, text in {"train": train_split, "validation": validation_split, "test": test_split}.items()
        }
        self.template = resolve_template(template, set(self.fields))
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.group_by_length = group_by_length
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.every_nth = every_nth
        self.min_chars = min_chars
        self.max_chars = max_chars
        self.num_workers = num_workers
        self.seed = seed
        self.strict = strict
        self.pad_to_multiple_of = pad_to_multiple_of
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self.datasets: dict[str, EncodedDataset] = {}
        self._examples: dict[str, list[Any]] = {}  # kept from prepare_data to setup
        self._streamed: StreamedRows | None = None  # the training split, where it stays on the disk
        refuse_outside(self, RANGES)
        if streaming and max_tokens_per_batch is not None:
            raise ParleyError(
                "max_tokens_per_batch wants the length of every example, which streaming learns as it goes; give "
                "batch_size, or leave streaming out."
            )

    def __getstate__(self) -> dict[str, Any]:
        """For processes that prepare batches: they are started without the trainer."""
        return {**vars(self), "trainer": None}

    # For datasets to implement

    @abstractmethod
    def to_rows(self, source: Rows) -> Iterable[Row]:
        """Sort a source's columns into rows, one a right answer; rows with equal fields answer the same question.

        Args:
            source: All of a split; with `streaming`, one row of it at a time.
        """

    @abstractmethod
    def examples(self, part: str) -> list[Any]:
        """Read and filter a split, and take the part that is asked for.

        Args:
            part: `train`, `validation` or `test`.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """

    @abstractmethod
    def examples_of(self, row: Row) -> list[Any]:
        """What is learned from a row, one example or several."""

    @abstractmethod
    def encode(self, examples: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """Tokenise examples, one cache row each, with `prompt_ids`, and `<answer>_ids` for each of `answers`."""

    @abstractmethod
    def collator(self, *, training: bool) -> Callable[[Sequence[Any]], Any]:
        """The collate function, from rows to a batch."""

    def refuse_misfits(self, module: object) -> None:
        """Refuse a Module or a model that this data is not meant for.

        Args:
            module: The Module; None without a trainer.

        Raises:
            ParleyError: They do not fit.
        """
        if isinstance(module, LearnsFromPreferences) and (module.reads == "texts" or self._trains):
            raise ParleyError(
                f"{type(module).__name__} learns from pairs of answers, and {type(self).__name__} has single ones; "
                "give PreferenceDataModule, for pairs such as `parley prefer` makes."
            )

    def training_dataset(self, lengths: list[int]) -> tuple[Dataset, list[int]]:
        """The dataset to train on, and the lengths of its rows.

        Args:
            lengths: Tokens of each example.
        """
        return self.datasets["train"], lengths

    # Rows

    def groups(self, part: str) -> list[list[Row]]:
        """A split's rows after the filters, those that answer the same question together.

        Args:
            part: `train`, `validation` or `test`.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """
        if self.streaming:
            return by_question(StreamedRows(self, part).rows(speaks=self._speaks))
        source = self._read(part)
        rows = self.rows_of(part, source)[:: self.every_nth]
        rows = without_empty(rows, source.origin, source.notes, strict=self.strict)
        if self._speaks:
            source.notes.tell(source.origin)
        longest = math.inf if self.max_chars is None else self.max_chars
        groups = by_question(row for row in rows if self.min_chars < row.size <= longest)
        if not groups:
            raise ParleyError(
                f"the {part} split of {source.origin} is empty ({len(source.rows)} rows before every_nth, min_chars "
                "and max_chars); widen them or name another split."
            )
        start, stop = self.splits[part].bounds(len(groups))
        if start >= stop:
            raise ParleyError(
                f"the {part} split is empty: its slice takes none of the {len(groups)} rows of {source.origin}; widen "
                f"{part}_split, or give more rows."
            )
        return groups[start:stop]

    def rows_of(self, part: str, source: Rows) -> list[Row]:
        """What a source's rows, or some of them, mean, where they belong to a split.

        Args:
            part: `train`, `validation` or `test`.
            source: The rows.
        """
        return self._of_part(part, list(self.to_rows(source)))

    def where(self, part: str) -> tuple[str, str]:
        """The source of a part, and the source's split that it is in."""
        return self.path, self.splits[part].name

    def _read(self, part: str) -> Rows:
        return read_split(*self.where(part))

    def _of_part(self, part: str, rows: list[Row]) -> list[Row]:  # noqa: ARG002
        """The rows that belong to a split, for sources that are not divided into splits."""
        return rows

    # Tokens

    @property
    def _trains(self) -> bool:
        """Whether this is for training, with its validation, rather than for testing or predicting."""
        return self.trainer is not None and self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING)

    @property
    def _speaks(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    def characters(self, example: Any) -> int:
        """How long an example is, where its tokens are not known: of what `lengths` counts the tokens."""
        prompt = len(example.prompt)
        return prompt if self.is_encoder_decoder else prompt + max(len(getattr(example, name)) for name in self.answers)

    def limits(self) -> dict[str, int]:
        """The most tokens of a prompt and of each kind of answer."""
        return {"prompt": self.max_source_length, **dict.fromkeys(self.answers, self.max_target_length)}

    def cache_key(self) -> list[Any]:
        """The part of the cache key that does not depend on the examples, JSON-serialisable."""
        format, tokenizer = self.resolved_format, tokenizer_fingerprint(self.tokenizer)
        return [CACHE_VERSION, not self.is_encoder_decoder, format, self.limits(), tokenizer]

    def _encoded(self, part: str) -> EncodedDataset:
        """A split's tokens, from the cache or computed now.

        The key includes the finished examples, so whatever changes them (file, split, filters, template) gives a new
        entry, and what does not (another file with the same rows, the seed) gives none.
        """
        self.refuse_misfits(None if self.trainer is None else self.trainer.lightning_module)
        if part not in self._examples:
            self._examples[part] = self.examples(part)
        examples = self._examples[part]
        key = [*self.cache_key(), [[type(item).__name__, asdict(item)] for item in examples]]
        return cached(self.cache_dir, key, lambda: self.encode(examples))

    def _parts(self, stage: str | None) -> list[str]:
        return {
            "fit": ["train", "validation"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["test"],
        }.get(stage or "", ["train", "validation", "test"])

    def prepare_data(self) -> None:
        """Tokenise into the cache; Lightning calls this on one process only."""
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn is not None else None
        for part in self._parts(stage):
            if part == "train" and self.streaming:
                StreamedRows(self, part)
            elif part not in self.datasets:
                self._encoded(part)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that a stage needs and log their sizes."""
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and uses_distributed_sampler(trainer):
            raise ParleyError(
                "this DataModule deals batches to processes itself; set trainer.use_distributed_sampler: false."
            )
        for part in self._parts(stage):
            if part == "train" and self.streaming:
                self.refuse_misfits(None if trainer is None else trainer.lightning_module)
                self._streamed = self._streamed or StreamedRows(self, part)
                self._streamed.look(speaks=self._speaks)
                continue
            if part in self.datasets:
                continue
            dataset = self.datasets[part] = self._encoded(part)
            del self._examples[part]
            checks.refuse_too_long(part, dataset, self.answers, self.model_config, joined=not self.is_encoder_decoder)
            if self._speaks:
                checks.report(part, dataset, self.limits())
            checks.check_survival(part, dataset, self.answers, self.model_name_or_path, speaks=self._speaks)
            if part == "validation" and self._speaks:
                if self._streamed is not None:
                    self._streamed.warn_of_overlap(StreamedRows(self, part))
                elif "train" in self.datasets:
                    checks.warn_of_overlap(self.datasets["train"], dataset)

    # Batches

    def lengths(self, part: str, *, in_all: bool) -> list[int]:
        """Tokens of each example, for grouping by length.

        An encoder-decoder pads prompts and targets separately, and prompts are longer: grouping by them alone gives 1.5
        % less padding on DialogSum than grouping by the sum.

        Args:
            part: The split.
            in_all: Count prompt and target together, as for a budget of tokens.
        """
        prompts = self.datasets[part].lengths("prompt_ids")
        if self.is_encoder_decoder and not in_all:
            return prompts
        answers = [self.datasets[part].lengths(f"{name}_ids") for name in self.answers]
        return [prompt + max(lengths) for prompt, *lengths in zip(prompts, *answers, strict=True)]

    @property
    def _dealing(self) -> Dealing:
        return Dealing(self.batch_size, self.max_tokens_per_batch, self.group_by_length, self.seed)

    def _evaluation_loader(self, part: str, limit: str) -> ResumableDataLoader:
        sampler = self._dealing.evaluation(self.lengths(part, in_all=False), self.trainer, part=part, limit=limit)
        return self._loader(self.datasets[part], sampler, training=False)

    def _loader(self, dataset: Dataset, sampler: DealtBatchSampler, *, training: bool) -> ResumableDataLoader:
        is_for_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return ResumableDataLoader(
            dataset,
            sampler,
            collate_fn=self.collator(training=training),
            num_workers=self.num_workers,
            pin_memory=is_for_gpu,  # only from pinned memory does Lightning copy a batch while the GPU computes
        )

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches of the training split."""
        if (streamed := self._streamed) is not None:
            sampler = self._dealing.streamed(len(streamed), streamed.lengths, self.shuffle_buffer, self.trainer)
            dataset = StreamedDataset(streamed, sampler.stretch, sampler.stretches)
            return self._loader(dataset, sampler, training=True)
        lengths = self.lengths("train", in_all=self.max_tokens_per_batch is not None)
        examples, lengths = self.training_dataset(lengths)
        return self._loader(examples, self._dealing.training(lengths, self.trainer), training=True)

    def val_dataloader(self) -> ResumableDataLoader:
        """The validation split, each example once over all processes."""
        return self._evaluation_loader("validation", "limit_val_batches")

    def test_dataloader(self) -> ResumableDataLoader:
        """The test split, each example once over all processes."""
        return self._evaluation_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> Batches:
        """The test split again."""
        return Batches(self._evaluation_loader("test", "limit_predict_batches"))
