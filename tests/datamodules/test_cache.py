"""The cache of tokens: made once, by one, whole or not at all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import datasets
import pytest

from src.datamodules.cache import EncodedDataset, cached
from src.datamodules.encoding import Encoded
from src.errors import ParleyError


def encoded(count: int = 5) -> list[Encoded]:
    return [
        Encoded(
            id=f"row_{number}",
            prompt="p" * number,
            target="t",
            references=["t"],
            prompt_ids=list(range(number + 1)),
            target_ids=[1] * (9 - number),
            prompt_truncated=False,
            target_truncated=number == 2,
        )
        for number in range(count)
    ]


def test_rows_come_back_by_number_and_as_fillers(tmp_path: Path) -> None:
    rows = cached(tmp_path, ["key"], encoded)
    assert len(rows) == 5
    for number, row in enumerate(encoded()):
        assert rows[number] == {**row, "is_filler": False, "index": number}
        assert rows[-1 - number] == {**row, "is_filler": True, "index": number}
    assert rows.lengths("prompt_ids") == [1, 2, 3, 4, 5]
    assert rows.lengths("target_ids") == [9, 8, 7, 6, 5]


def test_the_same_key_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> list[Encoded]:
        made.append(1)
        return encoded()

    for key in (["a", {"x": 1, "y": 2}], ["a", {"y": 2, "x": 1}]):
        assert len(cached(tmp_path, key, make)) == 5
    assert len(made) == 1
    cached(tmp_path, ["a", {"x": 1, "y": 3}], make)
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 2


def _race(directory: Path, barrier: Any, results: Any) -> None:
    def make() -> list[Encoded]:
        barrier.wait()  # both have found nothing and make the rows
        return encoded(40)

    results.put(len(cached(directory, ["key"], make)))


def test_two_processes_that_make_the_same_rows_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
    assert [results.get(timeout=60) for _ in racers] == [40, 40]
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Encoded]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, ["key"], fail)

    def save(self: Any, path: str) -> None:
        Path(path).mkdir(parents=True)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", save)
        with pytest.raises(ParleyError, match=r"cannot be written .*No space left.*set cache_dir"):
            cached(tmp_path, ["key"], encoded)
    assert list(tmp_path.iterdir()) == []
    assert len(cached(tmp_path, ["key"], encoded)) == 5


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ParleyError, match="file cannot be written"):
        cached(tmp_path / "file", ["key"], encoded)


def test_no_bars_are_drawn_and_the_users_choice_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    cached(tmp_path, [1], encoded)
    assert not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    cached(tmp_path, [2], encoded)
    assert datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    assert capfd.readouterr() == ("", "")


def test_it_is_a_dataset_of_torch(tmp_path: Path) -> None:
    import pickle

    rows = pickle.loads(pickle.dumps(cached(tmp_path, ["key"], encoded)))  # as workers that are spawned get it
    assert isinstance(rows, EncodedDataset)
    assert rows[3]["id"] == "row_3"
