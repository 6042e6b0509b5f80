"""Loss, rewards and gradients are those of the installed TRL's trainers, on the same batch and weights."""

from __future__ import annotations

import importlib
import warnings

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.modules import DPOModule
from src.rl.preferences import DPOConfig

PAIRS = [
    {"prompt": "How are you today?", "chosen": " Very well, thank you.", "rejected": " No."},
    {"prompt": "Say", "chosen": " good day to everyone in this room", "rejected": " you are such a fool, all of you"},
    {
        "prompt": "What is the time, please?",
        "chosen": " Ten.",
        "rejected": " I do not know what you want.",
    },
]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def reference_of(base, path):
    """The same model somewhat changed, so that policy and reference differ."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


def rows_of(batch):
    """Prompt and answer of every row of a batch of TRL's: the chosen answers and then the rejected ones."""
    if "completion_mask" in batch:
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        answers = batch["completion_mask"].bool()
        return [(row[m & ~a].tolist(), row[a].tolist()) for row, m, a in zip(ids, mask, answers, strict=True)]
    rows = []
    for side in ("chosen", "rejected"):
        parts = (batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels"))
        for ids, mask, labels in zip(*parts, strict=True):
            rows.append((ids[mask.bool() & (labels == -100)].tolist(), ids[labels != -100].tolist()))
    return rows


def batch_of(rows, pad_token_id):
    """What a DataModule would make of the same rows."""

    def pad(rows, left=False):
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad_token_id)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            ids[place, span], mask[place, span] = torch.tensor(row), 1
        return ids, mask

    count = len(rows) // 2
    assert [prompt for prompt, _ in rows[:count]] == [prompt for prompt, _ in rows[count:]]
    (prompt_ids, prompt_mask) = pad([prompt for prompt, _ in rows[:count]], left=True)
    answer_ids, answer_mask = pad([answer for _, answer in rows])
    return {
        "prompt_ids": prompt_ids,
        "prompt_attention_mask": prompt_mask,
        "answer_ids": answer_ids,
        "answer_mask": answer_mask,
        "is_filler": [False] * count,
        "index": list(range(count)),
    }


def ours(policy, reference, batch, config):
    """Figures and gradients of a Module whose reference is another model."""
    module = DPOModule(str(reference), dpo=config)
    module.configure_model()  # the reference is what the model is now
    module.policy.load_state_dict(AutoModelForCausalLM.from_pretrained(policy).state_dict())
    loss, figures, pairs = module.loss_sums(batch, "train")
    (loss / pairs).backward()
    gradients = {name: parameter.grad for name, parameter in module.policy.named_parameters()}
    return {name: float(figure / pairs) for name, figure in figures.items()}, gradients


def theirs(policy, reference, path, **settings):
    """The same of TRL's trainer for the loss."""
    kind = settings.pop("kind")
    names = {"DPO": "trl", "CPO": "trl.experimental.cpo", "ORPO": "trl.experimental.orpo"}
    module = importlib.import_module(names[kind])
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    config = getattr(module, f"{kind}Config")(
        output_dir=str(path),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        per_device_train_batch_size=len(PAIRS),
        report_to="none",
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = getattr(module, f"{kind}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
            args=config,
            train_dataset=datasets.Dataset.from_list(PAIRS),
            processing_class=tokenizer,
            **({"ref_model": AutoModelForCausalLM.from_pretrained(reference)} if kind == "DPO" else {}),
        )
        [batch] = [trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])]
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    rows = rows_of(batch)
    kept = trainer._metrics["train"] if kind == "DPO" else trainer._stored_metrics["train"]
    figures = {name: float(values[-1]) for name, values in kept.items()}
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return figures | {"loss": float(loss.detach())}, gradients, rows


CASES = {
    "sigmoid": (DPOConfig(beta=0.3), {"kind": "DPO", "beta": 0.3, "loss_type": ["sigmoid"]}),
    "robust": (
        DPOConfig(loss_type="robust", label_smoothing=0.1),
        {"kind": "DPO", "loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "hinge": (DPOConfig(loss_type="hinge"), {"kind": "DPO", "loss_type": ["hinge"]}),
    "ipo": (DPOConfig(loss_type="ipo", beta=0.2), {"kind": "DPO", "beta": 0.2, "loss_type": ["ipo"]}),
    "rpo": (
        DPOConfig(rpo_alpha=0.7),
        {"kind": "DPO", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    ),
    "simpo": (
        DPOConfig(loss_type="simpo", beta=2.0, simpo_gamma=0.8, label_smoothing=0.1),
        {
            "kind": "CPO",
            "loss_type": "simpo",
            "beta": 2.0,
            "simpo_gamma": 0.8,
            "cpo_alpha": 0.0,
            "label_smoothing": 0.1,
        },
    ),
    "simpo with sft": (
        DPOConfig(loss_type="simpo", beta=2.0, rpo_alpha=0.5),
        {"kind": "CPO", "loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.5},
    ),
    "orpo": (DPOConfig(loss_type="orpo", beta=0.4), {"kind": "ORPO", "beta": 0.4}),
}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_loss_figures_and_gradients_are_trl_s(case, architecture, tiny_base, tmp_path):
    config, settings = CASES[case]
    base = tiny_base(architecture)
    reference = reference_of(base, tmp_path / "reference")
    expected, expected_gradients, rows = theirs(base, reference, tmp_path / "trl", **settings)
    batch = batch_of(rows, AutoTokenizer.from_pretrained(base).pad_token_id)
    figures, gradients = ours(base, reference, batch, config)
    for name in ("loss", *(name for name in figures if name in expected)):
        assert figures[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
            "logps/rejected"} <= figures.keys() & expected.keys()  # fmt: skip
    assert figures["rewards/margins"] != 0
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, **TOLERANCE, msg=name)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected_gradients.values())
