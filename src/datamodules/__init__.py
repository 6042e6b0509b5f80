"""DataModules, by short name in YAML."""

from src.datamodules.base import DialogueDataModule
from src.datamodules.dialogsum import DialogSumDataModule

__all__ = ["DialogSumDataModule", "DialogueDataModule"]
