"""DataModules; YAML may name them by class name alone."""

from src.datamodules.base import TextDataModule
from src.datamodules.chatbot import ChatbotDataModule
from src.datamodules.conversations import ConversationDataModule
from src.datamodules.dialogsum import DialogSumDataModule
from src.datamodules.dialogue import DialogueDataModule
from src.datamodules.preferences import PreferenceDataModule

__all__ = [
    "ChatbotDataModule",
    "ConversationDataModule",
    "DialogSumDataModule",
    "DialogueDataModule",
    "PreferenceDataModule",
    "TextDataModule",
]
