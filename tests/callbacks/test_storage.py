"""Checkpoint files: whole or not there, and no stranger's code."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from src.callbacks.run_directory import DirectoryLock
from src.callbacks.storage import AtomicCheckpointIO, is_whole, newest_whole, read_checkpoint
from src.errors import ParleyError


def checkpoint(size: int = 1000) -> dict:
    return {"parley": {"format": 1}, "weights": torch.arange(float(size)), "callbacks": {}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "step=0000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


def test_what_is_written_is_read(written: Path):
    assert is_whole(written)
    assert torch.equal(read_checkpoint(written)["weights"], torch.arange(1000.0))
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_every_flipped_byte_of_the_tensors_is_found(written: Path):
    data = written.read_bytes()
    start = data.index(torch.arange(1000.0).numpy().tobytes())
    for position in range(start, start + 4000, 397):
        written.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert not is_whole(written)
    written.write_bytes(data)
    assert is_whole(written)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_found(written: Path, share: float):
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * share)])
    assert not is_whole(written)
    with pytest.raises(ParleyError, match="damaged"):
        read_checkpoint(written)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("read", [read_checkpoint, AtomicCheckpointIO().load_checkpoint])
def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read):
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint(), "evil": Evil()}, "evil.ckpt")
    with pytest.raises(ParleyError, match="another program"):
        read("evil.ckpt")
    assert not Path("owned").exists()


def test_another_programs_file_is_refused(tmp_path: Path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ParleyError, match="not written by Parley"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_limit_on_the_file_size_leaves_the_old_one(written: Path):
    before = written.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ParleyError, match=r"could not be written \(File too large\)") as refused:
            AtomicCheckpointIO().save_checkpoint(checkpoint(1_000_000), written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(refused.value)
    assert written.read_bytes() == before
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_a_full_device_leaves_the_old_one(written: Path, monkeypatch: pytest.MonkeyPatch):
    """/dev/full takes nothing: what a write to it says is what a full disk says."""
    before = written.read_bytes()
    opened = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        return opened(Path("/dev/full") if "w" in mode else self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(ParleyError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), written)
    assert written.read_bytes() == before


def test_a_directory_that_is_a_file(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ParleyError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "taken" / "x.ckpt")


def test_the_newest_whole_one_that_will_do(tmp_path: Path):
    files = [tmp_path / f"{number}.ckpt" for number in range(4)]
    for age, file in enumerate(files):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), file)
        os.utime(file, (age, age))
    files[3].write_bytes(files[3].read_bytes()[:-100])
    os.utime(files[3], (9, 9))
    told: list[str] = []
    found = newest_whole(files, lambda file: "other" if file == files[2] else None, told.append)
    assert found == files[1]
    assert told == [
        f"Passed over {files[3]}: it is truncated or corrupt.",
        f"Passed over {files[2]}: other.",
    ]


def test_a_directory_takes_one_process_at_a_time(tmp_path: Path):
    lock = DirectoryLock(tmp_path)
    child = os.fork()
    if not child:
        try:
            DirectoryLock(tmp_path)
        except ParleyError as error:
            os._exit(0 if f"process {os.getppid()} on" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()
    child = os.fork()
    if not child:
        DirectoryLock(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    DirectoryLock(tmp_path).release()  # the child is gone, and its lock with it
