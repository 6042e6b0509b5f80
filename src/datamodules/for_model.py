"""What a DataModule knows of the model that it prepares for: its tokenizer, its architecture, its format."""

from __future__ import annotations

from functools import cached_property

from lightning.pytorch import LightningDataModule
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from src.datamodules.formats import Format, resolve_format
from src.models.config import load_config
from src.models.loading import load_tokenizer


class PreparesForModel(LightningDataModule):
    """A DataModule with a model's tokenizer and configuration, each read when it is first wanted.

    Args:
        model_name_or_path: A directory or hub name.
        format: As configured.
        gguf_file: The GGUF file in the model's directory, where the tokenizer is in one.
        trust_remote_code: Run the code that the model's directory brings.
    """

    in_turns = False  # whether prompt and target are two turns of a talk

    def __init__(
        self, model_name_or_path: str, format: Format, *, gguf_file: str | None, trust_remote_code: bool
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.format = format
        self.gguf_file = gguf_file
        self.trust_remote_code = trust_remote_code
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._configs: dict[int | None, PreTrainedConfig] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(
                self.model_name_or_path, gguf_file=self.gguf_file, trust_remote_code=self.trust_remote_code
            )
        return self._tokenizer

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(self.model_config.is_encoder_decoder)

    @property
    def model_config(self) -> PreTrainedConfig:
        """The model's configuration."""
        outputs = self.outputs
        if outputs not in self._configs:
            self._configs[outputs] = load_config(
                self.model_name_or_path, self.gguf_file, outputs=outputs, trust_remote_code=self.trust_remote_code
            )
        return self._configs[outputs]

    @property
    def outputs(self) -> int | None:
        """Of the classifier that the Module trains; None where it trains a language model."""
        return None

    @cached_property
    def resolved_format(self) -> Format:
        """What `format` means for this model: `plain`, `published` or `chat`."""
        return resolve_format(
            self.format, self.tokenizer, is_encoder_decoder=self.is_encoder_decoder, turns=self.in_turns
        )
