"""PPO: seconds of an iteration, Parley's beside TRL 0.11.4's, as published (a prompt at a time) and batched.

Same weights (a T5 from scratch with a LoRA of rank 32 on q and v), prompts, response lengths, minibatches and threads.
Parley runs as configs/trainer/cpu.yaml has it, in bf16 autocast, and in float32; TRL in float32 as published, and
batched under bf16 autocast too. The methods take turns, each round in another order; each has one iteration first that
nobody timed (as published, where an iteration is long, only two answers); figures are medians over all timed ones. TRL
0.11.4 was the last with PPO for encoder-decoders: `scripts/install_peers.sh` puts it and its transformers beside .venv;
where it is not there or does not run, it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig

from benchmarks.device import ROOT, Device
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE, Prompts, dialogues
from benchmarks.seq2seq import quieten
from benchmarks.shapes import FLAN_T5_BASE, add_shape, make_shaped, shape_of
from benchmarks.turns import Turns, chosen
from src.contracts import Example
from src.models.corpus import read_corpus
from src.models.rollout import RolloutOptions
from src.models.static_decoder import Engine
from src.modules import PPOModule
from src.rewards import LengthReward
from src.rl.config import PPOConfig

PEERS = [ROOT / ".peers" / "trl-0.11", ROOT / ".peers" / "transformers-4.45"]
SHORTEST, LONGEST = 24, 48
DIALOGUES = 768  # in the sample
ON_GPU = {
    "iterations": 1,
    "rounds": 1,
    "batch_size": 64,
    "minibatch_size": 16,
    "methods": [
        "Parley, static",
        "Parley",
        "TRL 0.11.4, batched",
        "TRL 0.11.4, batched, bf16",
        "TRL 0.11.4, as published",
    ],
    **FLAN_T5_BASE,
}


class Timed(Callback):
    """Keeps the seconds of every iteration.

    Args:
        device: What they are waited for on.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.figures: list[dict[str, float]] = []
        self.start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The first minibatch of an iteration makes the rollout."""
        if batch_idx % pl_module.minibatches == 0:
            self.start = self.device.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """What is neither sampling nor scoring is the update."""
        if (batch_idx + 1) % pl_module.minibatches == 0:
            total = self.device.now() - self.start
            rollout, reward = (float(trainer.callback_metrics[f"time/{phase}"]) for phase in ("rollout", "reward"))
            self.figures.append({"rollout": rollout, "update": total - rollout - reward, "total": total})


def ours(
    base: Path,
    prompts: list[list[str]],
    precision: str,
    device: Device,
    minibatch_size: int = 4,
    engine: Engine = "plain",
) -> list[dict[str, float]]:
    """Parley's iterations; lengths are drawn from the same range as the peers'."""
    module = PPOModule(
        str(base),
        LengthReward(30),
        lora=LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"]),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1.41e-5),
        ppo=PPOConfig(minibatch_size=minibatch_size),
        rollout=RolloutOptions(
            min_new_tokens=LONGEST, output_min_length=SHORTEST, output_max_length=LONGEST, engine=engine
        ),
    )
    examples = [Example(prompt, "-", ["-"]) for batch in prompts for prompt in batch]
    timed = Timed(device)
    Trainer(
        **device.trainer_options(precision), max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[timed],
    ).fit(module, Prompts(base, examples, len(prompts[0]), max_target_length=8))  # fmt: skip
    return timed.figures


def theirs(
    base: Path, prompts: list[list[str]], scratch: Path, args: argparse.Namespace, *, batched: bool, bf16: bool = False
) -> list[dict[str, float]]:
    """TRL 0.11.4's iterations.

    Raises:
        RuntimeError: It is not there or does not run.
    """
    if not all(path.is_dir() for path in PEERS):
        raise RuntimeError("TRL 0.11.4 is not there; `make peers` installs it.")
    draw = random.Random(0)
    setting = {
        "base": str(base),
        "prompts": prompts if batched else prompts[1:],
        "lengths": [[draw.randint(SHORTEST, LONGEST) for _ in batch] for batch in prompts],
        "batched": batched,
        "bf16": bf16,
        "minibatch_size": args.minibatch_size,
        "device": args.device.name,
        "output": str(scratch / "figures.json"),
    }
    (scratch / "setting.json").write_text(json.dumps(setting))
    paths = os.pathsep.join(map(str, (*PEERS, ROOT)))
    environment = os.environ | args.device.environment | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    # Without -P the modules beside the file would stand in for libraries of the same name.
    words = [sys.executable, "-P", str(Path(__file__).with_name("ppo_peer.py")), str(scratch / "setting.json")]
    result = subprocess.run(words, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"it ended with status {result.returncode}"]
        raise RuntimeError(said[-1])
    return json.loads((scratch / "figures.json").read_text())


def of_checkout(
    checkout: Path, base: Path, prompts: list[list[str]], precision: str, args: argparse.Namespace
) -> list[dict[str, float]]:
    """The iterations of another version of Parley, which has this benchmark too."""
    code = """
