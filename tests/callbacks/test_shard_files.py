"""Checkpoints that are directories: parts of several processes, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from src.callbacks import shard_files, storage
from src.callbacks.shard_files import mend, remove, replace_checkpoint, temporary_name, write_shards
from src.callbacks.storage import AtomicCheckpointIO, is_whole, newest_that_will_do, read_checkpoint
from src.contracts import CHECKPOINT_FORMAT, Share, Writing
from src.errors import ParleyError
from src.parallel.shards import Cut, join, map_leaves

dump = json.dump
WHOLE = {"embedding": torch.arange(15.0).reshape(5, 3), "norm": torch.ones(1), "step": torch.tensor(3.0)}


def rest(**more: Any) -> dict[str, Any]:
    """A checkpoint whose first two tensors are in shards, the first under two names."""
    record = {"format": CHECKPOINT_FORMAT, "version": "0", "base": {"name": "none"}, "config": {}}
    embedding = {"parley_shard": "0", "shape": [5, 3]}
    state = {"embedding": embedding, "head": embedding, "norm": {"parley_shard": "1", "shape": [1]}}
    return {
        "parley": record,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": WHOLE["step"]}}}],
        **more,
    }


def parts(processes: int) -> list[Cut]:
    """As `torch.chunk` cuts: of five rows three and two; of one row one and none."""
    cuts = []
    for rank in range(processes):
        own = {}
        for key, name in (("0", "embedding"), ("1", "norm")):
            share = -(-len(WHOLE[name]) // processes)
            own[key] = {"first": min(rank * share, len(WHOLE[name])), "rows": WHOLE[name][rank * share :][:share]}
        cuts.append(Cut(rest(), own))
    return cuts


def write(path: Path, processes: int = 2, token: str = "1", cuts: Sequence[Cut] = ()) -> Path:
    """All processes at once, the first one first."""
    cuts = cuts or parts(processes)
    threads = [
        threading.Thread(target=write_shards, args=(cut, path, Share(rank, len(cuts), token), ""))
        for rank, cut in enumerate(cuts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return path


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_what_is_written_by_any_number_is_read_as_one(tmp_path, processes):
    path = write(tmp_path / "step=0000002.ckpt", processes)
    read = read_checkpoint(path)
    assert torch.equal(read["state_dict"]["embedding"], WHOLE["embedding"])
    assert torch.equal(read["state_dict"]["norm"], WHOLE["norm"])
    assert torch.equal(read["state_dict"]["head"], WHOLE["embedding"])
    assert read["optimizer_states"][0]["state"][0]["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(list(path.glob("shard-*.pt"))) == processes
    mapped = read_checkpoint(path, mmap=True)["state_dict"]
    assert mapped["embedding"].data_ptr() == mapped["head"].data_ptr()


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_what_is_read_to_go_on_with_is_in_memory(tmp_path, processes):
    """Whatever becomes of the files; 0: one file. Of a tensor with two names there is one copy."""
    path = tmp_path / "step=0000002.ckpt"
    if processes:
        write(path, processes)
    else:
        content = join(rest(), [parts(1)[0].own])
        AtomicCheckpointIO().save_checkpoint(content, path)
    read = read_checkpoint(path)
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("r+b") as stream:
            stream.write(bytes(file.stat().st_size))
    assert torch.equal(read["state_dict"]["embedding"], WHOLE["embedding"])
    assert torch.equal(read["state_dict"]["norm"], WHOLE["norm"])
    assert read["optimizer_states"][0]["state"][0]["step"] == 3
    assert read["state_dict"]["embedding"].data_ptr() == read["state_dict"]["head"].data_ptr()


@pytest.mark.parametrize("processes", [1, 2])
def test_to_look_into_a_checkpoint_takes_the_memory_of_its_weights(tmp_path, processes):
    moments = {"optimizer_states": [{"state": {0: {"exp_avg": {"parley_shard": "0", "shape": [5, 3]}}}}]}
    cuts = [Cut(rest(**moments), cut.own) for cut in parts(processes)]
    path = write(tmp_path / "step=0000002.ckpt", cuts=cuts)
    read = read_checkpoint(path, mmap=True)
    moment = read["optimizer_states"][0]["state"][0]["exp_avg"]
    assert (moment.is_meta, moment.shape, moment.dtype) == (True, (5, 3), torch.float32)
    assert torch.equal(read["state_dict"]["head"], WHOLE["embedding"])
    whole = read_checkpoint(path)["optimizer_states"][0]["state"][0]["exp_avg"]
    assert torch.equal(whole, WHOLE["embedding"])
    cuts[-1].own["0"]["rows"] = cuts[-1].own["0"]["rows"][1:]
    assert not is_whole(write(tmp_path / "step=0000004.ckpt", cuts=cuts))


def broken(path: Path, how: str) -> None:
    shard = path / "shard-00001.pt"
    if how == "lacks a shard":
        shard.unlink()
    elif how == "a bit":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif how == "cut short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif how == "no list":
        (path / "files.json").unlink()
    elif how == "an odd list":
        (path / "files.json").write_text("[1, 2")
    elif how == "a list of files elsewhere":
        files = json.loads((path / "files.json").read_text())
        files["files"]["../other.pt"] = "0"
        (path / "files.json").write_text(json.dumps(files))


@pytest.mark.parametrize(
    "how", ["lacks a shard", "a bit", "cut short", "no list", "an odd list", "a list of files elsewhere"]
)
def test_what_is_damaged_is_passed_over(tmp_path, how):
    older, newer = write(tmp_path / "step=0000002.ckpt"), write(tmp_path / "step=0000004.ckpt", token="2")
    assert is_whole(newer)
    broken(newer, how)
    assert not is_whole(newer)
    with pytest.raises(ParleyError, match=r"step=0000004.ckpt cannot be read as a checkpoint: it(s|) "):
        read_checkpoint(newer)
    told: list[str] = []
    files = tmp_path.glob("step=*.ckpt")
    assert newest_that_will_do(files, lambda file: None if is_whole(file) else "no", told.append) == older
    assert len(told) == 1


def test_parts_that_do_not_make_up_a_tensor_are_refused(tmp_path):
    first, second = parts(2)
    with pytest.raises(ValueError, match="rows from 3 to 5"):
        join(rest(), [first.own])
    with pytest.raises(ValueError, match="rows from 0 on"):
        join(rest(), [second.own])
    del second.own["0"]
    path = tmp_path / "step=0000002.ckpt"
    other = threading.Thread(target=write_shards, args=(second, path, Share(1, 2, "1"), ""))
    other.start()
    write_shards(first, path, Share(0, 2, "1"), "")
    other.join()
    assert not is_whole(path)


def test_a_stranger_s_shard_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    path = write(tmp_path / "step=0000002.ckpt")
    torch.save({"0": Evil()}, path / "shard-00001.pt")
    files = json.loads((path / "files.json").read_text())
    files["files"]["shard-00001.pt"] = shard_files.checksum(path / "shard-00001.pt")
    (path / "files.json").write_text(json.dumps(files))
    assert not is_whole(path)
    assert not (tmp_path / "ran").exists()


def test_a_process_that_cannot_write_ends_the_first_one_s_waiting(tmp_path, monkeypatch):
    path = tmp_path / "step=0000002.ckpt"
    first, _ = parts(2)
    folder = temporary_name(path, "1")
    folder.mkdir()
    (folder / "shard-00001.json").write_text(json.dumps({"error": "no room on the other one."}))
    with pytest.raises(ParleyError, match="no room on the other one"):
        write_shards(first, path, Share(0, 2, "1"), "")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shard_files, "PATIENCE", 0.02)
    with pytest.raises(ParleyError, match="no shards of another process"):
        write_shards(first, path, Share(0, 2, "1"), "")


@pytest.mark.parametrize("place", ["its shards", "a copy of them", "its name", "the folder"])
def test_whatever_goes_wrong_in_a_process_the_first_one_does_not_wait(tmp_path, monkeypatch, place):
    """Not the system's doing alone, such as a full disk."""
    path = tmp_path / "runs" / "step=0000002.ckpt"
    first, second = parts(2)

    def fail(*_: Any) -> Any:
        raise MemoryError("no more")

    if place == "the folder":
        (tmp_path / "runs").write_text("a file where the folder should be")
    with monkeypatch.context() as changed:
        how = Writing(asynchronous=place == "a copy of them", share=Share(1, 2, "1"))
        changed.setattr(storage, "cut", lambda _: second)
        if place == "its shards":
            changed.setattr(shard_files.torch, "save", fail)
        elif place == "a copy of them":
            changed.setattr(storage, "copier", lambda _: fail)
        elif place == "its name":
            changed.setattr(
                shard_files.json, "dump", lambda said, stream: fail() if "error" not in said else dump(said, stream)
            )
        with pytest.raises(ParleyError if place == "the folder" else MemoryError):
            AtomicCheckpointIO().save_checkpoint({}, path, how)
    monkeypatch.setattr(shard_files, "PATIENCE", 20.0)
    with pytest.raises(ParleyError) as refused:
        write_shards(first, path, Share(0, 2, "1"), "")
    said = "cannot be written (Not a directory)" if place == "the folder" else "MemoryError in process 1"
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not path.parent.is_dir() or list(path.parent.iterdir()) == []


