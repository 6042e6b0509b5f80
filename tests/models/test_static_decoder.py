"""The static engine samples the plain one's tokens, in steps that can be replayed as graphs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MistralConfig, MistralForCausalLM

from src.errors import ParleyError
from src.models import static_decoder
from src.models.loading import load_model
from src.models.rollout import RolloutOptions, sample_responses
from src.models.static_decoder import CapturedStep, StaticDecoder, refuse_engine

PLAIN = RolloutOptions(min_new_tokens=1, output_min_length=1, output_max_length=40, top_k=40)
GPU = torch.device("cuda:1")
TEXTS = [f"{name}: Are you coming{' to dinner' * length}?" for length, name in enumerate(["Anna", "Ben"] * 6)]


def sample(model, tokenizer, options: RolloutOptions, **kwargs: Any):
    side = "right" if model.config.is_encoder_decoder else "left"
    asked = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    return sample_responses(
        model.eval(),
        asked["input_ids"],
        asked["attention_mask"],
        options,
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        generator=torch.Generator().manual_seed(5),
        **kwargs,
    )


def assert_same(ours, theirs) -> None:
    for name in ("ids", "mask", "has_eos"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.drawable.data, theirs.drawable.data)


@pytest.mark.parametrize(("options", "answers"), [(PLAIN, 3), (replace(PLAIN, top_k=1), 1)], ids=["sampled", "greedy"])
def test_both_engines_sample_the_same_tokens(model, tokenizer, shake, options, answers):
    shake(model)
    plain = sample(model, tokenizer, options, answers=answers)
    assert len(set(plain.mask.sum(-1).tolist())) > 5  # rows end one after the other
    assert_same(sample(model, tokenizer, replace(options, engine="static"), answers=answers), plain)


class Recorded(TorchDispatchMode):
    """Writes down operations as a GPU's graph does: addresses and numbers, nothing of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for the GPU"
        assert func is not torch.ops.aten.nonzero.default, "a graph's shapes do not depend on values"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            for place, again in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != again.data_ptr():
                    place.copy_(again)


class Replayed:
    """What `CapturedStep` does, without a GPU."""

    def __init__(self) -> None:
        self.recorded, self.calls = Recorded(), 0

    def __call__(self, compute: Callable[[], Tensor]) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            return compute()
        if self.calls > 2:
            self.recorded.replay()
            return self.result
        with self.recorded:
            self.result = compute()
        return self.result


def test_a_step_that_is_written_down_once_and_replayed_gives_the_same_tokens(model, tokenizer, shake, monkeypatch):
    shake(model)
    steps: list[Replayed] = []

    def replayed(_decoder: StaticDecoder) -> Replayed:
        steps.append(Replayed())
        return steps[-1]

    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    plain = sample(model, tokenizer, replace(PLAIN, engine="static"))
    monkeypatch.setattr(StaticDecoder, "_new_capture", replayed)
    assert_same(sample(model, tokenizer, replace(PLAIN, engine="static")), plain)
    assert sum(step.calls for step in steps) == plain.ids.shape[1] - 1  # all tokens but the first
    assert max(step.calls for step in steps) > 3
    assert len(steps) <= 1 + len(TEXTS).bit_length()


class FakeGraph:
    """Writes down what is done with it."""

    capturing: FakeGraph | None = None  # the one that is

    def __init__(self) -> None:
        self.replays, self.given = 0, {}

    def capture_begin(self, **given: Any) -> None:
        assert FakeGraph.capturing is None
        self.given, FakeGraph.capturing = given, self

    def capture_end(self) -> None:
        assert FakeGraph.capturing is self
        FakeGraph.capturing = None

    def pool(self) -> FakeGraph:
        return self.given.get("pool", self)

    def replay(self) -> None:
        assert FakeGraph.capturing is None
        self.replays += 1


class FakeStream:
    """The current one is that of the innermost block."""

    current: ClassVar[list[Any]] = [None]
    devices: ClassVar[list[torch.device]] = []  # that have been made the current one

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, _other: Any) -> None: ...


@contextmanager
def fake_stream(stream: FakeStream) -> Iterator[None]:
    FakeStream.current.append(stream)
    yield
    FakeStream.current.pop()


