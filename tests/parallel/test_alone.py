"""Shards on one process: everything but the sending, against the model as it was."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from src.models.endings import ending_ids
from src.models.fingerprint import fingerprint
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora, merged
from src.models.reference import Reference
from src.models.responses import encode
from src.models.rollout import RolloutOptions, sample_responses
from src.models.tying import base_model
from src.parallel.gathering import bytes_of, gathered, local, reshard, total_norm, whole
from src.parallel.sharding import shard, shard_like
from src.parallel.states import gather_state, gather_weights, load_optimizer_state

ARCHITECTURES = ["t5", "bart", "gpt2", "llama"]


def inputs(model):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return given | ({"decoder_input_ids": ids[:, :2]} if model.config.is_encoder_decoder else {})


@pytest.fixture(params=["whole", "lora"])
def model_of(tiny_base, request):
    """A base whose biases and adapters are not zero."""

    def make(architecture: str):
        torch.manual_seed(3)
        model = load_model(tiny_base(architecture))
        if request.param == "lora":
            model = add_lora(model, LoraConfig(r=2, target_modules="all-linear"))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_gradients_and_state_are_the_model_s(alone, model_of, architecture):
    model = model_of(architecture)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(**inputs(model)).logits
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen = fingerprint(model)

    shard(base_model(model), alone)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert fingerprint(model) == seen
    logits = model(**inputs(model)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    logits.square().mean().backward()
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    norm = total_norm(p.grad for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(norm, torch.nn.utils.get_total_norm(gradients.values()))
    assert bytes_of(model.parameters()) == sum(p.numel() * 4 for p in model.parameters())

    reshard(model)
    kept = gather_weights(model, model.state_dict(), keep=True)
    assert list(kept) == list(state)
    assert all(type(tensor) is torch.Tensor and torch.equal(tensor, state[name]) for name, tensor in kept.items())
    assert gather_weights(model, model.state_dict(), keep=False) == {}
    if architecture == "t5":  # one matrix under several names is written once
        tied = [name for name, p in model.named_parameters(remove_duplicate=False) if p.shape == kept[name].shape]
        assert len({tensor.data_ptr() for tensor in kept.values()}) < len(tied)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_gathered_samples_the_same_and_is_given_up_again(alone, model_of, tiny_base, architecture):
    model, tokenizer = model_of(architecture), load_tokenizer(tiny_base(architecture))
    given = inputs(model)
    options = RolloutOptions(min_new_tokens=1, output_min_length=4, output_max_length=9)

    def sample():
        return sample_responses(
            model,
            given["input_ids"],
            given["attention_mask"],
            options,
            eos_token_ids=ending_ids(tokenizer, model),
            pad_token_id=tokenizer.pad_token_id,
            seeds=[1, 2],
        ).ids

    before, encoded = sample(), encode(model, given["input_ids"], given["attention_mask"])
    shard(base_model(model), alone)
    sharded = [part for part in model.modules() if isinstance(part, FSDPModule)]
    assert len(sharded) > 1
    with gathered(model):
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert torch.equal(sample(), before)
        with gathered(model):  # within itself it is nothing
            pass
        with merged(model):
            model(**given)
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    if encoded is not None:  # with gradient, as a loss asks for it: the root's embeddings are there
        again = encode(model, given["input_ids"], given["attention_mask"])
        torch.testing.assert_close(again, encoded, rtol=0, atol=0)
    with torch.inference_mode(), gathered(model):
        model(**given)
    model(**given).logits.sum().backward()  # what inference mode made was not kept


def test_gathered_weights_are_given_up_where_something_fails(alone, model_of):
    model = model_of("llama")
    shard(model if not hasattr(model, "peft_config") else base_model(model), alone)
    with pytest.raises(ZeroDivisionError), gathered(model):
        raise ZeroDivisionError
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_a_reference_follows_into_shards(alone, tiny_base, architecture):
    policy = load_model(tiny_base(architecture))
    reference = Reference(policy, is_continued=False)
    before = reference.fingerprint()
    with torch.no_grad():
        expected = policy(**inputs(policy)).logits
    shard(policy, alone)
    reference.follow(policy)
    assert all(isinstance(copy, DTensor) for copy in reference.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            local(parameter).add_(1.0)
    holder = torch.nn.ModuleDict({"policy": policy, "reference": reference})
    with gathered(holder):
        with reference.active(policy) as frozen:
            torch.testing.assert_close(frozen(**inputs(policy)).logits, expected, rtol=0, atol=0)
        assert not torch.allclose(policy(**inputs(policy)).logits, expected)
    assert reference.fingerprint() == before
    assert all(isinstance(copy, DTensor) for copy in reference.parameters())


def test_an_optimiser_s_state_goes_out_whole_and_comes_back_in_parts(alone, tiny_base):
    def trained(model):
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
        model(**inputs(model)).logits.square().mean().backward()
        optimizer.step()
        return optimizer

    plain = load_model(tiny_base("gpt2"))
    expected = trained(plain).state_dict()
    model = load_model(tiny_base("gpt2"))
    shard(model, alone)
    optimizer = trained(model)
    state = gather_state(optimizer.state_dict(), keep=True)
    assert state["param_groups"] == expected["param_groups"]
    for number, values in expected["state"].items():
        for name, tensor in values.items():
            torch.testing.assert_close(state["state"][number][name], tensor)
    assert gather_state(optimizer.state_dict(), keep=False)["state"][0]["exp_avg"].numel() == 0

    fresh = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    load_optimizer_state(fresh, state)
    for parameter in model.parameters():
        kept = fresh.state[parameter]
        assert isinstance(kept["exp_avg"], DTensor)
        assert torch.equal(whole(kept["exp_avg"]), whole(optimizer.state[parameter]["exp_avg"]))
        assert float(kept["step"]) == 1


def test_a_whole_tensor_is_cut_like_another(alone, tiny_base):
    model = load_model(tiny_base("gpt2"))
    tensor = model.transformer.wte.weight.detach().clone()
    shard(model, alone)
    cut = shard_like(tensor, model.transformer.wte.weight)
    assert isinstance(cut, DTensor)
    assert cut.placements == model.transformer.wte.weight.placements
    assert torch.equal(whole(cut), tensor)
    assert shard_like(tensor, tensor) is tensor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_in_bfloat16_are_near_and_stay_finite(alone, model_of, architecture):
    """As under Lightning's autocast, which stays on; half of what a padded row can look at is masked."""
    model = model_of(architecture)
    given = inputs(model)
    given["attention_mask"][0, :3] = 0  # padded on the left
    with torch.no_grad():
        expected = model(**given).logits
    shard(base_model(model), alone, torch.bfloat16)
    blocks = [part for part in model.modules() if isinstance(part, FSDPModule)][1:]
    seen = []
    for block in blocks:
        layer = next(part for part in block.modules() if part._parameters)
        layer.register_forward_hook(lambda module, *_: seen.append(next(module.parameters()).dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**given).logits
        logits.float().square().mean().backward()
    assert seen == [torch.bfloat16] * len(blocks)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        if parameter.grad is not None:
            assert local(parameter.grad).dtype == torch.float32
            assert bool(local(parameter.grad).isfinite().all())
