"""A reward model against TRL's trainer, brute force, and what stock libraries read of its export."""

import json
import math

import pytest
import torch
from lightning.pytorch import Trainer
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from torch.optim import SGD
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from src.callbacks import SampleTable
from src.cli import main
from src.errors import ParleyError
from src.models.texts_to_classify import load_reader, texts_to_score
from src.models.value_head import ValueHead
from src.modules import RewardModule
from src.rewards import ClassifierReward
from tests.modules.preference.conftest import KINDS, PAIRS


def fit(module, loader, tmp_path, **options):
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **({"max_epochs": 1, "num_sanity_val_steps": 0} | options),
    )
    trainer.fit(module, loader, options.pop("val", None))
    return trainer


def sgd(lr):
    return lambda parameters: SGD(parameters, lr=lr)


def configured(base, **options):
    torch.manual_seed(0)
    module = RewardModule(str(base), **options)
    module.configure_model()
    return module


def one_by_one(model, ids):
    """Rewards without padding."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in ids])


def texts(side):
    return texts_to_score([pair[0] for pair in PAIRS], [pair[side] for pair in PAIRS], "prompt_and_response")


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rewards_and_training_loss_are_brute_force_s(base, loader_of, tmp_path, kind, adapted):
    """Over accumulated batches of different sizes, a filler among them, with everything that the loss has."""
    path = base(kind)
    lora = LoraConfig(r=2, init_lora_weights=False) if adapted else None
    options = {"lora": lora, "label_smoothing": 0.1, "center_rewards_coefficient": 0.01}
    module = configured(path, speed_ups=False, optimizer=sgd(0.5), **options)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    reader = load_reader(path)
    sides = [reader.ids(texts(side)) for side in (1, 2)]
    rows = [0, 1, 2, 3, 5]  # 4 is a filler
    rewards = [
        torch.cat([module.model(input_ids=torch.tensor([ids[row]])).logits[:, 0] for row in rows]) for ids in sides
    ]
    margins = torch.tensor([PAIRS[row][3] for row in rows])
    probability = (rewards[0] - rewards[1] - margins).sigmoid()
    losses = -0.9 * probability.log() - 0.1 * (1 - probability).log() + 0.01 * (rewards[0] + rewards[1]) ** 2
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), trained, allow_unused=True)
    module.zero_grad()
    trainer = fit(module, loader_of(path, [[0, 1, 2], [4, 3], [5]], fillers=(4,)), tmp_path, accumulate_grad_batches=3)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(losses.mean().item(), abs=1e-5)
    right = (rewards[0] > rewards[1]).float().mean().item()
    assert trainer.callback_metrics["train/accuracy"].item() == pytest.approx(right)
    after = dict(module.model.named_parameters())
    names = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
    assert any(gradient is not None and gradient.abs().max() > 1e-4 for gradient in gradients)
    for name, gradient in zip(names, gradients, strict=True):
        moved = torch.zeros_like(before[name]) if gradient is None else -0.5 * gradient
        torch.testing.assert_close(after[name] - before[name], moved, atol=1e-5, rtol=1e-4)
    assert adapted == all("lora_" in name or "modules_to_save" in name for name in names)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_loss_rewards_and_gradients_are_trl_s(base, batch_of, tmp_path, kind, coefficient):
    trl = pytest.importorskip("trl")
    path = base(kind)
    module = configured(path, speed_ups=False, center_rewards_coefficient=coefficient)
    batch = batch_of(path, [0, 1, 2, 3, 4, 5])
    peer = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    peer.load_state_dict(module.model.state_dict())
    from datasets import Dataset

    reader = load_reader(path)
    columns = {"chosen_ids": reader.ids(texts(1)), "rejected_ids": reader.ids(texts(2))}
    columns["margin"] = [pair[3] for pair in PAIRS]
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        center_rewards_coefficient=coefficient or None,
        per_device_train_batch_size=6,
    )
    trainer = trl.RewardTrainer(
        model=peer, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=reader.tokenizer
    )
    inputs = trainer.data_collator(list(Dataset.from_dict(columns)))
    assert torch.equal(inputs["input_ids"], batch["answer_ids"])
    trainer.model.train()
    theirs, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    theirs.backward()
    chosen, rejected = module.rewards(batch)
    torch.testing.assert_close(torch.cat([chosen, rejected]), outputs.logits[:, 0], atol=1e-5, rtol=1e-5)
    fitted = fit_gradients(module, batch, tmp_path)
    assert fitted["loss"] == pytest.approx(theirs.item(), abs=1e-5)
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(fitted["gradients"][name], parameter.grad, atol=1e-5, rtol=1e-4)


def fit_gradients(module, batch, tmp_path):
    """What one step of the Module's own training gives."""
    seen = {}

    class Look(torch.optim.SGD):
        def step(self, closure=None):
            seen["loss"] = float(closure())
            seen["gradients"] = {n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None}

    module._plan._make_optimizer = lambda parameters: Look(parameters, lr=0.1)
    fit(module, torch.utils.data.DataLoader([batch], batch_size=None), tmp_path)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["whole", "adapter", "merged"])
