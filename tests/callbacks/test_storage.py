"""Checkpoint files: whole or not there, and no stranger's code."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import pytest
import torch

from src.callbacks import digest
from src.callbacks.digest import content_digest
from src.callbacks.run_directory import DirectoryLock
from src.callbacks.storage import AtomicCheckpointIO, is_whole, newest_that_will_do, read_checkpoint
from src.errors import ParleyError


def checkpoint(size: int = 1000) -> dict:
    description = {"format": 1, "version": "1", "base": {"name": "base"}, "config": {}}
    return {"parley": description, "weights": torch.arange(float(size)), "state_dict": {}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "step=0000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


def test_what_is_written_is_read(written: Path):
    assert is_whole(written)
    assert torch.equal(read_checkpoint(written)["weights"], torch.arange(1000.0))
    assert [file.name for file in written.parent.iterdir()] == [written.name]


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path):
    """Wherever it is: in tensors, in the pickle, in the archive's headers (its directory flag empties a record)."""
    path = tmp_path / "small.ckpt"
    whole = {**checkpoint(16), "state_dict": {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros(())}}
    AtomicCheckpointIO().save_checkpoint(whole, path)
    data, found, chance = path.read_bytes(), 0, random.Random(0)
    headers = [place for place in range(len(data)) if data.startswith((b"PK\1\2", b"PK\3\4", b"PK\5\6"), place)]
    places = {place + offset for place in headers for offset in range(46)} | set(chance.sample(range(len(data)), 150))
    for place in sorted(place for place in places if place < len(data)):
        bit = 0x10 if place - 38 in headers else 1 << chance.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            read = AtomicCheckpointIO().load_checkpoint(path)
        except ParleyError as refused:
            found += "\n" not in str(refused)
        else:
            assert content_digest(read) == content_digest(whole)
    assert found > len(places) / 4


def test_a_digest_is_of_what_is_there(written: Path):
    """Anything that differs makes another digest; how it lies in memory does not."""
    one = checkpoint(12)
    for change in ({"weights": torch.arange(12.0).double()}, {"weights": torch.arange(12.0).view(3, 4)}, {"extra": 1}, {"weights": [0, True]}, {"weights": [0, 1]}, {"weights": ["0", "1"]}, {"weights": (0, 1)}, {"weights": {"0": None}}):  # noqa: E501  # fmt: skip
        assert content_digest({**one, **change}) != content_digest(one)
    transposed = torch.arange(12.0).view(3, 4).t().contiguous().t()
    assert content_digest({**one, "weights": transposed}) == content_digest({**one, "weights": transposed.contiguous()})
    different = [
        content_digest({"x": value}) for value in ([0, True], [0, 1], ["0", "1"], (0, 1), [0.0, 1.0], [[0], 1])
    ]
    assert len(set(different)) == len(different)


def test_a_tensor_with_several_names_is_hashed_once(monkeypatch):
    """The digest is the one that as many tensors of their own have."""
    tied, other = torch.arange(12.0).view(3, 4), torch.arange(12.0).view(3, 4)
    one_by_one = content_digest({"a": tied, "b": tied.clone(), "c": tied.T.clone(), "d": other})
    seen, plain = [], digest._tensor_digest
    monkeypatch.setattr(digest, "_tensor_digest", lambda tensor: seen.append(tensor) or plain(tensor))
    assert content_digest({"a": tied, "b": tied, "c": tied.T, "d": other}) == one_by_one
    assert len(seen) == 3


def test_an_older_file_without_a_digest_is_checked_by_its_archive(written: Path):
    torch.save(checkpoint(), written)
    assert is_whole(written)
    data = bytearray(written.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 9] ^= 1
    written.write_bytes(data)
    assert not is_whole(written)


def test_weights_that_are_no_numbers_are_said(written: Path):
    broken = {**checkpoint(), "state_dict": {"model.a": torch.ones(2), "model.b": torch.tensor([1.0, float("nan")])}}
    AtomicCheckpointIO().save_checkpoint(broken, written)
    with pytest.raises(ParleyError, match=r"not finite: model\.b holds 1 NaN"):
        read_checkpoint(written)


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
        with pytest.raises(ParleyError, match=r"cannot be written \(File too large\)") as refused:
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
    with pytest.raises(ParleyError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "taken" / "x.ckpt")


def test_the_newest_that_will_do(tmp_path: Path):
    files = [tmp_path / f"{number}.ckpt" for number in range(4)]
    for age, file in enumerate(files):
        file.write_text("")
        os.utime(file, (age, age))
    told: list[str] = []
    found = newest_that_will_do(files, lambda file: {files[3]: "it is odd", files[2]: "other"}.get(file), told.append)
    assert found == files[1]
    assert told == [f"Passed over {files[3]}: it is odd.", f"Passed over {files[2]}: other."]


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
