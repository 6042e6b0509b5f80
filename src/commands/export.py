"""Write a run's checkpoint as a plain Hugging Face directory, or its adapter as a PEFT directory."""

from __future__ import annotations

import argparse

from src.commands.arguments import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="a .ckpt file of a run")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the directory goes")
    parser.add_argument("--merge", action="store_true", help="fold an adapter into its base, and write the whole model")
    parser.add_argument("--base-model", metavar="DIR", help="where the base model is now, if it has moved")
    add_trust_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a directory that has something in it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from peft import PeftModel

    from src.commands.output import show
    from src.inference.export import export

    restored = export(
        args.checkpoint,
        args.output,
        merge=args.merge,
        base_model=args.base_model,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
    )
    is_adapter = isinstance(restored.model, PeftModel) and not args.merge
    size = sum(file.stat().st_size for file in Path(args.output).rglob("*") if file.is_file())
    row = {
        "written": "adapter" if is_adapter else "model",
        "directory": args.output,
        "base": restored.base,
        "MB": round(size / 1e6, 1),
    }
    show([row], as_json=args.json)
