"""Serve models over HTTP with the OpenAI API, so that its clients can use them.

A MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name; of either architecture.
Simultaneous requests are answered in one batch. The decoding options below, or else the model's own settings, are the
defaults for what a request leaves out. At / there is a page to chat and compare in a browser. On SIGTERM and Ctrl-C the
requests under way are finished first.

  parley serve runs/demo/model --votes votes.jsonl
  parley serve google/flan-t5-base --adapter summaries=models/dialogsum-lora --port 8001

The key that clients must send is read from the environment, PARLEY_API_KEY, or from --api-key-file.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from src.commands import arguments
from src.commands.naming import add_named_models, by_name, named_models
from src.errors import ParleyError
from src.ranges import COUNT, Range

if TYPE_CHECKING:
    from src.serving.hosted import Hosted
    from src.serving.page import Page

KEY_VARIABLE = "PARLEY_API_KEY"
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_named_models(parser, "a model and what clients call it; repeatable")
    parser.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="an adapter on the one MODEL, which is in memory once for all of them; repeatable",
    )
    group = parser.add_argument_group("where")
    group.add_argument("--host", default="127.0.0.1", help="an address of this machine; 0.0.0.0 is all of them")
    port = arguments.number(int, Range(0, 65_536))
    group.add_argument("--port", type=port, default=8000, metavar="N", help="0 for any that is free")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file that holds the key, and nothing else")
    group = parser.add_argument_group("limits")
    count = arguments.number(int, COUNT)
    for name, default, text in (
        ("max-batch", 64, "answers that are generated at once"),
        ("max-queue", 256, "requests that wait; further ones are refused (429)"),
        ("max-prompt-tokens", 4096, "tokens of a prompt"),
        ("max-answer-tokens", 1024, "tokens of an answer that a request may ask for"),
        ("max-answers", 16, "answers that a request may ask for"),
        ("max-body-bytes", 1_000_000, "bytes of a request"),
    ):
        group.add_argument(f"--{name}", type=count, default=default, metavar="N", help=f"{text}, at most")
    group = parser.add_argument_group("the page at /")
    group.add_argument("--no-page", action="store_true", help="do not serve the page")
    group.add_argument("--page-data", metavar="PATH", help="a file or directory whose rows the page offers as prompts")
    group.add_argument(
        "--votes", type=Path, metavar="FILE", help="take votes, and append them as preference pairs, .jsonl"
    )
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ParleyError(f"`parley serve` needs {package}; install it: pip install -e '.[serve]'.")
    from src.serving.app import make_app
    from src.serving.engine import Engine
    from src.serving.guard import LOOPBACK_NAMES, Guard
    from src.serving.page import add_page
    from src.serving.server import bound, serve

    arguments.decoding_options(args)  # refuse wrong options before anything is loaded
    if getattr(args, "num_return_sequences", 1) != 1:
        raise ParleyError("how many answers there are is the client's to say (n); leave --num-return-sequences out.")
    if args.max_answers > args.max_batch:
        raise ParleyError(f"--max-answers is {args.max_answers} and --max-batch {args.max_batch}; raise the latter.")
    names = named_models(args.models, args.named)
    adapters = by_name(args.adapters, "--adapter", names)
    if not names:
        raise ParleyError("there is no MODEL to serve; give a directory, a checkpoint or a hub name.")
    if adapters and len(names) != 1:
        raise ParleyError("adapters are on one MODEL; give only that, or leave --adapter out.")
    key = _key(args)
    page = _page(args)
    listening = bound(args.host, args.port)
    host, port = listening.getsockname()[:2]
    is_loopback = ipaddress.ip_address(host).is_loopback
    if not is_loopback and key is None:
        log.warning("Whoever reaches %s can use this server: there is no key (%s).", host, KEY_VARIABLE)
    models = _hosted(args, names, adapters)
    shown = f"[{host}]" if ":" in host else host
    app = make_app(models, Engine(args.max_batch, args.max_queue))
    guard = Guard(
        app,
        key=key,
        max_body=args.max_body_bytes,
        hosts=LOOPBACK_NAMES | {shown, args.host.lower()} if is_loopback else None,
        open_paths=frozenset() if page is None else add_page(app, models, page),
    )

    def ready() -> None:
        log.info("Serving %s at http://%s:%d/v1 (Ctrl-C stops it).", ", ".join(models), shown, port)
        if page is not None:
            log.info("To try %s in a browser, open http://%s:%d/.", "it" if len(models) == 1 else "them", shown, port)

    serve(guard, listening, ready)


def _page(args: argparse.Namespace) -> Page | None:
    from src.serving.page import Page
    from src.serving.page_rows import read_page_rows
    from src.serving.votes import VoteFile

    if args.no_page:
        if args.page_data or args.votes:
            raise ParleyError("--page-data and --votes are for the page; leave --no-page out.")
        return None
    rows = read_page_rows(args.page_data) if args.page_data else []
    return Page(rows, VoteFile(args.votes) if args.votes else None)


def _hosted(args: argparse.Namespace, names: dict[str, str], adapters: dict[str, str]) -> dict[str, Hosted]:
    from src.serving.adapters import share
    from src.serving.hosted import Hosted, Limits

    limits = Limits(args.max_prompt_tokens, args.max_answer_tokens, args.max_answers)
    models: dict[str, Hosted] = {}
    for name, model in names.items():
        finished = arguments.load(args, model)
        options = arguments.decoding_options(args, finished)
        asked = {"format": args.format, "system": args.system}
        if not adapters:
            models[name] = Hosted(name, finished, options, limits, **asked)
        else:
            shared, switch = share(finished, adapters, trust_remote_code=args.trust_remote_code)
            for each in (name, *adapters):
                activate = partial(switch.to, None if each == name else each)
                models[each] = Hosted(each, shared, options, limits, activate=activate, **asked)
        if unused := models[name].unused:
            log.warning("Of %s's own settings these hold for beam search alone here: %s.", name, ", ".join(unused))
    return models


def _key(args: argparse.Namespace) -> str | None:
    if args.api_key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    from src.files import read_text

    key = read_text(args.api_key_file).strip()
    if not key or any(character.isspace() for character in key):
        raise ParleyError(f"{args.api_key_file} does not hold one key; write it there, and nothing else.")
    return key
