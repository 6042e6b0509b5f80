"""DataModules, by short name in YAML."""

from src.datamodules.base import DialogueDataModule
from src.datamodules.chatbot import ChatbotDataModule
from src.datamodules.dialogsum import DialogSumDataModule

__all__ = ["ChatbotDataModule", "DialogSumDataModule", "DialogueDataModule"]
