"""Show how a model's tokenizer splits texts: tokens, ids, what each decodes to, and whether decoding gives the text.

MODEL is a model or adapter directory, a checkpoint (.ckpt) or a hub name; only its tokenizer is read. Texts are
arguments, or come from --input or standard input. --beside MODEL shows a second tokenizer's result next to it.

  parley tokenize google/flan-t5-base "안녕하세요"  --beside skt/kogpt2-base-v2
  parley tokenize google/flan-t5-base --look-up 3 --look-up "▁the"
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands.arguments import add_trust_argument
from src.commands.output import show, show_json
from src.commands.visible import say
from src.errors import ParleyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from src.inference.tokens import TokenisedText


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a directory, a checkpoint or a hub name")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to tokenise; standard input when left out")
    parser.add_argument("--input", type=Path, metavar="FILE", help="a text file: each line is a text")
    parser.add_argument("--beside", metavar="MODEL", help="another model, to compare with")
    parser.add_argument("--look-up", action="append", default=[], metavar="TOKEN", help="a token or an id; repeatable")
    parser.add_argument("--no-special", action="store_true", help="leave out the special tokens around a text")
    parser.add_argument("--gguf-file", metavar="NAME", help="the GGUF file in the model's directory")
    add_trust_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    from src.inference.tokens import look_up, read_tokenizer_of, tokenise

    if args.input is not None and args.texts:
        raise ParleyError("a text and --input exclude each other; give one of them.")
    names = [args.model, *([args.beside] if args.beside else [])]
    tokenizers = {
        name: read_tokenizer_of(
            name, gguf_file=args.gguf_file if name == args.model else None, trust_remote_code=args.trust_remote_code
        )
        for name in names
    }
    found = {name: [look_up(asked, one) for asked in args.look_up] for name, one in tokenizers.items()}
    texts = [] if args.look_up and not (args.texts or args.input) else _texts(args)
    made = {
        name: [tokenise(text, one, special=not args.no_special) for text in texts] for name, one in tokenizers.items()
    }
    if args.json:
        show_json(
            [
                {
                    "model": name,
                    **_about(one),
                    "texts": [{**asdict(text), "survived": text.survived} for text in made[name]],
                    "looked_up": [asdict(token) for token in found[name]],
                }
                for name, one in tokenizers.items()
            ]
        )
        return
    show([{"model": name, **_about(one)} for name, one in tokenizers.items()])
    for name in tokenizers:
        if found[name]:
            say("\n")
            show([asdict(token) for token in found[name]], title=f"Looked up in {name}:" if args.beside else None)
    for number in range(len(texts)):
        for name in names:
            say("\n")
            _show_text(made[name][number], name if args.beside else None)
    if args.beside and texts:
        say("\n")
        show(
            [
                {"text": text[:60], **{name: len(made[name][number].tokens) for name in names}}
                for number, text in enumerate(texts)
            ],
            title="Tokens of each:",
        )


def _texts(args: argparse.Namespace) -> list[str]:
    from src.files import read_text, refuse_surrogates

    if args.texts:
        for text in args.texts:
            refuse_surrogates(text, "the text")
        return list(args.texts)
    if args.input is not None:
        text = read_text(args.input)
    elif sys.stdin.isatty():
        raise ParleyError("there is nothing to tokenise; give a TEXT, --input FILE or --look-up, or pipe a text in.")
    else:
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ParleyError(f"{args.input or 'standard input'} has no text in it; give some.")
    return lines


def _about(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    special = {
        role: getattr(tokenizer, f"{role}_token")
        for role in ("bos", "eos", "pad", "unk")
        if getattr(tokenizer, f"{role}_token") is not None
    }
    shown = ", ".join(f"{role} {token} {tokenizer.convert_tokens_to_ids(token)}" for role, token in special.items())
    return {
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "special": shown,
        "chat_template": bool(tokenizer.chat_template),
    }


def _show_text(made: TokenisedText, name: str | None) -> None:
    rows = [
        {
            "#": place,
            "id": token.id,
            "token": token.token,
            "decodes to": repr(token.text),
            "special": "yes" * token.special,
        }
        for place, token in enumerate(made.tokens)
    ]
    whose = f"{name}: " if name else ""
    show(rows, title=f"{whose}{made.text!r}")
    say(f"{len(made.tokens)} tokens for {len(made.text)} characters; back: {made.back!r} ({made.survived}).\n")
