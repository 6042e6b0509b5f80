"""What every test may use: no network, tiny bases made through the users' own door, and the real data where it lies."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="parley-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "src" / "datamodules" / "sample"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process is left with one when the others have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """DialogSum and ChatbotData, where they are to be had."""
    directory = Path(os.environ.get("PARLEY_DATA", ROOT.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no real data at {directory} (set PARLEY_DATA)")
    return directory


@pytest.fixture(scope="session")
def sample() -> Path:
    """The bundled dialogues."""
    return SAMPLE


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """From an architecture to a base directory of some 50,000 parameters, made by `parley init`."""
    root = tmp_path_factory.mktemp("bases")

    def make(architecture: str = "t5", seed: int = 0, untied: bool = False) -> Path:
        from src.cli import main

        directory = root / f"{architecture}-{seed}{'-untied' if untied else ''}"
        if not directory.exists():
            sizes = [
                "--hidden-size",
                "32",
                "--layers",
                "1",
                "--heads",
                "2",
                "--feed-forward-size",
                "64",
                "--vocab-size",
                "400",
            ]
            words = ["init", "--architecture", architecture, "--output", str(directory), "--seed", str(seed)]
            with contextlib.redirect_stdout(io.StringIO()):  # a test that reads the output did not ask for this
                assert main([*words, *sizes, *(["--untied-head"] if untied else [])]) == 0
        return directory

    return make
