"""What every test may use: no network, tiny bases made through the users' own door, and the real data where it lies."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="parley-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "src" / "datamodules" / "sample"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "good", "bad", "day", "you", "are", "a", "have", "nice", "fool", "so", "very"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process is left with one when the others have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name, what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """A test leaves neither variables nor a process group of torch's behind: the port in them would be taken."""
    before = dict(os.environ)
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # what a process that another test forks would wait for
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


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


@pytest.fixture(scope="session")
def finished(tiny_base: Callable[..., Path]) -> Callable[[str], Any]:
    """From an architecture to a finished model that says various things."""
    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        from src.inference.loading import load_finished
        from tests.shaking import shaken

        if architecture not in made:
            made[architecture] = load_finished(str(tiny_base(architecture)), device="cpu")
            shaken(made[architecture].model)
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Make a small classifier's directory; it knows the words of `WORDS`, or what a given tokenizer knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForSequenceClassification,
        set_seed,
    )

    def make(
        labels: list[str],
        roberta: bool = True,
        positions: int = 32,
        knows_length: bool = False,
        tokenizer_of: Path | None = None,
        **config: Any,
    ) -> str:
        path = tmp_path_factory.mktemp("classifier")
        words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        length: dict[str, Any] = {"model_max_length": positions} if knows_length else {}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **length
        )
        if tokenizer_of is not None:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
        tokenizer.save_pretrained(path)
        sizes: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": positions,
            "pad_token_id": tokenizer.pad_token_id,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
            "num_labels": len(labels),
            "initializer_range": 0.5,
        }
        set_seed(0)
        if roberta:
            RobertaForSequenceClassification(RobertaConfig(**(sizes | config))).save_pretrained(path)
        else:
            BertForSequenceClassification(BertConfig(**(sizes | config))).save_pretrained(path)
        return str(path)

    return make
