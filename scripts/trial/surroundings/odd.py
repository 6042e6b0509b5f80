"""Files and directories that are no checkpoints, where `--ckpt_path last` looks for them."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from scripts.trial import Outcome
from scripts.trial.surroundings.flips import goes_on
from scripts.trial.surroundings.run import Run
from src.callbacks.storage import AtomicCheckpointIO, read_checkpoint

Make = Callable[[Path, Path], object]  # from a path that is not there, and a whole checkpoint


class RunsCode:
    """Pickled, it makes a directory when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


def files() -> dict[str, Make]:
    """What is put beside the checkpoints, under the name of a newer one."""
    return {
        "a link that leads nowhere": lambda odd, _: odd.symlink_to("nowhere"),
        "a link to itself": lambda odd, _: odd.symlink_to(odd.name),
        "a link to a directory": lambda odd, _: odd.symlink_to(".."),
        "a link to endless zeros": lambda odd, _: odd.symlink_to("/dev/zero"),
        "a pipe": lambda odd, _: os.mkfifo(odd),
        "a socket": lambda odd, _: _socket(odd),
        "a directory": lambda odd, _: odd.mkdir(),
        "an empty file": lambda odd, _: odd.touch(),
        "one byte": lambda odd, _: odd.write_bytes(b"P"),
        "text": lambda odd, _: odd.write_text("step 9\n" * 100),
        "noise": lambda odd, _: odd.write_bytes(np.random.default_rng(0).bytes(100_000)),
        "a terabyte of zeros": lambda odd, _: _sparse(odd),
        "all but the last byte": lambda odd, good: odd.write_bytes(good.read_bytes()[:-1]),
        "its second half": lambda odd, good: odd.write_bytes(good.read_bytes()[good.stat().st_size // 2 :]),
        "its first half": lambda odd, good: odd.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
        "itself twice": lambda odd, good: odd.write_bytes(good.read_bytes() * 2),
        "a zip archive of texts": lambda odd, _: _zip_of_texts(odd),
        "a tar archive": _tar,
        "a compressed checkpoint": lambda odd, good: odd.write_bytes(gzip.compress(good.read_bytes())),
        "a checkpoint packed anew": _packed_anew,
        "arrays of NumPy's": lambda odd, _: _bytes_of(odd, lambda stream: np.savez(stream, a=np.ones(3))),
        "a safetensors file": lambda odd, _: save_file({"a": torch.ones(3)}, odd),
        "a program of torch's": lambda odd, _: _bytes_of(odd, _script),
        "the old format": lambda odd, _: torch.save({"a": 1}, odd, _use_new_zipfile_serialization=False),
        "code in the old format": lambda odd, _: torch.save(RunsCode(), odd, _use_new_zipfile_serialization=False),
        "code": lambda odd, good: torch.save({**read_checkpoint(good), "evil": RunsCode()}, odd),
        "a list": lambda odd, _: torch.save([1, 2], odd),
        "a tensor": lambda odd, _: torch.save(torch.ones(3), odd),
        "another program's": lambda odd, _: torch.save({"state_dict": {}}, odd),
        **{f"without {key}": _without(key) for key in _PARTS},
        "weights that are text": _changed(lambda whole: whole["state_dict"].update(x="y")),
        "weights that are NaN": _changed(lambda whole: next(iter(whole["state_dict"].values())).fill_(float("nan"))),
        "callbacks that are numbers": _changed(lambda whole: whole["callbacks"].update(ExactResume=5)),
        "a newer version's": _changed(lambda whole: whole["parley"].update(format=99)),
        "another model's": _changed(
            lambda whole: whole["callbacks"]["ExactResume"]["config"]["model"]["init_args"].update(
                model_name_or_path="elsewhere"
            )
        ),
    }


_PARTS = ("parley", "state_dict", "callbacks", "loops", "optimizer_states", "lr_schedulers", "epoch", "global_step", "pytorch-lightning_version")  # noqa: E501  # fmt: skip


def surroundings() -> dict[str, Make]:
    """What lies about in the directories, from the run's checkpoints on."""
    return {
        "a directory that is called half written": lambda odd, _: odd.with_name(".step=1.ckpt.1.tmp").mkdir(),
        "a name with a line end and colours": lambda odd, _: odd.with_name("step=\n\x1b[31m.ckpt").touch(),
        "a name that is not UTF-8": lambda odd, _: Path(
            os.fsdecode(os.fsencode(odd.parent) + b"/step=\xff.ckpt")
        ).touch(),
        "a long name": lambda odd, _: odd.with_name(f"step={'9' * 245}.ckpt").touch(),
        "another run's checkpoints that are a pipe": lambda odd, _: os.mkfifo(_other_run(odd)),
        "another run's checkpoints that lead to themselves": lambda odd, _: _other_run(odd).symlink_to("checkpoints"),
        "another run's checkpoints that lead nowhere": lambda odd, _: _other_run(odd).symlink_to("nowhere"),
        "a lock that leads nowhere": lambda odd, _: _instead(odd.with_name(".lock")).symlink_to("/nowhere/at/all"),
        "a lock that is a directory": lambda odd, _: _instead(odd.with_name(".lock")).mkdir(),
        "a metric log with null characters": lambda odd, _: _log_of(odd).write_bytes(b"\0" * 500),
        "a metric log that is a directory": lambda odd, _: _instead(_log_of(odd)).mkdir(),
        "a metric log that is a pipe": lambda odd, _: os.mkfifo(_instead(_log_of(odd))),
        "settings that lead nowhere": lambda odd, _: _instead(odd.parent.with_name("config.yaml")).symlink_to(
            "/no/where"
        ),
    }


MAY_REFUSE = ("a lock", "a metric log", "settings")  # nothing goes on without these: one line will do


def odd_cases(run: Run, place: Path) -> Iterator[Outcome]:
    """Put each odd thing where `last` looks, newer than the whole checkpoints.

    Held: the run goes on from the newest whole one, to the same figures and weights; nothing was run, nobody waited.

    Args:
        run: The whole run.
        place: An empty directory.
    """
    place.mkdir()
    for name, make in (files() | surroundings()).items():
        copied = run.copy(place / "odd")
        copied.newest.unlink()  # so that there is a step to go on with
        whole = max(copied.newest.parent.glob("step=*.ckpt"))
        make(whole.with_name("step=0000099.ckpt"), whole)
        wrong = goes_on(copied, run, may_refuse=name.startswith(MAY_REFUSE))
        if not wrong and list(place.rglob("was_run")):
            wrong = "its code was run"
        shutil.rmtree(copied.place)
        yield Outcome(name, not wrong, wrong)


def _other_run(odd: Path) -> Path:
    directory = odd.parents[2] / "version_9"
    directory.mkdir()
    return directory / "checkpoints"


def _log_of(odd: Path) -> Path:
    return odd.parent.with_name("metrics.csv")


def _settings_of(odd: Path) -> Path:
    return odd.parent.with_name("config.yaml")


def _instead(file: Path) -> Path:
    file.unlink(missing_ok=True)
    return file


def _bytes_of(odd: Path, write: Callable[[io.BytesIO], object]) -> None:
    stream = io.BytesIO()
    write(stream)
    odd.write_bytes(stream.getvalue())


def _script(stream: io.BytesIO) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), stream)


def _socket(odd: Path) -> None:
    here = Path.cwd()
    os.chdir(odd.parent)  # a socket's path is 100 characters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(odd.name)
    os.chdir(here)


def _sparse(odd: Path) -> None:
    with odd.open("wb") as stream:
        stream.truncate(2**40)


def _zip_of_texts(odd: Path) -> None:
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr("archive/data.pkl", "hello")
        archive.writestr("archive/version", "3\n")


def _tar(odd: Path, good: Path) -> None:
    with tarfile.open(odd, "w") as archive:
        archive.add(good, "storages")


def _packed_anew(odd: Path, good: Path) -> None:
    """The same records, deflated, which torch cannot map."""
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(odd, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in archive.namelist():
            packed.writestr(record, archive.read(record))


def _changed(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(odd: Path, good: Path) -> None:
        whole = read_checkpoint(good)
        change(whole)
        AtomicCheckpointIO().save_checkpoint(whole, odd)

    return make


def _without(key: str) -> Make:
    return _changed(lambda whole: whole.pop(key))