@contextmanager
def fake_device(device: torch.device) -> Iterator[None]:
    FakeStream.devices.append(device)
    yield


@pytest.fixture
def fake_cuda(monkeypatch) -> Iterator[None]:
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", fake_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "device", fake_device)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch, "zeros", lambda *args, device=None: zeros(*args))
    static_decoder._captures.cache_clear()
    yield
    static_decoder._captures.cache_clear()


def test_a_captured_step_computes_twice_and_is_replayed_from_then_on(fake_cuda):
    """From the third call on CUDA; it is captured without autocast's cache."""
    calls: list[tuple[bool, bool, Any]] = []

    def compute() -> Tensor:
        calls.append((torch.is_autocast_cache_enabled(), FakeGraph.capturing is not None, FakeStream.current[-1]))
        return torch.zeros(1)

    step = CapturedStep(GPU)
    results = [step(compute) for _ in range(4)]
    assert FakeStream.devices[-4:] == [GPU] * 4
    assert [call[:2] for call in calls] == [(True, False), (False, True)]
    assert calls[0][2] is calls[1][2] is not None  # one stream for both, so that what the first set up is there
    assert results[1] is results[2] is results[3]
    assert step._graph.replays == 3  # a capture alone computes nothing
    assert torch.is_autocast_cache_enabled()


def test_all_captures_share_one_pool_that_none_of_them_owns(fake_cuda):
    steps = [CapturedStep(GPU) for _ in range(3)]
    for step in steps:
        for _ in range(2):
            step(lambda: torch.zeros(1))
    _, keeper = static_decoder._captures(GPU)
    assert {step._graph.pool() for step in steps} == {keeper}
    assert keeper.replays == 0


def test_a_capture_that_fails_is_ended(fake_cuda):
    def compute() -> Tensor:
        if FakeGraph.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    step = CapturedStep(GPU)
    step(compute)
    with pytest.raises(RuntimeError, match="not permitted"):
        step(compute)
    assert FakeGraph.capturing is None
    assert torch.is_autocast_cache_enabled()


def test_a_model_with_a_sliding_window_is_refused(tokenizer):
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    with pytest.raises(ParleyError, match=r"rollout.engine is static, and mistral .*; use plain"):
        replace(PLAIN, engine="static").refuse(model)
    PLAIN.refuse(model)


def test_a_row_that_ended_at_the_window_does_not_leave_it(monkeypatch, model, tokenizer):
    """Rows of a decoder-only model that have ended go on in the batch, and their positions must not."""
    if model.config.is_encoder_decoder:
        pytest.skip("positions do not depend on the row")
    seen: list[int] = []
    plain = StaticDecoder.advance

    def watched(self, tokens, alive):
        plain(self, tokens, alive)
        seen.append(max(int(ids.max()) for ids in self.positions.values()))

    monkeypatch.setattr(StaticDecoder, "advance", watched)
    model.config.max_position_embeddings = window = 100
    sample(model, tokenizer, replace(PLAIN, output_min_length=40, engine="static"))
    assert max(seen) == window - 1


def test_a_decoder_that_is_not_needed_any_more_is_gone_with_its_cache(model, tokenizer):
    """Without waiting for the garbage collector: on a GPU the cache is gigabytes that training wants next."""
    asked = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    gc.collect()
    gc.disable()
    try:
        decoder = StaticDecoder(model.eval(), asked["input_ids"], asked["attention_mask"], longest=4)
        with torch.no_grad():
            for _ in range(3):
                decoder.advance(decoder.next_logits().argmax(-1), torch.arange(2))
        left = weakref.ref(decoder)
        del decoder
        assert left() is None
    finally:
        gc.enable()


def test_what_the_engine_cannot_serve_is_refused(base):
    model = load_model(base("gpt2"))
    with pytest.raises(ParleyError, match=r"^x is static, which is not for shards; use plain\.$"):
        refuse_engine("x", model, in_shards=True)
    tuned = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ParleyError, match="an adapter's virtual tokens nor aLoRA; use plain"):
        refuse_engine("x", tuned)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ParleyError, match="which flash_attention_2 does not serve; use plain, or attention by sdpa"):
        refuse_engine("x", model)
