"""DPO from data to checkpoint: brute force, resuming, other processes, the cached reference, what does not fit."""

from __future__ import annotations

import csv
import json
import logging

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from peft import LoraConfig

from src.callbacks import BeforeAfterTable, ExactResume
from src.cli import main
from src.datamodules import DialogSumDataModule, PreferenceDataModule
from src.errors import ParleyError
from src.inference.export import export
from src.models.loading import load_model
from src.modules import DPOModule
from src.rewards import LengthReward
from src.rl.preferences import DPOConfig
from tests.modules.cutting import Cut, CutAt

TARGETS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
WORDS = [
    "good",
    "bad",
    "day",
    "you",
    "are",
    "a",
    "have",
    "nice",
    "fool",
    "so",
    "very",
    "much",
    "to",
    "do",
    "with",
    "it",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Twenty-two pairs of unequal length."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    generator = torch.Generator().manual_seed(0)

    def text(most):
        words = torch.randint(len(WORDS), (int(torch.randint(1, most, (), generator=generator)),), generator=generator)
        return " ".join(WORDS[word] for word in words)

    rows = [{"prompt": f"{n} {text(12)}", "chosen": f"yes {text(6)}", "rejected": f"no {text(9)}"} for n in range(22)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def make(tiny_base, pairs, tmp_path):
    """From settings to a Module, its data and a Trainer."""

    def build(kind="gpt2", trained="whole", dpo=None, trainer=None, data=None, **options):
        base = str(tiny_base(kind))
        options.setdefault("optimizer", lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
        lora = LoraConfig(r=4, target_modules=TARGETS[kind]) if trained == "lora" else None
        module = DPOModule(base, dpo=dpo, lora=lora, **options)
        datamodule = PreferenceDataModule(
            base, path=str(pairs), train_split="train[:18]", validation_split="train[18:]", test_split="train[18:]",
            batch_size=4, max_source_length=32, max_target_length=16, cache_dir=str(tmp_path / "cache"), **(data or {}),
        )  # fmt: skip
        settings = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "limit_val_batches": 0}
        return module, datamodule, Trainer(
            accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, log_every_n_steps=1,
            **(settings | (trainer or {})),
        )  # fmt: skip

    return build


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def brute_force(model, batch, beta, *, is_encoder_decoder):
    """DPO's loss, one answer after the other, by the model's own logits."""
    model.eval()

    def logprob(model, prompt, answer):
        if is_encoder_decoder:
            logits = model(input_ids=prompt[None], labels=answer[None]).logits[0]
        else:
            logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, answer[:, None]).sum()

    count, sums = len(batch["index"]), []
    for row in range(2 * count):
        prompt = batch["prompt_ids"][row % count][batch["prompt_attention_mask"][row % count].bool()]
        sums.append(logprob(model, prompt, batch["answer_ids"][row][batch["answer_mask"][row].bool()]))
    return torch.stack(sums)


@pytest.mark.parametrize("trained", ["whole", "lora"])
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_loss_and_gradients_are_brute_force_s(kind, trained, make):
    module, data, trainer = make(kind, trained, dpo=DPOConfig(beta=0.4), trainer={"max_steps": 2})
    trainer.fit(module, data)  # away from the reference
    batch = next(iter(data.train_dataloader()))
    module.zero_grad()
    loss, figures, pairs = module.loss_sums(batch, "train")
    (loss / pairs).backward()
    found = {name: p.grad.clone() for name, p in module.policy.named_parameters() if p.requires_grad}
    module.zero_grad()
    encdec = kind in ("t5", "bart")
    start = load_model(module.model_name_or_path)
    with torch.no_grad():
        reference = brute_force(start, batch, 0.4, is_encoder_decoder=encdec)
    policy = brute_force(module.policy, batch, 0.4, is_encoder_decoder=encdec)
    chosen, rejected = (policy - reference).chunk(2)
    expected = -F.logsigmoid(0.4 * (chosen - rejected)).mean()
    expected.backward()
    torch.testing.assert_close(loss / pairs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        figures["rewards/margins"] / pairs, 0.4 * (chosen - rejected).mean(), rtol=1e-5, atol=1e-5
    )
    assert abs(float(expected.detach()) - 0.6931) > 1e-3
    for name, parameter in module.policy.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_it_learns_and_logs_trl_s_names(make, tmp_path):
    module, data, trainer = make("t5", trainer={"max_epochs": 8, "limit_val_batches": 1.0})
    trainer.fit(module, data)
    found = trainer.callback_metrics
    names = {f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    names |= {"logps/chosen", "logps/rejected"}
    assert names | {"train/loss"} <= found.keys()
    assert {f"val/{name}" for name in names} | {
        "val/loss",
        "val/rouge1",
        "val/rouge1_reference",
        "val/kl",
    } <= found.keys()
    assert found["rewards/margins"] > 1
    assert found["rewards/accuracies"] == 1
    assert found["val/kl"] > 0
    assert "val/reward" not in found


@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo", "orpo"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_learns_the_same_however_it_is_cut(make, accumulate, loss_type):
    def trained(size, accumulate):
        module, data, trainer = make(
            "t5", dpo=DPOConfig(loss_type=loss_type),
            trainer={"accumulate_grad_batches": accumulate, "max_epochs": 1},
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip
        data.batch_size = size
        trainer.fit(module, data)
        return weights(module)

    whole = trained(12, 1)
    cut = trained(12 // accumulate, accumulate)
    for name, tensor in whole.items():
        tolerance = 1e-5 if loss_type != "orpo" or accumulate == 1 else 1e-2  # its cross-entropy is a batch's mean
        torch.testing.assert_close(cut[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_fillers_count_for_nothing(make):
    module, data, trainer = make("gpt2", dpo=DPOConfig(rpo_alpha=0.5), trainer={"max_steps": 1})
    trainer.fit(module, data)
    batch = next(iter(data.train_dataloader()))
    alone, figures, pairs = module.loss_sums(batch, "train")
    filled = {
        name: torch.cat([value, value[:1]]) if name.startswith("prompt_") else value for name, value in batch.items()
    }
    for name in ("answer_ids", "answer_mask"):
        chosen, rejected = batch[name].chunk(2)
        filled[name] = torch.cat([chosen, chosen[:1], rejected, rejected[:1]])
    for name in ("index", "is_filler"):
        filled[name] = [*batch[name], batch[name][0]]
    filled["is_filler"][-1] = True
    loss, others, count = module.loss_sums(filled, "train")
    assert int(count) == int(pairs)
    torch.testing.assert_close(loss, alone)
    for name in figures:
        torch.testing.assert_close(others[name], figures[name], msg=name)
    filled["is_filler"] = [True] * len(filled["index"])
    nothing, _, count = module.loss_sums(filled, "train")
    module.zero_grad()
    nothing.backward()
    assert int(count) == 0
    assert float(nothing.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.policy.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trained", "dpo"),
    [
        ("t5", "whole", DPOConfig()),
        ("gpt2", "lora", DPOConfig(rpo_alpha=0.2)),
        ("bart", "lora", DPOConfig(loss_type="ipo", reference="cached")),
        ("llama", "whole", DPOConfig(reference="cached")),
        ("gpt2", "whole", DPOConfig(loss_type="orpo")),
    ],
)
def test_a_run_cut_within_an_epoch_goes_on_to_the_bit(make, tmp_path, kind, trained, dpo):
    settings = {"max_epochs": 2, "limit_val_batches": 1.0}

    def fit(checkpoint=None, **more):
        torch.manual_seed(3)
        module, data, trainer = make(kind, trained, dpo, trainer=settings | {"callbacks": [ExactResume()]} | more)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return module, trainer

    whole, trainer = fit()
    with pytest.raises(Cut):
        fit(callbacks=[ExactResume(), CutAt(3, tmp_path / "cut.ckpt")])
    again, resumed = fit(tmp_path / "cut.ckpt")
    assert resumed.global_step == trainer.global_step == 10
    assert_equal(weights(whole), weights(again))
    for name in ("val/loss", "val/rewards/margins", "val/rouge1", "val/rouge1_reference"):
        assert torch.equal(trainer.callback_metrics[name], resumed.callback_metrics[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trained"), [("t5", "whole"), ("gpt2", "whole"), ("gpt2", "lora")])
def test_a_cached_reference_is_the_same_and_no_copy_is_held(make, tmp_path, kind, trained, caplog):
    settings = {"max_epochs": 2, "limit_val_batches": 1.0}

    def fit(reference):
        torch.manual_seed(3)
        module, data, trainer = make(kind, trained, DPOConfig(reference=reference), trainer=settings)
        with caplog.at_level(logging.INFO):
            trainer.fit(module, data)
        return module, trainer

    held, first = fit("model")
    caplog.clear()
    cached, second = fit("cached")
    assert "once for this model and these pairs" in caplog.text
    for name, tensor in weights(held).items():
        torch.testing.assert_close(weights(cached)[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for name in ("val/loss", "val/rewards/margins", "val/rouge1_reference"):
        torch.testing.assert_close(first.callback_metrics[name], second.callback_metrics[name], rtol=1e-3, atol=1e-4)
    assert (cached.reference is None) == (trained == "whole")
    assert ("val/kl" in second.callback_metrics) == (trained == "lora")
    caplog.clear()
    again, _ = fit("cached")
    assert "once for this model and these pairs" not in caplog.text
    assert_equal(weights(cached), weights(again))
    for file in (tmp_path / "cache").glob("reference-*.json"):
        file.write_text(file.read_text()[:-5])  # half a file
    caplog.clear()
    assert_equal(weights(cached), weights(fit("cached")[0]))
    assert "it is made anew" in caplog.text


@pytest.mark.slow
def test_other_weights_make_another_cache(make, tmp_path, tiny_base):
    for seed in (0, 1, 1):
        module, data, trainer = make("gpt2", dpo=DPOConfig(reference="cached"), trainer={"max_steps": 1})
        module.model_name_or_path = str(tiny_base("gpt2", seed=seed))
        trainer.fit(module, data)
    assert len(list((tmp_path / "cache").glob("reference-*.json"))) == 2


@pytest.mark.slow
def test_validation_writes_the_table_and_test_answers_before_and_after(make, tmp_path):
    module, data, trainer = make("t5", trainer={"limit_val_batches": 1.0, "callbacks": [BeforeAfterTable()]})
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    [file] = (tmp_path / "before_after").glob("*.csv")
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert "reward_before" not in rows[0]
    assert {"query", "response_before", "response_after"} <= rows[0].keys()
    for dpo in (DPOConfig(), DPOConfig(reference="cached"), DPOConfig(loss_type="simpo")):
        module, data, trainer = make("t5", dpo=dpo, reward=LengthReward(5))
        trainer.test(module, data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)
        found = trainer.callback_metrics
        assert {"test/loss", "test/reward", "test/reward_reference", "test/rouge1"} <= found.keys()
        before = {row["query"]: row["response_before"] for row in rows}
        assert {each.query: each.response_before for each in module.comparisons} == before
        assert {each.query: each.response_after for each in module.comparisons} == {
            row["query"]: row["response_after"] for row in rows
        }


def test_what_was_trained_is_no_reference(make):
    module, data, trainer = make("t5", dpo=DPOConfig(reference="cached"))
    trainer.fit(module, data)
    with pytest.raises(ParleyError, match="no longer what it was before training"):
        trainer.test(module, data)


@pytest.mark.parametrize("trained", ["whole", "lora"])
def test_a_checkpoint_exports_and_answers(make, tmp_path, trained, capsys):
    module, data, trainer = make("gpt2", trained)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    export(tmp_path / "end.ckpt", tmp_path / "out", merge=False, base_model=None, overwrite=False)
    assert main(["generate", str(tmp_path / "out"), "--prompt", "have a nice day", "--json"]) == 0
    assert capsys.readouterr().out


def test_what_does_not_fit_is_one_line(make, sample, tmp_path, base):
    module, _, trainer = make("t5")
    data = DialogSumDataModule(module.model_name_or_path, path=str(sample), cache_dir=str(tmp_path))
    with pytest.raises(ParleyError, match="DPOModule learns from pairs of answers, and DialogSumDataModule has single"):
        trainer.fit(module, data)
    with pytest.raises(ParleyError, match=r"encoder-only model \(bert\)"):
        DPOModule(base("bert")).configure_model()
    for settings, line in (
        ({"loss_type": "kto"}, "dpo.loss_type is 'kto'"),
        ({"beta": 0.0}, "dpo.beta is 0.0; it must be above 0"),
        ({"label_smoothing": 0.5}, "dpo.label_smoothing is 0.5"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "not for ipo"),
        ({"loss_type": "orpo", "rpo_alpha": 0.1}, "leave dpo.rpo_alpha out"),
        ({"sft_on": "all"}, "set dpo.rpo_alpha"),
        ({"reference": "disk"}, "one of model, cached"),
    ):
        with pytest.raises(ParleyError, match=line):
            DPOConfig(**settings)


def test_a_checkpoint_of_another_start_is_refused(make, tmp_path, tiny_base):
    module, data, trainer = make("t5")
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module, data, trainer = make("t5")
    module.model_name_or_path = str(tiny_base("t5", seed=1))
    with pytest.raises(ParleyError, match="started from other weights"):
        trainer.fit(module, data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)


def test_bf16_keeps_policy_and_reference_together_at_first(make):
    module, data, trainer = make("t5", trainer={"precision": "bf16-mixed", "max_steps": 1})
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["rewards/margins"]) == 0
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(0.6931, abs=1e-4)


def test_dropout_is_off_unless_it_is_wanted(make):
    for disable, trains in ((True, False), (False, True)):
        module, data, trainer = make("t5", disable_dropout=disable, trainer={"max_steps": 1})
        trainer.fit(module, data)
        assert module.policy.training == trains
        assert (float(trainer.callback_metrics["rewards/margins"]) == 0) == disable
