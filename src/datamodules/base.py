"""What all DataModules share: rows to examples, examples to tokens, tokens to batches."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from src.contracts import Example, LearnsFromRollouts
from src.datamodules import checks
from src.datamodules.cache import EncodedDataset, cached, default_cache_dir, tokenizer_fingerprint
from src.datamodules.encoding import Collator, encode_examples
from src.datamodules.formats import Format, resolve_format
from src.datamodules.loader import Batches, ResumableDataLoader
from src.datamodules.packing import PackedCollator, PackedDataset
from src.datamodules.sampler import LengthGroupedBatchSampler
from src.datamodules.sources import Rows, read_split
from src.datamodules.splits import SplitSpec
from src.datamodules.templates import fill, resolve_template
from src.errors import ParleyError
from src.internals import uses_distributed_sampler
from src.models.loading import is_encoder_decoder, load_config, load_tokenizer
from src.ranges import COUNT, NOT_NEGATIVE, SEED, refuse_outside

log = logging.getLogger(__name__)

COUNTS = ("batch_size", "max_tokens_per_batch", "pack_length", "max_source_length", "max_target_length", "every_nth")
RANGES = {
    **dict.fromkeys((*COUNTS, "pad_to_multiple_of", "max_chars"), COUNT),
    **dict.fromkeys(("num_workers", "min_chars"), NOT_NEGATIVE),
    "seed": SEED,
}
CACHE_VERSION = 2  # raise it when the meaning of a cached row changes


@dataclass(frozen=True)
class Row:
    """A dataset's row, its columns sorted into what is asked and what is answered.

    Attributes:
        fields: What the template may name.
        target: One right answer.
        id: The row's name in its source.
        size: Characters, for the limits on length.
    """

    fields: dict[str, str] = field(default_factory=dict)
    target: str = ""
    id: str = ""
    size: int = 0


class DialogueDataModule(LightningDataModule):
    """Base of the DataModules: a dataset says what its rows mean, everything else is here.

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
        loss_on: What a decoder-only model learns: the `response` alone, or `all` tokens, as the published chatbot does.
        batch_size: Examples a process takes at a time.
        max_tokens_per_batch: In training, take as many examples at a time as keep their number times the longest one
            (prompt and target together) within this, instead of `batch_size`.
        packing: In training, put several examples into one row, kept apart, instead of padding each to the longest.
            Decoder-only models; the batch's sizes then count rows.
        pack_length: Tokens of such a row at most; `max_source_length` and `max_target_length` together when left out.
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
        cache_dir: Where tokenised data is kept; beside the caches of `datasets` when left out.
        gguf_file: The GGUF file in the model's directory, where the tokenizer is in one. Linked to the model's.
        trust_remote_code: Run the code that the model's directory brings. Linked to the model's.
    """

    fields: frozenset[str]  # what a template may name
    in_turns = False  # whether prompt and target are two turns of a talk

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        train_split: str = "train",
        validation_split: str = "validation",
        test_split: str = "test",
        template: str = "",
        format: Format = "auto",
        loss_on: Literal["response", "all"] = "response",
        batch_size: int = 8,
        max_tokens_per_batch: int | None = None,
        packing: bool = False,
        pack_length: int | None = None,
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
        cache_dir: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.path = path
        self.splits = {
            name: SplitSpec.parse(text)
            for name, text in {"train": train_split, "validation": validation_split, "test": test_split}.items()
        }
        self.template = resolve_template(template, set(self.fields))
        self.format = format
        self.loss_on = loss_on
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.packing = packing
        self.pack_length = pack_length
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
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self.gguf_file = gguf_file
        self.trust_remote_code = trust_remote_code
        self.datasets: dict[str, EncodedDataset] = {}
        self._examples: dict[str, list[Example]] = {}  # from prepare_data to setup
        self._tokenizer: PreTrainedTokenizerBase | None = None
        refuse_outside(self, RANGES)

    @abstractmethod
    def to_rows(self, source: Rows) -> Iterable[Row]:
        """Sort a source's columns into rows, one a right answer; rows with equal fields answer the same question."""

    def examples(self, part: str) -> list[Example]:
        """Read, filter and cut a split.

        Args:
            part: `train` gives one example a right answer; `validation` and `test` give one a question, with all
                its answers as references.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """
        source = self._read(part)
        rows = self._of_part(part, list(self.to_rows(source)))
        rows = self._without_empty(rows[:: self.every_nth], source.origin)
        longest = math.inf if self.max_chars is None else self.max_chars
        rows = [row for row in rows if self.min_chars < row.size <= longest]
        by_question: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            by_question.setdefault(tuple(row.fields[name] for name in sorted(row.fields)), []).append(row)
        start, stop = self.splits[part].bounds(len(by_question))
        groups = list(by_question.values())[start:stop]
        if part == "train":
            groups = [[row] for group in groups for row in group]
        if not groups:
            raise ParleyError(
                f"the {part} split of {source.origin} is empty ({len(source.rows)} rows before every_nth, min_chars, "
                "max_chars and the slice); widen them or name another split."
            )
        return [
            Example(fill(self.template, group[0].fields), group[0].target, [row.target for row in group], group[0].id)
            for group in groups
        ]

    def _read(self, part: str) -> Rows:
        return read_split(self.path, self.splits[part].name)

    def _of_part(self, part: str, rows: list[Row]) -> list[Row]:  # noqa: ARG002
        """Those of a source's rows that belong to a split, where the source does not say."""
        return rows

    def _without_empty(self, rows: list[Row], origin: str) -> list[Row]:
        def is_empty(row: Row) -> bool:
            return not row.target.strip() or not all(text.strip() for text in row.fields.values())

        empty = [row.id for row in rows if is_empty(row)]
        if empty and self.strict:
            raise ParleyError(
                f"{origin}: row {empty[0]!r} has an empty cell; fill it, or drop strict to skip such rows."
            )
        if empty and self._speaks:
            log.warning(
                "%s: dropped %d of %d rows with an empty cell (first: %s).", origin, len(empty), len(rows), empty[0]
            )
        return [row for row in rows if not is_empty(row)]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(
                self.model_name_or_path, gguf_file=self.gguf_file, trust_remote_code=self.trust_remote_code
            )
        return self._tokenizer

    @property
    def _speaks(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    @property
    def _is_encoder_decoder(self) -> bool:
        return is_encoder_decoder(
            self.model_name_or_path, gguf_file=self.gguf_file, trust_remote_code=self.trust_remote_code
        )

    @property
    def resolved_format(self) -> Format:
        """What `format` means for this model: `plain`, `published` or `chat`."""
        return resolve_format(
            self.format, self.tokenizer, is_encoder_decoder=self._is_encoder_decoder, turns=self.in_turns
        )

    def _refuse_contradictions(self) -> None:
        if not self._is_encoder_decoder:
            return
        for name, is_set in (("loss_on: all", self.loss_on == "all"), ("packing: true", self.packing)):
            if is_set:
                raise ParleyError(
                    f"{name} is for decoder-only models, and {self.model_name_or_path!r} is an encoder-decoder; "
                    "leave it out, or give another model."
                )

    def _encoded(self, part: str) -> EncodedDataset:
        """A split's tokens from the cache, or made now.

        The key holds the finished examples, so whatever changes them (file, split, filters, template) makes a new
        entry, and what does not (another file with the same rows, the seed) makes none.
        """
        self._refuse_contradictions()
        if part not in self._examples:
            self._examples[part] = self.examples(part)
        examples = self._examples[part]
        limits = {"max_source_length": self.max_source_length, "max_target_length": self.max_target_length}
        joined, format = not self._is_encoder_decoder, self.resolved_format
        return cached(
            self.cache_dir,
            [
                CACHE_VERSION,
                joined,
                format,
                limits,
                tokenizer_fingerprint(self.tokenizer),
                [astuple(item) for item in examples],
            ],
            lambda: encode_examples(examples, self.tokenizer, is_encoder_decoder=not joined, format=format, **limits),
        )

    def _parts(self, stage: str | None) -> list[str]:
        return {
            "fit": ["train", "validation"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["test"],
        }.get(stage or "", ["train", "validation", "test"])

    def prepare_data(self) -> None:
        """Tokenise into the cache; Lightning calls this on one process, so that the others find it done."""
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn is not None else None
        for part in self._parts(stage):
            if part not in self.datasets:
                self._encoded(part)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that a stage needs and say what they hold."""
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and uses_distributed_sampler(trainer):
            raise ParleyError(
                "this DataModule deals batches to processes itself; set trainer.use_distributed_sampler: false."
            )
        for part in self._parts(stage):
            if part in self.datasets:
                continue
            dataset = self.datasets[part] = self._encoded(part)
            del self._examples[part]
            checks.refuse_too_long(
                part,
                dataset,
                load_config(
                    self.model_name_or_path, gguf_file=self.gguf_file, trust_remote_code=self.trust_remote_code
                ),
                joined=not self._is_encoder_decoder,
            )
            if self._speaks:
                checks.report(part, dataset, {"prompt": self.max_source_length, "target": self.max_target_length})
            checks.check_survival(part, dataset, self.model_name_or_path, speaks=self._speaks)
            if part == "validation" and "train" in self.datasets and self._speaks:
                checks.warn_of_overlap(self.datasets["train"], dataset)

    def _loader(self, part: str, *, training: bool, limit: str = "") -> ResumableDataLoader:
        """A split's batches.

        Args:
            part: The split.
            training: Shuffle, and form batches as the training options say.
            limit: The trainer's argument that may want fewer batches than there are.
        """
        dataset: EncodedDataset | PackedDataset = self.datasets[part]
        trainer = self.trainer
        max_tokens = self.max_tokens_per_batch if training else None
        lengths = self.datasets[part].lengths("prompt_ids")
        # An encoder-decoder pads the two sides apart, and the prompts weigh more: grouping by them alone pads 1.5 %
        # less on DialogSum than grouping by the sum, which a budget needs.
        if max_tokens is not None or not self._is_encoder_decoder:
            lengths = list(map(sum, zip(lengths, self.datasets[part].lengths("target_ids"), strict=True)))
        if training and self.packing:
            row_length = self.pack_length or self.max_source_length + self.max_target_length
            dataset = PackedDataset(self.datasets[part], lengths, row_length)
            lengths = dataset.lengths
        accumulate, uses = trainer.accumulate_grad_batches if trainer is not None and training else 1, 1
        if training and trainer is not None and isinstance(trainer.lightning_module, LearnsFromRollouts):
            if max_tokens is not None:
                raise ParleyError(
                    "max_tokens_per_batch is for fine-tuning: a batch of prompts has a fixed number; use batch_size."
                )
            accumulate, uses = 1, trainer.lightning_module.minibatches_per_rollout(self.batch_size)
        sampler = LengthGroupedBatchSampler(
            lengths,
            batch_size=self.batch_size,
            max_tokens=max_tokens,
            shuffle=training,
            group_by_length=self.group_by_length,
            seed=self.seed,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            accumulate=accumulate,
            uses=uses,
        )
        if trainer is not None and limit:
            self._take_sample(sampler, part, limit)
        return ResumableDataLoader(
            dataset,
            sampler,
            collate_fn=self._collator(packed=training and self.packing),
            num_workers=self.num_workers,
        )

    def _take_sample(self, sampler: LengthGroupedBatchSampler, part: str, limit: str) -> None:
        """Let the batches that a limited evaluation takes be a fair sample of the split, not its longest examples."""
        wanted = getattr(self.trainer, limit)
        taken = int(wanted * len(sampler)) if isinstance(wanted, float) else wanted
        if not 0 < taken < len(sampler):
            return
        sampler.sample_batches = taken
        if self._speaks:
            log.info(
                "%s: %s takes %d of %d examples, the same random sample every time.",
                part,
                limit,
                sum(map(len, sampler.global_batches()[:taken])),
                len(self.datasets[part]),
            )

    def _collator(self, *, packed: bool) -> Collator | PackedCollator:
        pad_token_id, learns_prompts = self.tokenizer.pad_token_id, self.loss_on == "all"
        if packed:
            return PackedCollator(pad_token_id, learns_prompts, self.pad_to_multiple_of)
        return Collator(pad_token_id, self._is_encoder_decoder, learns_prompts, self.pad_to_multiple_of)

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches of the training split."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> ResumableDataLoader:
        """The validation split, each example once over all processes."""
        return self._loader("validation", training=False, limit="limit_val_batches")

    def test_dataloader(self) -> ResumableDataLoader:
        """The test split, each example once over all processes."""
        return self._loader("test", training=False, limit="limit_test_batches")

    def predict_dataloader(self) -> Batches:
        """The test split again."""
        return Batches(self._loader("test", training=False, limit="limit_predict_batches"))
