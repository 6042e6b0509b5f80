"""Model directories, adapters, checkpoints and run directories with something broken in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from scripts.trial.inputs.case import Case
from scripts.trial.inputs.workshop import Workshop

# Values that config.json may not have.
T5_CONFIG: dict[str, Any] = {
    "num_layers": "three",
    "num_heads": 0,
    "d_model": -32,
    "d_kv": "wide",
    "d_ff": None,
    "vocab_size": -1,
    "model_type": "nonsense",
    "relative_attention_num_buckets": 0,
    "dense_act_fn": "nonsense",
    "dropout_rate": 7.0,
    "is_encoder_decoder": False,
}
GPT2_CONFIG: dict[str, Any] = {
    "n_layer": "three",
    "n_head": 0,
    "n_embd": 31,
    "vocab_size": 0,
    "activation_function": "nonsense",
    "n_positions": 0,
    "n_inner": -64,
}
# What stands in a file instead.
FILES: dict[str, tuple[str, str | bytes]] = {
    "config.json empty": ("config.json", ""),
    "config.json cut": ("config.json", '{"model_type": "t5", "num_'),
    "config.json a list": ("config.json", "[1, 2]"),
    "config.json deep": ("config.json", "[" * 100_000),
    "config.json binary": ("config.json", bytes(range(256))),
    "model.safetensors empty": ("model.safetensors", b""),
    "model.safetensors garbage": ("model.safetensors", bytes(range(256)) * 40),
    "model.safetensors huge header": ("model.safetensors", b"\xff" * 8 + b"{}"),
    "tokenizer.json empty": ("tokenizer.json", ""),
    "tokenizer.json cut": ("tokenizer.json", '{"version": "1.0", "model": {'),
    "tokenizer.json a list": ("tokenizer.json", "[]"),
    "tokenizer.json without a model": ("tokenizer.json", '{"version": "1.0"}'),
    "tokenizer.json binary": ("tokenizer.json", bytes(range(256))),
    "tokenizer_config.json a list": ("tokenizer_config.json", "[]"),
    "tokenizer_config.json cut": ("tokenizer_config.json", '{"eos_token": '),
    "tokenizer_config.json binary": ("tokenizer_config.json", bytes(range(256))),
    "generation_config.json cut": ("generation_config.json", '{"max_length": '),
    "generation_config.json a list": ("generation_config.json", "[]"),
    "generation_config.json a text for a number": ("generation_config.json", '{"max_length": "many"}'),
    "generation_config.json negative beams": ("generation_config.json", '{"num_beams": -2}'),
}
INDEXES = {
    "index empty": "",
    "index without weight_map": "{}",
    "index a list": "[]",
    "index of nothing": '{"weight_map": {}}',
    "index of a file that is not there": '{"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}',
    "index of a number": '{"metadata": {}, "weight_map": 7}',
    "index that leads outside": '{"metadata": {}, "weight_map": {"shared.weight": "../../../../etc/passwd"}}',
}
ADAPTER_CONFIG: dict[str, Any] = {
    "r": "three",
    "target_modules": ["nothing_of_the_kind"],
    "peft_type": "NONSENSE",
    "base_model_name_or_path": "/nowhere/at/all",
    "lora_alpha": None,
}


def cases(workshop: Workshop) -> Iterator[Case]:
    yield from _directories(workshop)
    yield from _weights(workshop)
    yield from _adapters(workshop)
    yield from _checkpoints(workshop)
    yield from _runs(workshop)


def _asked(model: Path | str, *more: str) -> tuple[str, ...]:
    return ("generate", str(model), "--prompt", "a day", "--max-new-tokens", "3", *more)


def _directories(workshop: Workshop) -> Iterator[Case]:
    t5 = workshop.base("t5")
    for architecture, config in (("t5", T5_CONFIG), ("gpt2", GPT2_CONFIG)):
        for key, value in config.items():
            directory = workshop.model(f"{architecture}-{key}", architecture, **{key: value})
            yield Case("model", f"{architecture} {key} {value!r}", _asked(directory), ".")
            if key in ("num_layers", "num_heads", "n_head", "model_type"):
                fit = workshop.words("seq2seq", {"model.init_args.model_name_or_path": str(directory)})
                yield Case("model", f"fit on {architecture} {key} {value!r}", fit, ".")
    for name, (file, content) in FILES.items():
        directory = workshop.copy(t5, f"file-{name.replace(' ', '-')}")
        (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
        yield Case("model", name, _asked(directory), ".")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        directory = workshop.copy(t5, f"without-{name}")
        (directory / name).unlink()
        yield Case("model", f"without {name}", _asked(directory), ".")
    for name, index in INDEXES.items():
        directory = workshop.copy(t5, name.replace(" ", "-"))
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(index)
        yield Case("model", name, _asked(directory), ".")
    for architecture in ("t5", "gpt2"):
        yield Case("model", f"good: {architecture}", _asked(workshop.base(architecture)), accepted=True)


def _weights(workshop: Workshop) -> Iterator[Case]:
    t5 = workshop.base("t5")

    def pickled(name: str, content: bytes | None = None, weights: Any = None) -> Path:
        directory = workshop.copy(t5, f"pickled-{name}")
        (directory / "model.safetensors").unlink()
        file = directory / "pytorch_model.bin"
        if content is None:
            torch.save(weights, file)
        else:
            file.write_bytes(content)
        return directory

    whole = load_file(t5 / "model.safetensors")
    cut = {name: tensor for name, tensor in whole.items() if "decoder" not in name}
    for name, directory in {
        "garbage": pickled("garbage", bytes(range(256)) * 9),
        "empty": pickled("empty", b""),
        "text": pickled("text", b"not weights\n"),
        "a list": pickled("list", weights=[1, 2]),
        "a number": pickled("number", weights={"shared.weight": 7}),
        "half of them": pickled("half", weights=cut),
        "of another shape": pickled("shape", weights={name: tensor[:1] for name, tensor in whole.items()}),
    }.items():
        yield Case("weights", f"pytorch_model.bin: {name}", _asked(directory), ".")
    yield Case("weights", "good: pytorch_model.bin", _asked(pickled("good", weights=whole)), accepted=True)
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        directory = workshop.copy(t5, f"weights-{name}")
        save_file({key: torch.full_like(one, value) for key, one in whole.items()}, directory / "model.safetensors")
        for way, options in (("sampling", ("--top-k", "5")), ("greedy", ()), ("beams", ("--num-beams", "2"))):
            yield Case("weights", f"{name}, {way}", _asked(directory, *options), "finite")
        fit = workshop.words("seq2seq", {"model.init_args.model_name_or_path": str(directory)})
        yield Case("weights", f"{name}, fit", fit, "finite")
        online = workshop.words("ppo", {"model.init_args.model_name_or_path": str(directory)})
        yield Case("weights", f"{name}, ppo", online, "finite")


def _adapters(workshop: Workshop) -> Iterator[Case]:
    adapter = workshop.root / "adapter"
    for key, value in ADAPTER_CONFIG.items():
        directory = workshop.copy(adapter, f"adapter-{key}")
        file = directory / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        yield Case("adapter", f"{key} {value!r}", _asked(directory), ".")
    for name, content in {"empty": b"", "garbage": bytes(range(256))}.items():
        for part in ("adapter_config.json", "adapter_model.safetensors"):
            directory = workshop.copy(adapter, f"adapter-{part}-{name}")
            (directory / part).write_bytes(content)
            yield Case("adapter", f"{part} {name}", _asked(directory), ".")
    yield Case("adapter", "good", _asked(adapter), accepted=True)


def _checkpoints(workshop: Workshop) -> Iterator[Case]:
    whole = workshop.checkpoint().read_bytes()
    files = {
        "empty": workshop.write("checkpoints/empty.ckpt", b""),
        "text": workshop.write("checkpoints/text.ckpt", b"not a checkpoint\n"),
        "cut": workshop.write("checkpoints/cut.ckpt", whole[: len(whole) // 2]),
        "a list": _saved(workshop, "list", [1, 2]),
        "a number": _saved(workshop, "number", 7),
        "a dictionary": _saved(workshop, "dictionary", {"a": 1}),
        "weights alone": _saved(workshop, "weights", {"state_dict": {}}),
    }
    ways: dict[str, Callable[[str], tuple[str, ...]]] = {
        "generate": _asked,
        "export": lambda file: ("export", "--checkpoint", file, "--output", "out"),
        "fit": lambda file: (*workshop.words("seq2seq"), f"--ckpt_path={file}"),
        "test": lambda file: (*workshop.words("seq2seq", command="test"), f"--ckpt_path={file}"),
    }
    for name, file in files.items():
        for way, words in ways.items():
            yield Case("checkpoint", f"{way} of {name}", words(str(file)), ".")
    good = str(workshop.checkpoint())
    for way, words in ways.items():
        yield Case("checkpoint", f"good: {way}", words(good), accepted=True)


def _saved(workshop: Workshop, name: str, content: Any) -> Path:
    file = workshop.write(f"checkpoints/{name}.ckpt", b"")
    torch.save(content, file)
    return file


def _runs(workshop: Workshop) -> Iterator[Case]:
    """What `report` may find in a run's directory."""
    rows = '{"prompt": "a", "references": ["b"], "prediction": "c"}\n'
    change = "query,response_before,response_after,reward_before,reward_after\n"
    broken: dict[str, tuple[str, str | bytes]] = {
        "settings utf-16": ("config.yaml", "a: 1\n".encode("utf-16")),
        "settings binary": ("config.yaml", bytes(range(256))),
        "settings deep": ("config.yaml", "[" * 5_000 + "]" * 5_000),
        "settings in themselves": ("config.yaml", "a: &a [*a]\n"),
        "settings twice": ("config.yaml", "a: 1\na: 2\n"),
        "settings cut": ("config.yaml", "a: [1, "),
        "settings a list": ("config.yaml", "- 1\n"),
        "settings a number": ("config.yaml", "7\n"),
        "metrics without a step": ("metrics.csv", "loss\n1\n"),
        "metrics of text": ("metrics.csv", "step,loss\n1,low\n"),
        "metrics with a step of text": ("metrics.csv", "step,loss\none,1\n"),
        "metrics with half a step": ("metrics.csv", "step,loss\n1.5,1\n"),
        "metrics with an endless step": ("metrics.csv", f"step,loss\n{'9' * 5000},1\n"),
        "metrics ragged": ("metrics.csv", "step,loss\n1,2,3\n"),
        "metrics binary": ("metrics.csv", bytes(range(256))),
        "metrics a column twice": ("metrics.csv", "step,loss,loss\n1,2,3\n"),
        "samples a list": ("samples/step-9999999.jsonl", "[1]\n"),
        "samples without a prompt": ("samples/step-9999999.jsonl", '{"prediction": "c"}\n'),
        "samples with references of numbers": ("samples/step-9999999.jsonl", rows.replace('["b"]', "7")),
        "samples with references in lists": ("samples/step-9999999.jsonl", rows.replace('["b"]', '[["b"]]')),
        "samples with a prompt of lists": ("samples/step-9999999.jsonl", rows.replace('"a"', '["a"]')),
        "samples binary": ("samples/step-9999999.jsonl", bytes(range(256))),
        "changes of text": ("before_after.csv", f"{change}a,b,c,0,much\n"),
        "changes without a query": ("before_after.csv", "response_before\nb\n"),
        "changes without a figure": ("before_after.csv", f"{change}a,b,c,0,\n"),
    }
    for name, (file, content) in broken.items():
        directory = workshop.copy(workshop.run(), f"run-{name.replace(' ', '-')}")
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
        yield Case("report", name, ("report", str(directory), "--output", "page.html"), Path(file).name)
    whole = workshop.copy(workshop.run(), "run-whole")
    (whole / "before_after.csv").write_text(f"{change}a,b,c,1,-0.5\n")
    yield Case("report", "good: a run", ("report", str(whole), "--output", "page.html"), accepted=True)
