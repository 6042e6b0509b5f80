"""Every command that writes, before a disk that does not take it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.surroundings.disk import Disk, may_mount, permissions_bind
from scripts.trial.surroundings.run import Run, one_line, words_to_evaluate, words_to_train
from scripts.trial.tools.forks import ask

Only = tuple[str, ...]
ROOMS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # pages


@dataclass(frozen=True)
class Case:
    """Something that writes to the disk.

    Attributes:
        name: What it is.
        words: What follows `parley`.
        before: Puts on the disk what is there before.
        given: Standard input.
        goes_on: Whether the command goes on after it has said that it cannot write, as a talk does.
        stays: Which of the files that were there must be as they were.
    """

    name: str
    words: list[str]
    before: Callable[[Path], object] = lambda _: None
    given: bytes = b""
    goes_on: bool = False
    stays: str = "*"


def cases(run: Run, disk: Path) -> Iterator[Case]:
    """What is written outside checkpoints, and they too."""
    checkpoint, base = str(run.newest), str(run.base)
    inputs = ["--input", str(run.place / "prompts.txt"), "--max-new-tokens", "4", "--batch-size", "1"]
    model, old = str(disk / "model"), _old_text
    root = ["--trainer.default_root_dir", str(disk / "runs")]
    cache = ["--data.init_args.cache_dir", str(disk / "cache")]
    wandb = '{"class_path": "WandbRun", "init_args": {"save_dir": "%s", "offline": true}}'
    yield Case("init", ["init", "--hidden-size", "16", "--layers", "1", "--heads", "2", "--vocab-size", "300", "--output", model])  # noqa: E501  # fmt: skip
    yield Case("export", ["export", "--checkpoint", checkpoint, "--output", model])
    yield Case(
        "export over another",
        ["export", "--checkpoint", checkpoint, "--output", model, "--overwrite"],
        lambda disk: shutil.copytree(base, disk / "model"),
    )
    for ending in ("jsonl", "csv"):
        yield Case(f"generate {ending}", ["generate", base, *inputs, "--output", str(disk / f"old.{ending}")], old)
    yield Case("compare", ["compare", base, checkpoint, *inputs, "--output", str(disk / "old.jsonl")], old)
    yield Case("report", ["report", str(run.directory), "--output", str(disk / "old.html")], old)
    yield Case("chat", ["chat", base, "--max-new-tokens", "4"], old, f"Hello\n/save {disk}/new.txt\n".encode(), True)
    yield Case("fit", words_to_train(run.base, *root))
    yield Case("fit, and its cache", words_to_train(run.base, *cache))
    yield Case("fit, and W&B", words_to_train(run.base, "--trainer.logger", wandb % disk))
    yield Case(
        "fit that goes on", [*words_to_train(run.base, *root), "--ckpt_path", "last"], run.cut_short_to, stays="*.ckpt"
    )
    for command in ("validate", "test", "predict"):
        yield Case(command, [*words_to_evaluate(command, run.base), *root, "--ckpt_path", checkpoint])


def _old_text(disk: Path) -> None:
    for ending in ("jsonl", "csv", "html", "txt"):
        (disk / f"old.{ending}").write_text("what was here before\n")


def disk_cases(run: Run, place: Path, only: Only = ("",)) -> Iterator[Outcome]:
    """Try each case on a disk that is full, nearly full, read-only, or of somebody else.

    Held: one line that names a file or directory there, status 2, what was there before is as it was, and nothing half
    written lies about.

    Args:
        run: The run whose checkpoint and base are read.
        place: An empty directory.
        only: The cases whose name begins so.
    """
    place.mkdir(parents=True)
    disk = Disk(place / "disk")
    disk.place.mkdir()
    chosen = [case for case in cases(run, disk.place) if case.name.startswith(only)]
    if may_mount(place / "try"):
        for case in chosen:
            for name, refuse in (("full", lambda: disk.leave(0)), ("with a page left", lambda: disk.leave(1)), ("read-only", disk.make_read_only)):  # noqa: E501  # fmt: skip
                disk.mount()
                case.before(disk.place)
                refuse()
                yield _outcome(f"{case.name}: {name}", case, disk.place, place)
                disk.unmount()
    else:
        print("full and read-only disks are left out: mounting one is not permitted here", flush=True)
    for case in chosen:
        case.before(disk.place)
        for directory in (disk.place, *(file for file in disk.place.rglob("*") if file.is_dir())):
            directory.chmod(0o555)
        with permissions_bind():
            yield _outcome(f"{case.name}: without permission", case, disk.place, place)
        for directory in (disk.place, *(file for file in disk.place.rglob("*") if file.is_dir())):
            directory.chmod(0o755)
        shutil.rmtree(disk.place)
        disk.place.mkdir()


def _outcome(name: str, case: Case, disk: Path, place: Path) -> Outcome:
    before = _files(disk, case.stays)
    answer = ask(case.words, place / "here", given=case.given, patience=120)
    after = _files(disk, "*")
    wrong = "" if case.goes_on and answer.status == 0 else one_line(answer, case.words[0])
    if not wrong and str(disk) not in answer.err:
        wrong = f"it does not name the file: {answer.err.strip()[-200:]!r}"
    if not wrong and any(after.get(file) != digest for file, digest in before.items()):
        wrong = "what was there before is not what it was"
    if not wrong and (left := [file for file in after.keys() - before.keys() if file.endswith(".tmp")]):
        wrong = f"{left[0]} is left"
    return Outcome(name, not wrong, wrong)


def _files(disk: Path, pattern: str) -> dict[str, str]:
    files = [file for file in disk.rglob(pattern) if file.is_file() and file.name != ".lock"]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def recoveries(run: Run, place: Path, only: Only = ("",)) -> Iterator[Outcome]:
    """Train, and generate, on disks that are full at one moment after the other; then with room.

    Held: what is taken up again ends as what nothing had happened to.

    Args:
        run: The whole run.
        place: An empty directory.
        only: The cases whose name begins so.
    """
    place.mkdir(parents=True)
    disk = Disk(place / "disk")
    if not may_mount(disk.place):
        return
    inputs = ["--input", str(run.place / "prompts.txt"), "--max-new-tokens", "4", "--batch-size", "1"]
    generate = ["generate", str(run.base), *inputs, "--output"]
    ask([*generate, str(place / "whole.jsonl")], place / "here")
    for pages in ROOMS:
        name = f"fit with room for {pages} pages, then more"
        if not name.startswith(only):
            continue
        disk.mount()
        disk.leave(pages)
        words = words_to_train(run.base, "--trainer.default_root_dir", str(disk.place / "runs"), "--ckpt_path", "last")
        first = ask(words, place / "here", patience=120)
        wrong = one_line(first, "fit") if first.status != 0 else ""
        disk.make_room()
        second = ask(words, place / "here", patience=120)
        if not wrong and second.status != 0:
            wrong = f"it does not go on: {second.err.strip()[-300:]!r}"
        if not wrong and Run(disk.place, run.base).last_started.figures != run.figures:
            wrong = "it ended with other figures or weights"
        yield Outcome(name, not wrong, wrong)
        disk.unmount()
    for pages in ROOMS[:4]:
        name = f"generate with room for {pages} pages, then more"
        if not name.startswith(only):
            continue
        disk.mount()
        disk.leave(pages)
        output = disk.place / "out.jsonl"
        first = ask([*generate, str(output)], place / "here")
        wrong = one_line(first, "generate") if first.status != 0 else ""
        disk.make_room()
        ask([*generate, str(output)], place / "here")
        if not wrong and output.read_bytes() != (place / "whole.jsonl").read_bytes():
            wrong = "other answers came of it"
        yield Outcome(name, not wrong, wrong)
        disk.unmount()