def test_the_export_gives_the_same_rewards_in_stock_libraries_and_in_classifier_reward(
    base, loader_of, tmp_path, kind, way
):
    path = base(kind)
    lora = None if way == "whole" else LoraConfig(r=2)
    module = configured(path, lora=lora, optimizer=sgd(0.5))
    trainer = fit(module, loader_of(path, [[0, 1, 2], [3, 4, 5]]), tmp_path, max_epochs=2)
    module.model.eval()
    reader = load_reader(path)
    expected = one_by_one(module.model, reader.ids(texts(1) + texts(2)))
    checkpoint, out = str(tmp_path / "run.ckpt"), str(tmp_path / "reward")
    trainer.save_checkpoint(checkpoint)
    merge = ["--merge"] if way == "merged" else []
    assert main(["export", "--checkpoint", checkpoint, "--output", out, *merge]) == 0

    reward = ClassifierReward(out, label=None)
    prompts = [pair[0] for pair in PAIRS] * 2
    scores = reward(prompts, [pair[1] for pair in PAIRS] + [pair[2] for pair in PAIRS])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(out)
    if way == "adapter":
        stock = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=1).eval()
        stock.config.pad_token_id = tokenizer.pad_token_id
        size = sum(tensor.numel() for tensor in torch.load(checkpoint, weights_only=False)["state_dict"].values())
        assert size == sum(p.numel() for p in module.model.parameters() if p.requires_grad)  # no frozen base
    else:
        stock = AutoModelForSequenceClassification.from_pretrained(out).eval()
        assert stock.config.pad_token_id == tokenizer.pad_token_id
        assert stock.config.num_labels == 1
    plain = [row for row in range(12) if "</s>" not in (texts(1) + texts(2))[row]]
    encoded = tokenizer([(texts(1) + texts(2))[row] for row in plain], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(stock(**encoded).logits[:, 0], expected[plain], atol=1e-5, rtol=1e-5)


def test_its_head_starts_ppo_s_value_head(base, loader_of, tmp_path):
    for kind in ("gpt2", "t5"):
        module = configured(base(kind), optimizer=sgd(0.5))
        trainer = fit(module, loader_of(base(kind), [[0, 1, 2, 3]]), tmp_path)
        checkpoint, out = str(tmp_path / f"{kind}.ckpt"), str(tmp_path / kind)
        trainer.save_checkpoint(checkpoint)
        main(["export", "--checkpoint", checkpoint, "--output", out])
        head = ValueHead(module.model.config.hidden_size, out)
        hidden = torch.randn(3, module.model.config.hidden_size)
        own = module.model.score if kind == "gpt2" else module.model.classification_head
        torch.testing.assert_close(head(hidden), own.eval()(hidden).squeeze(-1))


def test_a_reward_model_answers_nothing_in_one_line(base, loader_of, tmp_path, capsys):
    module = configured(base("gpt2"))
    trainer = fit(module, loader_of(base("gpt2"), [[0, 1]]), tmp_path)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    main(["export", "--checkpoint", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "out")])
    adapted = configured(base("gpt2"), lora=LoraConfig(r=2))
    fit(adapted, loader_of(base("gpt2"), [[0, 1]]), tmp_path).save_checkpoint(tmp_path / "lora.ckpt")
    main(["export", "--checkpoint", str(tmp_path / "lora.ckpt"), "--output", str(tmp_path / "adapter")])
    for model in ("run.ckpt", "out", "lora.ckpt", "adapter"):
        capsys.readouterr()
        assert main(["generate", str(tmp_path / model), "--prompt", "good day"]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert "answers nothing" in said[0]


def test_an_exported_adapter_is_trained_on(base, loader_of, tmp_path):
    path = base("llama")
    module = configured(path, lora=LoraConfig(r=2), optimizer=sgd(0.5))
    trainer = fit(module, loader_of(path, [[0, 1, 2]]), tmp_path)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    main(["export", "--checkpoint", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "out")])
    again = configured(tmp_path / "out")
    ids = load_reader(path).ids(texts(1))
    assert load_reader(str(tmp_path / "out")).ids(texts(1)) == ids
    torch.testing.assert_close(one_by_one(again.model, ids), one_by_one(module.model.eval(), ids))
    assert any(p.requires_grad for n, p in again.model.named_parameters() if "score" in n)


