"""Parley: fine-tune, align and ship dialogue models on PyTorch Lightning."""

__version__ = "0.1.0"