def test_the_list_has_the_checksums_of_the_files_that_are_there(tmp_path):
    path = write(tmp_path / "step=0000002.ckpt")
    files = json.loads((path / "files.json").read_text())["files"]
    assert files == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir() if file.suffix == ".pt"
    }


def test_what_cannot_be_removed_is_told_of_and_what_is_gone_is_not(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "step=0000002.ckpt")
    remove(tmp_path / "step=0000001.ckpt")
    assert caplog.messages == []

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as changed:
        changed.setattr(shard_files.shutil, "rmtree", refuse)
        remove(path)
    assert ["step=0000002" in said and "Permission denied" in said for said in caplog.messages] == [True]
    file = tmp_path / "step=0000004.ckpt"
    file.touch()
    with monkeypatch.context() as changed:
        changed.setattr(Path, "unlink", refuse)
        remove(file)
    assert ["step=0000004" in said for said in caplog.messages] == [False, True]
    assert file.exists()


def test_what_cannot_take_its_place_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "best.ckpt")
    cut = parts(1)[0]

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as changed:
        changed.setattr(Path, "rename", refuse)
        with pytest.raises(ParleyError, match=r"best.ckpt cannot be written \(Directory not empty\)"):
            write_shards(cut, path, Share(0, 1, "2"), "make room")
    assert is_whole(path)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


