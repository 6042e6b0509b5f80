"""Locates base models: a local directory, or a name on the Hugging Face hub (or in its local cache)."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.errors import ParleyError

HUB_TIMEOUT_SECONDS = 5.0
BASE_FILE = "parley_base.json"  # entries that PEFT's adapter_config.json does not have
FOREIGN_CODE = (
    "brings code of its own, which is not run unless you say so (trust_remote_code: true in init_args, "
    "--trust-remote-code in other commands); give a model whose architecture is in transformers."
)
_NO_HELP = ("so we will NOT tie them", "LOAD REPORT", "which is incompatible to the `id2label` map")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[\w.\-]+)?")


def locate(name_or_path: str | Path) -> tuple[str, bool]:
    """Locate a model, without long retries if the network is down.

    `from_pretrained` retries an unreachable hub for some twenty seconds per file. Here one request decides whether the
    hub is used at all; otherwise only the local cache is.

    Args:
        name_or_path: A directory, or a hub name such as `google/flan-t5-base`.

    Returns:
        The directory or hub name, and the value for `local_files_only`.

    Raises:
        ParleyError: When there is no such directory, or the hub cannot be reached and the cache does not have it.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), True
    if path.is_file():
        raise ParleyError(f"{name} is a file; give the directory that holds it (for GGUF, with gguf_file).")
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise ParleyError(f"there is no model directory {name}; give a directory or a hub name.")
    if hub_is_reachable():
        return name, False
    if not _is_cached(name):
        raise ParleyError(
            f"{name} is neither a directory here nor in the local cache, and the Hugging Face hub cannot be reached; "
            "give a directory, or connect."
        )
    return name, True


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers; one request per process, honouring proxies and `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception:  # of any type, which depends on the HTTP client
        return False
    return True


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "adapter_config.json"))


def find_file(name: str, file: str, local_only: bool) -> Path | None:
    """Find one of a model's files: in its directory, in the cache, or downloaded from the hub.

    Args:
        name: The directory or hub name, as `locate` returns it.
        file: The file's name.
        local_only: Do not use the hub, as `locate` returns it.

    Returns:
        The local file, or None if the model has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, local_files_only=local_only))
    except EntryNotFoundError:  # raised also when only the cache is used
        return None


def is_adapter(name_or_path: str | Path) -> bool:
    """Whether this is a local directory with a PEFT adapter rather than a whole model."""
    return (Path(name_or_path).expanduser() / "adapter_config.json").is_file()


def adapter_base(adapter: str | Path) -> tuple[str, str | None]:
    """The base model that an adapter directory names, and its GGUF file, if it is in one.

    Raises:
        ParleyError: When it names none.
    """
    directory = Path(adapter).expanduser()
    base = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ParleyError(f"{directory / 'adapter_config.json'} names no base model; fill in base_model_name_or_path.")
    record = read_json(directory / BASE_FILE) if (directory / BASE_FILE).is_file() else {}
    return str(base), record.get("gguf_file")


@contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """Turn any exception in the block, from a library that reads files, into a one-line ParleyError.

    Args:
        what: What is being read ("the weights").
        name: The directory or hub name it is read from.

    Raises:
        ParleyError: In place of any exception.
    """
    try:
        yield
    except ParleyError:
        raise
    except Exception as error:  # of any type: tokenizers, for one, raises plain Exception
        if "contains custom code" in str(error):
            raise ParleyError(f"{name} {FOREIGN_CODE}") from error
        raise ParleyError(f"{what} of {name} cannot be read: {first_line(error)}") from error


@contextmanager
def quietly(*, bars: bool = False) -> Iterator[None]:
    """Within the block suppress messages of transformers that are not helpful, or that the caller reports itself.

    These are its table of mismatched weights, its advice to write `tie_word_embeddings: false` into the config, which
    T5's config does not keep, and a warning about labels in KoBART's config.

    Args:
        bars: Whether progress bars are shown, as for downloads.
    """
    from transformers.utils import logging as transformers_logging

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in _NO_HELP)

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "configuration_utils")]
    for logger in loggers:
        logger.addFilter(keep)
    hide = not bars and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
        if hide:
            transformers_logging.enable_progress_bar()


def modified(file: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 for one that is not there, as of a hub."""
    return file.stat().st_mtime if file.is_file() else 0.0


def first_line(error: BaseException) -> str:
    """The first informative line of an exception's message, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, KeyError) or not lines:
        return f"{type(error).__name__} {' '.join(lines)}".strip()
    return " ".join(lines[:2])[:300] if lines[0].endswith(":") else lines[0][:300]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ParleyError: The file cannot be read, or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParleyError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ParleyError(f"{path} does not hold a JSON object.")
    return value
