"""A checkpoint in shards, which is a directory, is for every command what the same one as a file is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.callbacks.storage import AtomicCheckpointIO, read_checkpoint
from src.cli import main
from src.contracts import Share, Writing

COMMANDS = {
    "inspect": ["--json"],
    "tokenize": ["a question", "--json"],
    "generate": ["--prompt", "a question", "--max-new-tokens", "4"],
    "export": ["--json"],
}


@pytest.fixture
def in_shards(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / checkpoint.name
    AtomicCheckpointIO().save_checkpoint(read_checkpoint(checkpoint), path, Writing(share=Share(0, 1, "1")))
    assert path.is_dir()
    return path


def test_commands_say_of_a_directory_what_they_say_of_a_file(
    checkpoint: Path, in_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for command, options in COMMANDS.items():
        said = []
        for place in (checkpoint, in_shards):
            output = tmp_path / "out" / place.parent.name / "model"
            words = ["--checkpoint", str(place), "--output", str(output)] if command == "export" else [str(place)]
            assert main([command, *words, *options]) == 0
            found = capsys.readouterr().out.replace(str(output), "OUTPUT").replace(str(place), "CHECKPOINT")
            if command == "inspect":
                found = json.loads(found)
                sizes.append(found["checkpoint"].pop("size on disk"))
            said.append(found)
        assert said[0] == said[1], command
    assert sizes[1] == f"{sum(file.stat().st_size for file in in_shards.iterdir()) / 1024:,.1f} KiB"


@pytest.mark.parametrize("command", ["inspect", "tokenize", "generate"])
def test_a_checkpoint_that_is_not_there_is_called_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "none.ckpt"), *COMMANDS[command]]) != 0
    assert "none.ckpt cannot be read as a checkpoint: there is no such file" in capsys.readouterr().err
