"""A checkpoint with one byte or one bit that is not what it was, read by every command that reads one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.surroundings.run import Run, one_line, words_to_train
from scripts.trial.tools.forks import ask

HEADERS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")
COMMANDS = ("export", "generate", "chat", "compare", "fit")
ANSWERED, REFUSED = "answered", "refused in one line"
HEADER_SIZE = 60  # bytes, with the beginning of the name


def damages(data: bytes, count: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Places in a file and what to flip there: one bit or up to eight.

    A third of them are in the archive's headers, a third in its pickle, a third anywhere.
    """
    headers = [place for mark in HEADERS for place in _places(data, mark)]
    end_of_pickle = data.index(b"PK", data.index(b"data.pkl") + 8)
    for number in range(count):
        where = number % 3
        if where == 0:
            place = min(chance.choice(headers) + chance.randrange(HEADER_SIZE), len(data) - 1)
        elif where == 1:
            place = chance.randrange(end_of_pickle)
        else:
            place = chance.randrange(len(data))
        yield place, 1 << chance.randrange(8) if number % 2 else chance.randrange(1, 256)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def commands(checkpoint: Path, run: Run) -> dict[str, list[str]]:
    """Every command that reads a checkpoint, besides those that train."""
    prompt = ["--max-new-tokens", "6"]
    inputs = ["--input", str(run.place / "prompts.txt"), *prompt]
    return {
        "export": ["export", "--checkpoint", str(checkpoint), "--output", "exported"],
        "generate": ["generate", str(checkpoint), "--prompt", "Anna: Hello, Ben.", *prompt],
        "chat": ["chat", str(checkpoint), *prompt],
        "compare": ["compare", str(checkpoint), str(run.base), "--json", *inputs],
        "fit": [],
    }


def flip_cases(run: Run, place: Path, count: int, seed: int, names: Sequence[str]) -> Iterator[Outcome]:
    """Damage the newest checkpoint so often for each command.

    Held: the damaged file is refused in one line (`last`: passed over), or what comes out is what comes of the whole
    file, as where the flip hit what nobody reads.

    Args:
        run: The run whose checkpoint it is.
        place: An empty directory.
        count: Flips a command.
        seed: Of the flips.
        names: Of the commands, among `COMMANDS`.
    """
    data = run.newest.read_bytes()
    place.mkdir()
    checkpoint = place / "damaged.ckpt"
    for name in names:
        checkpoint.write_bytes(data)
        words = commands(checkpoint, run)[name]
        chance = random.Random(f"{seed} {name}")
        judge = _judge_of_last(run, place) if name == "fit" else _judge(words, checkpoint, place / name)
        for where, mask in damages(data, count, chance):
            damaged = bytearray(data)
            damaged[where] ^= mask
            wrong = judge(bytes(damaged))
            yield Outcome(f"{name}, byte {where} ^ {mask:#04x}", not wrong, wrong)


def _judge(words: list[str], checkpoint: Path, place: Path) -> Callable[[bytes], str]:
    def run() -> tuple[str, str]:
        answer = ask(words, place, patience=300, given=b"Hello\n")
        exported = place / "exported"
        files = {file.name: file.read_bytes() for file in exported.glob("*")} if exported.is_dir() else {}
        shutil.rmtree(exported, ignore_errors=True)
        wrong = "" if answer.status == 0 else one_line(answer, words[0])
        said = wrong or (REFUSED if answer.status else ANSWERED)
        return said, f"{answer.out if words[0] != 'export' else ''}{files}"

    said, whole = run()
    if said != ANSWERED:
        raise SystemExit(f"{words[0]} does not take the whole file: {said}")

    def judge(damaged: bytes) -> str:
        checkpoint.write_bytes(damaged)
        said, output = run()
        if said == ANSWERED:
            return "" if output == whole else "it was read, and something else came of it"
        return "" if said == REFUSED else said

    return judge


def _judge_of_last(run: Run, place: Path) -> Callable[[bytes], str]:
    def judge(damaged: bytes) -> str:
        copied = run.copy(place / "last")
        copied.newest.write_bytes(damaged)
        try:
            return goes_on(copied, run)
        finally:
            shutil.rmtree(copied.place)

    return judge


def goes_on(run: Run, whole: Run, *, may_refuse: bool = False) -> str:
    """What is wrong with how `--ckpt_path last` goes on in a run; nothing where it ends as the whole one did.

    Args:
        run: The run.
        whole: The one that it is to be like in the end.
        may_refuse: One line in place of going on will do.
    """
    answer = ask([*words_to_train(run.base), "--ckpt_path", "last"], run.place, patience=120)
    if answer.status is None:
        return "it never ended"
    if may_refuse and answer.status != 0:
        return one_line(answer, "fit")
    if answer.status != 0 or "Traceback" in answer.err:
        return f"status {answer.status}: {answer.err.strip()[-300:]!r}"
    if "Going on from" not in answer.err:
        return "it started fresh"
    return "" if run.figures == whole.figures else "it ended with other figures or weights"
