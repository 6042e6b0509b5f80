"""Files on disks that are full, read-only or taken away: whole, or as they were."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from src.cli import main
from src.errors import ParleyError
from src.writing import adding_to, system_reason, whole_file, writing


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 1,000 bytes: what a full disk says, at a byte that is known."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, small_files: None):
    file = tmp_path / "a" / "file.txt"
    with whole_file(file) as stream:
        stream.write("first\r\n")
    with pytest.raises(ParleyError, match=r"file\.txt cannot be written \(File too large\); make room"), whole_file(file) as stream:  # noqa: E501  # fmt: skip
        stream.write("x" * 2000)
    with pytest.raises(KeyError), whole_file(file) as stream:  # a mistake of ours, not of the disk's
        stream.write(str({}["key"]))
    assert file.read_bytes() == b"first\r\n"
    assert [left.name for left in file.parent.iterdir()] == ["file.txt"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path):
    link, file = tmp_path / "link", tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with whole_file(link) as stream:
        stream.write("new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    (full := tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ParleyError, match="No space left on device"), whole_file(full) as stream:
        stream.write("x" * 20_000)
    assert Path("/dev/full").is_char_device()


def test_a_file_is_added_to_as_a_whole_or_not_at_all(tmp_path: Path, small_files: None):
    file = tmp_path / "log.csv"

    def add(text: str) -> None:
        with adding_to(file), file.open("a") as stream:
            stream.write(text)

    with pytest.raises(ParleyError, match=r"log\.csv cannot be written"):
        add("x" * 2000)
    assert not file.exists()
    add("one\n")
    with pytest.raises(ParleyError, match=r"log\.csv cannot be written"):
        add("x" * 2000)
    add("two\n")
    assert file.read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        OSError("No space left on device"),
    ],
    ids=["Python", "safetensors", "tokenizers", "without a number"],
)
def test_whoever_says_it_is_understood(error: Exception):
    outer = RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0")
    outer.__context__ = error
    for one in (error, outer):
        assert system_reason(one) == "No space left on device"
        with pytest.raises(ParleyError, match=r"^here cannot be written \(No space left on device\); do that\.$"), writing("here", "do that"):  # noqa: E501  # fmt: skip
            raise one
    assert system_reason(ValueError("something else")) is None


def test_no_room_for_what_is_printed(tmp_path: Path, tiny_base, capfd: pytest.CaptureFixture[str]):
    """`parley init … > /dev/full`: the table is lost, and one line says so."""
    out, full = os.dup(1), os.open("/dev/full", os.O_WRONLY)
    import sys

    kept = sys.stdout
    try:
        sys.stdout = os.fdopen(full, "w")
        status = main(["init", "--hidden-size", "16", "--heads", "2", "--layers", "1", "--vocab-size", "300", "--output", str(tmp_path / "m")])  # noqa: E501  # fmt: skip
    finally:
        sys.stdout = kept
        os.close(out)
    assert status == 2
    assert "parley init: standard output cannot be written (No space left on device)" in capfd.readouterr().err
