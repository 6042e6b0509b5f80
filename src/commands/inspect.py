"""Inspect a model, adapter or checkpoint: architecture, sizes, parameters, generation settings, tokenizer.

MODEL is a model or adapter directory, a checkpoint (.ckpt) or a hub name. --lora adds a LoRA adapter, to see how
many parameters it would train.

  parley inspect google/flan-t5-base --lora "r=32,lora_alpha=32,target_modules=[q,v]"
  parley inspect runs/version_0/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import yaml

from src.commands.arguments import add_trust_argument
from src.commands.output import show, show_json
from src.commands.visible import say
from src.errors import ParleyError

if TYPE_CHECKING:
    from peft import LoraConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a directory, a checkpoint or a hub name")
    parser.add_argument(
        "--lora", metavar="SETTINGS", help="PEFT's settings of an adapter to add: 'r=32,target_modules=[q,v]'"
    )
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter or checkpoint, its base if that has moved")
    parser.add_argument("--gguf-file", metavar="NAME", help="the GGUF file in the model's directory")
    add_trust_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    from src.inference.inspection import inspect_model

    found = inspect_model(
        args.model,
        lora=None if args.lora is None else _lora(args.lora),
        base_model_name=args.base_model,
        gguf_file=args.gguf_file,
        trust_remote_code=args.trust_remote_code,
    )
    if args.json:
        show_json(found.sections)
        return
    for title, rows in found.sections.items():
        show([{title: name, "": _cell(value)} for name, value in rows.items() if value is not None])
        say("\n")
    count = found.parameters  # in the format of the published notebooks
    share = 100 * count.trainable / count.total if count.total else 0.0
    say(f"trainable model parameters: {count.trainable}\nall model parameters: {count.total}\n")
    say(f"percentage of trainable model parameters: {share:.2f}%\n")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _lora(text: str) -> LoraConfig:
    from peft import LoraConfig

    try:
        settings = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ParleyError(f"--lora {text!r} is not understood; write r=32,target_modules=[q,v].")
    try:
        return LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ParleyError(f"--lora {text!r}: {str(error).splitlines()[0]}; give LoraConfig's settings.") from error