import inspect, json, sys
from pathlib import Path
from benchmarks import ppo
from benchmarks.seq2seq import quieten
given = json.loads(sys.stdin.read())
quieten()
more = {}
if "device" in inspect.signature(ppo.ours).parameters:
    from benchmarks.device import device_named
    more = {"device": device_named(given["device"]), "minibatch_size": given["minibatch_size"]}
elif (given["device"], given["minibatch_size"]) != ("cpu", 4):
    sys.exit("this version measures on a CPU alone, in minibatches of 4")
print(json.dumps(ppo.ours(Path(given["base"]), given["prompts"], given["precision"], **more)))
"""
    given = json.dumps(
        {
            "base": str(base),
            "prompts": prompts,
            "precision": precision,
            "device": args.device.name,
            "minibatch_size": args.minibatch_size,
        }
    )
    environment = os.environ | args.device.environment | {"PYTHONPATH": str(checkout)}
    result = subprocess.run(
        [sys.executable, "-c", code], input=given, env=environment, cwd=checkout, capture_output=True, text=True
    )
    if result.returncode:
        raise SystemExit(f"{checkout} failed: {result.stderr[-1500:]}")
    figures: list[dict[str, float]] = json.loads(result.stdout.strip().splitlines()[-1])
    return figures


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ppo", description=__doc__)
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations of each method in a round")
    parser.add_argument("--rounds", type=int, default=2, help="how often the methods take turns")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts an iteration")
    parser.add_argument("--checkout", type=Path, help="also time the Parley of this directory, such as a git worktree")
    parser.add_argument("--float32", action="store_true", help="leave bf16 out: not every CPU has instructions for it")
    parser.add_argument("--minibatch-size", type=int, default=4, help="responses in a forward and backward pass")
    parser.add_argument("--static", action="store_true", help="also rollout.engine: static")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these alone, by their names in the table")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=8000, gated=True)
    args = parse(parser, argv, on_gpu=ON_GPU)
    count = args.iterations + 1
    texts = dialogues(args.batch_size * max(count, DIALOGUES // args.batch_size))
    prompts = [
        [
            f"Summarize the following conversation.\n\n{text}\n\nSummary: "
            for text in texts[i :: len(texts) // args.batch_size][: args.batch_size]
        ]
        for i in range(count)
    ]
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_shaped("t5", read_corpus([SAMPLE]), base, shape_of(args))
        parley = partial(ours, base, prompts, device=args.device, minibatch_size=args.minibatch_size)
        peer = partial(theirs, base, prompts, Path(folder), args)
        methods: dict[str, Callable[[], list[dict[str, float]]]] = {
            "Parley": partial(parley, "bf16-mixed"),
            "Parley, float32": partial(parley, "32-true"),
            "Parley, static": partial(parley, "bf16-mixed", engine="static"),
            "Parley, static, float32": partial(parley, "32-true", engine="static"),
            "TRL 0.11.4, batched": partial(peer, batched=True),
            "TRL 0.11.4, batched, bf16": partial(peer, batched=True, bf16=True),
            "TRL 0.11.4, as published": partial(peer, batched=False),
        }
        if args.checkout is not None:
            methods |= {
                f"{args.checkout.name}{name}": partial(
                    of_checkout, args.checkout.resolve(), base, prompts, precision, args
                )
                for name, precision in (("", "bf16-mixed"), (", float32", "32-true"))
            }
        if not args.static and args.methods is None:
            methods = {name: run for name, run in methods.items() if "static" not in name}
        if args.float32:
            bf16 = {name for name in methods if name.endswith("bf16") or f"{name}, float32" in methods}
            methods = {name: run for name, run in methods.items() if name not in bf16}
        methods = chosen(methods, args.methods)
        turns = Turns(methods, lambda name: name.startswith("TRL"))
        played = turns.play(args.rounds)
    figures = {name: [each for found in played for each in found[name][-args.iterations :]] for name in turns.methods}
    medians = {
        name: {phase: statistics.median(each[phase] for each in rows) for phase in rows[0]}
        for name, rows in figures.items()
    }
    first = next(iter(methods))
    rows = [
        {
            "method": name,
            "rollout s": seconds["rollout"],
            "update s": seconds["update"],
            "iteration s": seconds["total"],
            f"{first} is faster by": seconds["total"] / medians[first]["total"],
        }
        for name, seconds in medians.items()
    ]
    title = f"PPO, {args.batch_size} prompts, {SHORTEST} to {LONGEST} tokens each"
    report(args, rows, title=title, left_out=turns.left_out)
