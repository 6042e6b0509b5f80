"""Files that are not what they should be: YAML, templates, names, tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from scripts.trial.inputs.case import Case
from scripts.trial.inputs.workshop import ROOT, SAMPLE, Workshop

DEEP = 5_000
LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
RECIPE = (ROOT / "configs" / "dialogsum_seq2seq.yaml").read_text(encoding="utf-8")
# What a file holds, and what the line must name besides the file.
YAML: dict[str, tuple[str | bytes, str]] = {
    "utf-16": (RECIPE.encode("utf-16"), ""),
    "latin-1": ("model:\n  class_path: Seq2SeqModülé\n".encode("latin-1"), ""),
    "binary": (bytes(range(256)) * 8, ""),
    "zero bytes": (b"model: \0\0\0\n", ""),
    "a checkpoint's bytes": (b"PK\x03\x04" + bytes(200), ""),
    "5,000 lists deep": ("[" * DEEP + "]" * DEEP, "deep"),
    "5,000 mappings deep": ("{a: " * DEEP + "1" + "}" * DEEP, "deep"),
    "5,000 block levels deep": ("".join(" " * n + "a:\n" for n in range(DEEP)), "deep"),
    "5,000 open brackets": ("[" * DEEP, ""),
    "refers to itself": ("model: &m\n  class_path: Seq2SeqModule\n  init_args: *m\n", "itself"),
    "a list in itself": ("trainer: &t [*t]\n", "itself"),
    "a billion laughs": (LAUGHS, "expands"),
    "a billion laughs inside": (RECIPE + LAUGHS.replace("a", "b"), "expands"),
    "a key twice": (RECIPE + "seed_everything: 7\n", "seed_everything.*twice"),
    "a key twice inside": ("trainer:\n  max_epochs: 1\n  max_steps: 5\n  max_epochs: 2\n", "max_epochs.*twice"),
    "tabs": ("trainer:\n\tmax_epochs: 1\n", ""),
    "an open quote": ("seed_everything: '42\n", ""),
    "empty": (b"", "no settings"),
    "comments alone": (b"# nothing\n", "no settings"),
    "a list": ("- 1\n- 2\n", ""),
    "a number": ("42\n", ""),
    "a text": ("just a text\n", ""),
    "two documents": (RECIPE + "---\nseed_everything: 1\n", ""),
    "an unknown reference": ("trainer: *nobody\n", ""),
    "a python object": ("trainer: !!python/object/apply:os.system ['touch broken-into']\n", ""),
    "an unknown setting": (RECIPE + "colour: red\n", "colour"),
    "an unknown setting inside": ("trainer:\n  max_epoch: 3\n", "max_epoch"),
    "a class that is not there": ("model:\n  class_path: NoSuchModule\n", "NoSuchModule"),
    "a class that is a number": ("model:\n  class_path: 7\n", "model"),
    "a class that is no Module": ("model:\n  class_path: collections.OrderedDict\n", "model"),
    "a date of month 13": ("seed_everything: 2026-13-45\n", "month"),
    "a number of 5,000 digits": (f"seed_everything: {'9' * 5000}\n", ""),
    "a section that is a text": ("trainer: fast\n", "trainer"),
    "a section that is a list": ("data: [1, 2]\n", "data"),
    "a callback that is a number": ("trainer:\n  callbacks: [7]\n", "callbacks"),
}
GOOD_YAML: dict[str, str | bytes] = {
    "a byte-order mark": b"\xef\xbb\xbf" + RECIPE.encode(),
    "a reference": RECIPE + "ckpt_path: &nothing null\nfresh_run: false\n",
    "a merged mapping": RECIPE.replace("trainer:\n", "trainer:\n  <<: {log_every_n_steps: 1}\n"),
    "Windows' line ends": RECIPE.replace("\n", "\r\n"),
}
# What the line must name.
TEMPLATES = {
    "no field": ("Summarise this", "template"),
    "a field that is not there": ("{nothing}", "nothing"),
    "an open brace": ("{dialogue", "template"),
    "a closing brace": ("dialogue}", "template"),
    "no name": ("{}", "template"),
    "a number": ("{0}", "template|data"),  # to YAML it is a mapping
    "an attribute": ("{dialogue.__class__}", "template"),
    "an index": ("{dialogue[0]}", "template"),
    "a conversion": ("{dialogue!z}", "template"),
    "a format": ("{dialogue:d}", "template"),
    "a width of 21 nines": ("{dialogue:" + "9" * 21 + "}", "template"),
    "a nested field": ("{dialogue:{nothing}}", "template|nothing"),
}
LONG = "n" * 300


def cases(workshop: Workshop) -> Iterator[Case]:
    yield from yaml_cases(workshop)
    yield from _templates(workshop)
    yield from _names(workshop)
    yield from _tables(workshop)


def yaml_cases(workshop: Workshop) -> Iterator[Case]:
    whole = workshop.words("seq2seq")
    for name, (content, said) in YAML.items():
        file = workshop.write(f"{name.replace(' ', '-')}.yaml", content)
        yield Case("yaml", name, ("fit", "-c", str(file), *whole[1:]), said or ".")
        if said and said != "no settings":  # presets are read by the same eyes
            words = ("generate", str(workshop.base("t5")), "--prompt", "x", "--preset", str(file))
            yield Case("yaml preset", name, words, "option|YAML")
    for name, good in GOOD_YAML.items():
        file = workshop.write(f"good-{name.replace(' ', '-')}.yaml", good)
        yield Case("yaml", f"good: {name}", ("fit", "-c", str(file), *whole[3:]), accepted=True)
    preset = workshop.write("good-preset.yaml", "do_sample: true\ntop_k: 5\nmax_new_tokens: 3\n")
    asked = ("generate", str(workshop.base("t5")), "--prompt", "x", "--preset", str(preset), "--min-new-tokens", "1")
    yield Case("yaml preset", "good: options", asked, accepted=True)


def _templates(workshop: Workshop) -> Iterator[Case]:
    setting = "data.init_args.template"
    for name, (template, said) in TEMPLATES.items():
        yield Case("template", name, workshop.words("seq2seq", {setting: template}), said)
        words: tuple[str, ...] = ("generate", str(workshop.base("t5")), "--prompt", "x", "--template", template)
        if said == "template":
            yield Case("template of generate", name, words, said)
    good = workshop.words("seq2seq", {setting: "Say {{it}} of {dialogue}: "})
    yield Case("template", "good: braces and a field", good, accepted=True)
    words = ("generate", str(workshop.base("t5")), "--prompt", "x", "--max-new-tokens=3", "--template", "Say {it}:")
    yield Case("template of generate", "good: a field", words, accepted=True)


def _names(workshop: Workshop) -> Iterator[Case]:
    """Names of 300 characters, with a zero, of a directory, of nothing, wherever a file or directory is named."""
    base, checkpoint = str(workshop.base("t5")), str(workshop.checkpoint())
    predictions = str(workshop.root / "files" / "predictions.jsonl")
    columns = ("--reference-column", "reference", "--prediction-column", "prediction")
    places: dict[str, tuple[str, ...]] = {
        "fit -c": ("fit", "-c", "{}"),
        "fit --ckpt_path": (*workshop.words("seq2seq"), "--ckpt_path={}.ckpt"),
        "fit data path": workshop.words("seq2seq", {"data.init_args.path": "{}"}),
        "fit model": workshop.words("seq2seq", {"model.init_args.model_name_or_path": "{}"}),
        "test --ckpt_path": (*workshop.words("seq2seq", command="test"), "--ckpt_path={}.ckpt"),
        "generate model": ("generate", "{}", "--prompt", "x"),
        "generate --input": ("generate", base, "--input", "{}.csv"),
        "generate --output": ("generate", base, "--prompt", "x", "--max-new-tokens", "3", "--output", "{}.csv"),
        "generate --data": ("generate", base, "--data", "{}"),
        "generate --preset": ("generate", base, "--prompt", "x", "--preset", "{}"),
        "chat model": ("chat", "{}"),
        "compare models": ("compare", "{}", base, "--data", str(SAMPLE), "--split", "test[:1]"),
        "score": ("score", "{}.csv", *columns),
        "report": ("report", "{}"),
        "report --output": ("report", str(workshop.run()), "--output", "{}.html"),
        "export --checkpoint": ("export", "--checkpoint", "{}", "--output", "out"),
        "export --output": ("export", "--checkpoint", checkpoint, "--output", "{}"),
        "init --corpus": ("init", "--output", "made", "--corpus", "{}"),
        "init --output": ("init", "--output", "{}", "--vocab-size", "400", "--hidden-size", "32", "--layers", "1"),
    }
    for place, words in places.items():
        shown = tuple(word.replace("{}", LONG) for word in words)
        yield Case("file name", f"{place}, 300 characters", shown, "n{200}|too long|too many characters")
    surrogate = os.fsdecode(b"\xff\xfe")
    for place in ("generate --input", "score", "report", "export --checkpoint"):
        shown = tuple(word.replace("{}", surrogate) for word in places[place])
        yield Case("file name", f"{place}, not UTF-8", shown, ".")
    yield Case("file name", "good: score", ("score", predictions, *columns), accepted=True)
    long = workshop.write(f"{'n' * 240}.jsonl", Path(predictions).read_bytes())
    yield Case("file name", "good: score, 240 characters", ("score", str(long), *columns), accepted=True)


def _tables(workshop: Workshop) -> Iterator[Case]:
    """Data that is no data, for fit and for score."""
    contents: dict[str, str | bytes] = {
        "empty.csv": "",
        "header.csv": "dialogue,summary,id\n",
        "utf-16.csv": "dialogue,summary\na,b\n".encode("utf-16"),
        "binary.csv": bytes(range(256)),
        "binary.parquet": bytes(range(256)),
        "empty.parquet": b"",
        "list.jsonl": "[1, 2]\n",
        "deep.jsonl": "[" * 100_000 + "\n",
        "cut.jsonl": '{"dialogue": "a", "summ\n',
        "numbers.jsonl": '{"dialogue": 1, "summary": 2, "id": 3}\n',
        "null.jsonl": '{"dialogue": null, "summary": null}\n',
        "nan.jsonl": '{"dialogue": NaN, "summary": Infinity}\n',
        "lists.jsonl": '{"dialogue": ["a"], "summary": {"b": "c"}}\n',
        "quotes.csv": 'dialogue,summary\n"a,b\n',
        "ragged.csv": "dialogue,summary\na,b,c\n",
        "twice.csv": "dialogue,dialogue,summary\na,b,c\n",
        "half.jsonl": '{"dialogue": "\\ud83d", "summary": "b"}\n',
        "other.csv": "question,answer\na,b\n",
        "table.xlsx": b"PK\x03\x04",
    }
    for name, content in contents.items():
        file = str(workshop.write(f"tables/{name}", content))
        splits = {f"data.init_args.{split}_split": "train" for split in ("train", "validation", "test")}
        yield Case("table", f"fit on {name}", workshop.words("seq2seq", {"data.init_args.path": file} | splits), ".")
        columns = ("--reference-column", "summary", "--prediction-column", "dialogue")
        if name != "other.csv":
            yield Case("table", f"score of {name}", ("score", file, *columns), ".")
    rows = "".join(f'{{"dialogue": "a day {n}", "summary": "a day {n}", "id": "{n}"}}\n' for n in range(9))
    file = str(workshop.write("tables/good.jsonl", rows))
    whole = {"data.init_args.path": file} | {f"data.init_args.{one}_split": "train" for one in ("train", "validation")}
    yield Case("table", "good: fit", workshop.words("seq2seq", whole), accepted=True)
