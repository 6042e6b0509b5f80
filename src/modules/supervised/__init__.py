"""Modules for supervised fine-tuning."""
