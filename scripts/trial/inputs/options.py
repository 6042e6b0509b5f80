"""The options of every command besides the trainer's: numbers out of range, contradictions, what is not there."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.trial.inputs.case import Case
from scripts.trial.inputs.workshop import SAMPLE, SIZES, Workshop

NINES = "9" * 21
COUNT, AMOUNT = ("0", "-1", "1.5", "three", "", NINES), ("-1", "1.5", "three", NINES)
SEED = ("-1", "1.5", "9" * 20)
FINITE = ("nan", "inf", "-inf", "three")
DECODING = {
    "max-new-tokens": COUNT,
    "min-new-tokens": AMOUNT,
    "num-beams": COUNT,
    "num-return-sequences": COUNT,
    "no-repeat-ngram-size": AMOUNT,
    "repetition-penalty": (*FINITE, "0", "-1"),
    "length-penalty": FINITE,
    "temperature": (*FINITE, "0", "-1"),
    "top-k": AMOUNT,
    "top-p": (*FINITE, "0", "-0.5", "1.5"),
    "seed": SEED,
}
ASKING = {
    "limit": COUNT,
    "shots": AMOUNT,
    "batch-size": COUNT,
    "max-source-length": COUNT,
    "data-seed": SEED,
}
INIT = {
    "hidden-size": (*COUNT, "33"),
    "layers": COUNT,
    "heads": COUNT,
    "feed-forward-size": COUNT,
    "vocab-size": (*COUNT, "5"),
    "max-positions": COUNT,
    "seed": SEED,
}


def cases(workshop: Workshop) -> Iterator[Case]:
    yield from _numbers(workshop)
    yield from _contradictions(workshop)


def _numbers(workshop: Workshop) -> Iterator[Case]:
    t5, adapter, run = str(workshop.base("t5")), str(workshop.root / "adapter"), str(workshop.run())
    data = ("--data", str(SAMPLE), "--split", "test[:2]", "--max-new-tokens", "3")
    size = SIZES.split()
    gpt2 = ("init", "--output", "made", "--architecture", "gpt2", *size)
    groups: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]] = {
        "generate": (
            ("generate", t5, "--prompt", "a day"),
            DECODING,
            ("--max-new-tokens=3", "--min-new-tokens=1", "--top-k=5", "--seed=0", "--temperature=0.7"),
        ),
        "generate data": (
            ("generate", t5, *data),
            ASKING,
            ("--limit=1", "--shots=0", "--batch-size=2", "--data-seed=1", "--max-source-length=9"),
        ),
        "chat": (("chat", t5), {"context": (*COUNT, "1"), "history": AMOUNT}, ("--context=40", "--history=0")),
        "compare": (
            ("compare", t5, adapter, *data),
            {"show": AMOUNT, "limit": COUNT, "batch-size": COUNT},
            ("--show=0", "--limit=1", "--batch-size=1"),
        ),
        "report": (("report", run), {"examples": AMOUNT}, ("--examples=0",)),
        "init": (gpt2, INIT, ("--max-positions=64", "--seed=3")),
    }
    for name, (words, numbers, good) in groups.items():
        for option, values in numbers.items():
            for value in values:
                yield Case(f"option of {name}", f"--{option}={value}", (*words, f"--{option}={value}"), _named(option))
        yield Case(f"option of {name}", f"good: {' '.join(good)}", (*words, *good), accepted=True)
    for value in AMOUNT:  # of demo there is no good case: it takes minutes, and has a test of its own
        yield Case("option of demo", f"--examples={value}", ("demo", f"--examples={value}"), "examples")


def _named(option: str) -> str:
    return option.replace("-", "[-_ ]")


def _contradictions(workshop: Workshop) -> Iterator[Case]:
    t5, gpt2 = str(workshop.base("t5")), str(workshop.base("gpt2"))
    adapter, run, checkpoint = str(workshop.root / "adapter"), str(workshop.run()), str(workshop.checkpoint())
    predictions = str(workshop.root / "files" / "predictions.jsonl")
    ask = ("generate", t5, "--prompt", "a day")
    score = ("score", predictions, "--reference-column", "reference", "--prediction-column")
    wrong: dict[tuple[str, ...], str] = {
        ("dance",): "dance|choose",
        ("generate",): "MODEL",
        ("generate", "nothing-of-the-kind", "--prompt", "x"): "nothing-of-the-kind",
        ("generate", run, "--prompt", "x"): "run",
        ("generate", t5, "--prompt", ""): "prompt",
        ("generate", t5, "--prompt", "   "): "prompt",
        ("generate", t5, "--prompt", "\udcff"): "prompt|half a character",
        (*ask, "--device", "toaster"): "toaster",
        (*ask, "--device", "cuda:99"): "cuda",
        (*ask, "--dtype", "float7"): "dtype",
        (*ask, "--gguf-file", "none.gguf"): "none.gguf",
        (*ask, "--base-model", t5): "base-model",
        (*ask, "--format", "chat"): "chat|format|encoder-decoder",
        (*ask, "--system", "be nice"): "system",
        (*ask, "--output", "answers.docx"): "docx|.jsonl",
        (*ask, "--output", "nowhere/answers.csv"): "nowhere",
        (*ask, "--tour", "--preset", "greedy"): "tour",
        (*ask, "--preset", "nonsense"): "nonsense",
        (*ask, "--bad-word", ""): "bad_words",
        (*ask, "--stop", ""): "stop_strings",
        (*ask, "--input", predictions): "input",
        (*ask, "--num-return-sequences", "3"): "num_return_sequences",
        (*ask, "--min-new-tokens", "9", "--max-new-tokens", "3"): "min_new_tokens",
        ("generate", t5, "--input", predictions, "--column", "nothing"): "nothing",
        ("generate", t5, "--data", str(SAMPLE), "--split", "nothing"): "nothing",
        ("generate", t5, "--data", str(SAMPLE), "--split", "test["): r"test\[",
        ("generate", t5, "--data", str(SAMPLE), "--split", "test[5:5]"): "empty",
        ("generate", t5, "--data", str(SAMPLE), "--split", f"test[:{NINES}%%]"): "split",
        ("generate", t5, "--data", "/nowhere"): "nowhere",
        ("generate", t5, "--input", predictions, "--shots", "2"): "shots",
        ("chat", adapter, "--base-model", gpt2): ".",
        ("compare", t5, adapter, "--data", str(SAMPLE), "--split", "nothing"): "nothing",
        ("compare", t5): "two models",
        ("compare", t5, adapter): "input|data",
        (*score, "nothing"): "nothing",
        (*score, "prediction", "--confidence"): "confidence",
        ("score", predictions): "reference-column",
        ("report", "/nowhere"): "nowhere",
        ("report", str(workshop.root / "adapter")): "no run|metrics",
        ("report", run, run): "twice",
        ("report", run, "--output", "page.pdf"): "html",
        ("export", "--checkpoint", checkpoint, "--output", t5): "base-t5",
        ("export", "--checkpoint", checkpoint, "--output", "out", "--base-model", "/nowhere"): ".",
        ("export", "--checkpoint", t5, "--output", "out"): "checkpoint",
        ("init", "--output", t5, *SIZES.split()): "base-t5",
        ("init", "--output", "made", "--architecture", "nonsense"): "architecture",
        ("init", "--output", "made", "--corpus", "/nowhere"): "nowhere",
        ("init", "--output", "made", "--max-positions", "64", *SIZES.split()): "max-positions",
        ("init", "--output", "made", "--architecture", "gpt2", "--untied-head", *SIZES.split()): "untied-head",
        ("fit",): "recipe|-c",
        ("fit", "-c"): "config|-c",
        ("fit", "-c", "/nowhere.yaml"): "nowhere",
        (*workshop.words("seq2seq"), "--ckpt_path=/nowhere.ckpt"): "nowhere",
        (*workshop.words("seq2seq"), "--ckpt_path=best"): "best",
        (*workshop.words("seq2seq", command="test"), "--ckpt_path=last"): "checkpoint",
        workshop.words("seq2seq", {"model.init_args.colour": "red"}): "colour",
        workshop.words("seq2seq", {"model": "CausalLMModule"}): "Seq2SeqModule",
        workshop.words("seq2seq", {"data.init_args.train_split": "train[9:9]"}): "empty",
        workshop.words("seq2seq", {"data.init_args.format": "nonsense"}): "format",
        workshop.words("seq2seq", {"trainer.accelerator": "toaster"}): "accelerator|toaster",
        workshop.words("seq2seq", {"trainer.strategy": "nonsense"}): "strategy|nonsense",
        workshop.words("seq2seq", {"trainer.precision": "7-true"}): "precision",
        workshop.words("seq2seq", {"trainer.logger": "NoSuchLogger"}): "NoSuchLogger|logger",
        workshop.words("lora", {"model.init_args.lora.target_modules": "[nothing]"}): "nothing",
        workshop.words("ppo", {"model.init_args.reward": "NoSuchReward"}): "NoSuchReward|reward",
        workshop.words("grpo", {"model.init_args.grpo.loss_type": "nonsense"}): "loss_type",
        workshop.words("grpo", {"model.init_args.grpo.scale_rewards": "nonsense"}): "scale_rewards",
        workshop.words("ppo", {"model.init_args.ppo.kl_penalty": "nonsense"}): "kl_penalty",
        workshop.words("rloo", {"trainer.accumulate_grad_batches": "5"}): "accumulate_grad_batches",
    }
    for words, said in wrong.items():
        yield Case("contradiction", " ".join(words[:2] + words[-2:])[:120], words, said)
    yield Case("contradiction", "good: score", (*score, "prediction"), accepted=True)
    answers = ("generate", t5, "--input", predictions, "--max-new-tokens", "3", "--output", "answers.csv")
    yield Case("contradiction", "good: generate a file", answers, accepted=True)