def test_rewards_are_float32_under_bf16(base, batch_of, loader_of, tmp_path):
    path = base("gpt2")
    module = configured(path)
    module.model.score.weight.data.normal_()
    batch = batch_of(path, [0, 1, 2])
    trunk = module.model.transformer
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = trunk(input_ids=batch["answer_ids"], attention_mask=batch["answer_mask"]).last_hidden_state
        rewards = torch.cat(module.rewards(batch))
    last = batch["answer_mask"].sum(1) - 1
    expected = hidden.double()[torch.arange(6), last] @ module.model.score.weight[0].double()
    torch.testing.assert_close(rewards, expected.float(), atol=1e-5, rtol=1e-5)
    trainer = fit(module, loader_of(path, [[0, 1, 2], [3, 4, 5]]), tmp_path, precision="bf16-mixed")
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_validation_and_its_table(base, batch_of, loader_of, tmp_path):
    path = base("gpt2")
    module = configured(path, label_smoothing=0.3, center_rewards_coefficient=1.0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[SampleTable(num_samples=3)],
    )
    [figures] = trainer.validate(module, loader_of(path, [[5, 4], [3, 2], [1, 0]], fillers=(2,)), verbose=False)
    rows = [0, 1, 3, 4, 5]
    ids = load_reader(path)
    chosen, rejected = (one_by_one(module.model.eval(), ids.ids(texts(side)))[rows].double() for side in (1, 2))
    margins = torch.tensor([PAIRS[row][3] for row in rows])
    losses = -((chosen - rejected - margins).sigmoid()).log()
    assert figures["val/loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert figures["val/margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-6)
    assert figures["val/accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert figures["val/accuracy_low"] < figures["val/accuracy"] < figures["val/accuracy_high"]
    [file] = tmp_path.rglob("step-*.jsonl")
    table = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["index"] for row in table] == [0, 1, 3]
    assert table[1]["rejected"] == PAIRS[1][2]
    assert table[1]["rejected_reward"] == pytest.approx(rejected[1].item(), abs=1e-6)


def test_what_does_not_fit_is_one_line(base, tmp_path):
    with pytest.raises(ParleyError, match="label_smoothing is 1"):
        RewardModule("x", label_smoothing=1.0)
    with pytest.raises(ParleyError, match="there is no text 'prompt'"):
        RewardModule("x", text="prompt")
    with pytest.raises(ParleyError, match=r"lora.task_type is .*CAUSAL_LM"):
        configured(base("gpt2"), lora=LoraConfig(task_type="CAUSAL_LM"))
    from peft import PromptTuningConfig

    with pytest.raises(ParleyError, match="use LoRA"):
        configured(base("gpt2"), lora=PromptTuningConfig(num_virtual_tokens=2))
    module = configured(base("gpt2"))
    with pytest.raises(ParleyError, match="give PreferenceDataModule"):
        module.rewards({"input_ids": torch.zeros(1, 1)})
