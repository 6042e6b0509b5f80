"""PPO by TRL 0.11.4, in a process of its own: `benchmarks/ppo.py` starts it with the overlays on PYTHONPATH."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model

from benchmarks.device import Device


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    device = Device(setting["device"])
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(setting["base"])
    model = AutoModelForSeq2SeqLM.from_pretrained(setting["base"])
    lora = LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"], task_type=TaskType.SEQ_2_SEQ_LM)
    policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(get_peft_model(model, lora), is_trainable=True)
    batch = len(setting["prompts"][0])
    precision = {"accelerator_kwargs": {"mixed_precision": "bf16"}} if setting["bf16"] else {}
    config = PPOConfig(
        learning_rate=1.41e-5, ppo_epochs=1, mini_batch_size=setting["minibatch_size"], batch_size=batch, **precision
    )
    trainer = PPOTrainer(config=config, model=policy, ref_model=create_reference_model(policy), tokenizer=tokenizer)

    def ids_of(prompts: list[str]) -> list[torch.Tensor]:
        return [tokenizer(prompt, return_tensors="pt").input_ids[0].to(device.torch) for prompt in prompts]

    figures = []
    generate(trainer, ids_of(setting["prompts"][0][:2]), setting["lengths"][0][:2], batched=setting["batched"])
    for prompts, lengths in zip(setting["prompts"], setting["lengths"], strict=False):
        queries = ids_of(prompts)
        start = device.now()
        responses = generate(trainer, queries, lengths, batched=setting["batched"])
        generated = device.now()
        trainer.step(queries, responses, [torch.tensor(float(len(response))) for response in responses])
        end = device.now()
        figures.append({"rollout": generated - start, "update": end - generated, "total": end - start})
    Path(setting["output"]).write_text(json.dumps(figures))


def generate(
    trainer: PPOTrainer, queries: list[torch.Tensor], lengths: list[int], *, batched: bool
) -> list[torch.Tensor]:
    """One response a query, of the length wanted: a prompt at a time as published, or all in one batch."""
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0}
    if batched:
        longest = {"min_new_tokens": max(lengths), "max_new_tokens": max(lengths)}
        responses = trainer.generate(
            queries, batch_size=len(queries), return_prompt=False, remove_padding=False, **options, **longest
        )
        return [ids[1 : length + 1] for ids, length in zip(responses, lengths, strict=True)]
    return [
        trainer.generate(query, min_new_tokens=length, max_new_tokens=length, **options).squeeze()[-length:]
        for query, length in zip(queries, lengths, strict=True)
    ]


if __name__ == "__main__":
    main()