def killing() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", ["shards", "file", "nothing"])
@pytest.mark.parametrize("killed", ["", "aside", "renamed"])
def test_a_kill_while_one_takes_another_s_place_leaves_one_of_them(tmp_path, monkeypatch, before, killed):
    path = tmp_path / "best.ckpt"
    if before == "shards":
        write(path, 1)
    elif before == "file":
        AtomicCheckpointIO().save_checkpoint({**join(rest(), [parts(1)[0].own]), "old": True}, path)
    temporary = write(tmp_path / "other.ckpt", 2)
    if killed == "aside" and before != "nothing":
        monkeypatch.setattr(Path, "replace", lambda *_: killing())
    if killed == "renamed":
        monkeypatch.setattr(shard_files, "sync_directory", lambda *_: killing())
    hidden = temporary.rename(temporary_name(path, "1"))
    try:
        replace_checkpoint(hidden, path)
    except KeyboardInterrupt:
        assert killed
    monkeypatch.undo()
    mend(tmp_path)
    assert is_whole(path)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
    old = len(list(path.glob("shard-*.pt"))) == 1 if path.is_dir() else True
    assert old == (killed == "aside" and before != "nothing")


def test_one_file_takes_the_place_of_a_directory(tmp_path):
    path = write(tmp_path / "best.ckpt")
    AtomicCheckpointIO().save_checkpoint(join(rest(), [cut.own for cut in parts(2)]), path)
    assert path.is_file()
    assert is_whole(path)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_directory_is_removed_at_one_blow(tmp_path, monkeypatch):
    path = write(tmp_path / "step=0000002.ckpt")
    monkeypatch.setattr(shard_files.shutil, "rmtree", lambda *_, **__: None)  # the power goes
    remove(path)
    assert not path.exists()
    assert all(file.name.startswith(".") for file in tmp_path.iterdir())
    monkeypatch.undo()
    mend(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove(path)  # it is gone


class Slow:
    """A disk on which nothing is written until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.writing, self.most = threading.Event(), 0, 0
        write_one = storage._write

        def held(*given: Any) -> None:
            self.writing += 1
            self.most = max(self.most, self.writing)
            try:
                assert self.go_on.wait(10)
                write_one(*given)
            finally:
                self.writing -= 1

        monkeypatch.setattr(storage, "_write", held)


def test_what_is_written_while_training_goes_on_is_a_copy_and_one_at_a_time(tmp_path, monkeypatch):
    disk, writer = Slow(monkeypatch), AtomicCheckpointIO()
    content = join(rest(), [cut.own for cut in parts(2)])
    content["state_dict"]["head"] = content["state_dict"]["embedding"]
    content = map_leaves(content, lambda value: value.clone() if isinstance(value, torch.Tensor) else value)
    content["state_dict"]["head"] = content["state_dict"]["embedding"]
    path = tmp_path / "step=0000002.ckpt"
    writer.save_checkpoint(content, path, Writing(asynchronous=True))
    content["state_dict"]["embedding"].add_(1)  # training goes on
    content["state_dict"].clear()
    assert not path.exists()
    threading.Timer(0.1, disk.go_on.set).start()
    second = join(rest(), [cut.own for cut in parts(2)])
    began = time.monotonic()
    writer.save_checkpoint(second, tmp_path / "step=0000004.ckpt", Writing(asynchronous=True))
    assert time.monotonic() - began > 0.05  # it waited for the first one
    writer.wait()
    assert disk.most == 1
    read = read_checkpoint(path, mmap=True)["state_dict"]
    assert torch.equal(read["embedding"], WHOLE["embedding"])
    assert read["embedding"].data_ptr() == read["head"].data_ptr()  # what was one tensor is one
    assert is_whole(tmp_path / "step=0000004.ckpt")


def test_what_could_not_be_written_meanwhile_is_said_at_the_next_occasion(tmp_path):
    writer = AtomicCheckpointIO()
    (tmp_path / "file").touch()
    writer.save_checkpoint(join(rest(), [parts(1)[0].own]), tmp_path / "file" / "x.ckpt", Writing(asynchronous=True))
    with pytest.raises(ParleyError, match="cannot be written"):
        writer.wait()
    writer.wait()  # once
