"""A model card: origin, training, evaluation, licences and limits of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
UNKNOWN = "not known to Parley: fill it in"
# Settings listed under training, unless they are null or empty.
TOLD = ("model.init_args.", "data.init_args.")
TOLD_OF_TRAINER = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")


@dataclass(frozen=True)
class Figure:
    """A measured metric.

    Attributes:
        name: The metric's name.
        value: Its mean.
        interval: The ends of its 95 % confidence interval, if there is one.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class CardFacts:
    """The facts that a card states.

    Attributes:
        name: The model's name.
        base: The directory or hub name that training started from.
        adapter: PEFT's name of the adapter type, such as `lora`, if the directory holds only an adapter.
        is_encoder_decoder: Whether the model has an encoder.
        parameters: The number of parameters of the model, or of the adapter.
        version: Parley's version.
        run: The run's directory; None if it is not known.
        step: Optimiser steps done; None if not known.
        settings: The run's settings, flattened; empty if not known.
        template: The text of the prompt template; None if not known.
        figures: The metrics of a test, or of validation.
        examples: The number of examples that they are over; None if not known.
        is_tested: Whether they are of a test.
        tested_on: The data that was tested on, which may be other than the training data.
        tested_split: The split of it that was tested on.
        license: The identifier that the user gave.
    """

    name: str
    base: str
    adapter: str | None
    is_encoder_decoder: bool
    parameters: int
    version: str
    run: str | None = None
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    figures: Sequence[Figure] = ()
    examples: int | None = None
    is_tested: bool = False
    tested_on: str | None = None
    tested_split: str | None = None
    license: str = "unknown"

    def setting(self, name: str) -> Any:
        """A setting by its name; None if it is not known."""
        return self.settings.get(name)

    @property
    def method(self) -> str | None:
        """The Module's class; None if the run is not known."""
        path = self.setting("model.class_path")
        return None if path is None else str(path).rpartition(".")[2]

    @property
    def data(self) -> str | None:
        """The training data, as `shown_place`; None if it is not known."""
        path = self.setting("data.init_args.path")
        return None if path is None else shown_place(str(path))


def shown_place(name: str) -> str:
    """A hub name or URL unchanged; of a local path only the last part, which gives nothing private away."""
    if "://" in name or (HUB_NAME.fullmatch(name) and not Path(name).expanduser().exists()):
        return name
    return Path(name).expanduser().name or name


def model_card(facts: CardFacts) -> str:
    """Write the card, as Markdown with the hub's metadata in front.

    Args:
        facts: The facts to state.
    """
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts), allow_unicode=True, sort_keys=False)}---\n",
        f"# {facts.name}\n",
        _summary(facts),
        "## How to use it\n",
        _usage(facts),
        "## What it was made of\n",
        _origins(facts),
        "## How it was trained\n",
        _training(facts),
        "## How good it is\n",
        _figures(facts),
        "## Licences\n",
        _licences(facts),
        "## Limits\n",
        _limits(facts),
    ]
    return "\n".join(parts)


def _metadata(facts: CardFacts) -> dict[str, Any]:
    base, data = shown_place(facts.base), facts.data
    found: dict[str, Any] = {"license": facts.license}
    if HUB_NAME.fullmatch(base):
        found["base_model"] = base
    if data is not None and HUB_NAME.fullmatch(data):
        found["datasets"] = [data]
    found["library_name"] = "peft" if facts.adapter else "transformers"
    found["pipeline_tag"] = "text-generation"
    found["tags"] = ["parley", *filter(None, (facts.method, facts.adapter))]
    if facts.figures and facts.is_tested and facts.tested_on is not None:
        tested_on = shown_place(facts.tested_on)
        metrics = [{"type": _kind(one.name), "name": one.name, "value": round(one.value, 4)} for one in facts.figures]
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"name": tested_on, "type": tested_on, "split": facts.tested_split or "test"},
            "metrics": metrics,
        }
        found["model-index"] = [{"name": facts.name, "results": [result]}]
    return found


def _kind(name: str) -> str:
    bare = name.rpartition("/")[2]
    return "rouge" if bare.startswith("rouge") else bare


def _summary(facts: CardFacts) -> str:
    what = "A PEFT adapter" if facts.adapter else "A model"
    kind = "encoder-decoder" if facts.is_encoder_decoder else "decoder-only"
    size = f"{facts.parameters:,} parameters" + (" of its own" if facts.adapter else "")
    return f"{what} ({kind}, {size}), trained from {_code(shown_place(facts.base))} with Parley {facts.version}.\n"


def _usage(facts: CardFacts) -> str:
    auto = "AutoModelForSeq2SeqLM" if facts.is_encoder_decoder else "AutoModelForCausalLM"
    lines = ["```python", f"from transformers import {auto}, AutoTokenizer"]
    if facts.adapter:
        lines += ["from peft import PeftModel", "", f'base = {auto}.from_pretrained("{shown_place(facts.base)}")']
        lines += [f'model = PeftModel.from_pretrained(base, "{facts.name}")']
    else:
        lines += ["", f'model = {auto}.from_pretrained("{facts.name}")']
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{facts.name}")', "```", ""]
    if facts.template is not None:
        lines += ["It was trained on prompts of this form, to the character:", ""]
        lines += ["```python", f"prompt = {facts.template!r}", "```", ""]
    return "\n".join(lines)


def _origins(facts: CardFacts) -> str:
    splits = {
        part: value
        for part in ("train", "validation", "test")
        if (value := facts.setting(f"data.init_args.{part}_split"))
    }
    data = UNKNOWN if facts.data is None else _code(facts.data)
    rows = [("base model", _code(shown_place(facts.base))), ("data", data)]
    rows += [(f"{part} split", _code(value)) for part, value in splits.items()]
    return _table(("", ""), rows)


def _training(facts: CardFacts) -> str:
    if not facts.settings:
        return f"The run is {UNKNOWN}.\n"
    told = {
        name: value
        for name, value in facts.settings.items()
        if (name.startswith(TOLD) or name in {f"trainer.{one}" for one in TOLD_OF_TRAINER} or name == "seed_everything")
        and value not in (None, False, [], {}, "")
    }
    rows = [
        ("method", _code(facts.method or UNKNOWN)),
        ("optimiser steps", UNKNOWN if facts.step is None else f"{facts.step:,}"),
    ]
    rows += [(_code(name), _code(_shown(value))) for name, value in told.items()]
    command = f"```sh\nparley fit -c {Path(facts.run).name}/config.yaml   # of the run\n```\n" if facts.run else ""
    return f"{command}\n{_table(('setting', 'value'), rows)}"


def _shown(value: Any) -> str:
    text = str(value)
    return shown_place(text) if isinstance(value, str) and "/" in text and "\n" not in text else text


def _figures(facts: CardFacts) -> str:
    if not facts.figures:
        return "Nothing was measured. `parley test` measures, and `parley export --figures RUN` puts it here.\n"
    rows = [
        (
            _code(one.name),
            f"{one.value:.4f}",
            "" if one.interval is None else f"{one.interval[0]:.4f} to {one.interval[1]:.4f}",
        )
        for one in facts.figures
    ]
    of = "validation, by which the model may have been chosen"
    if facts.is_tested:
        place = UNKNOWN if facts.tested_on is None else _code(shown_place(facts.tested_on))
        of = f"the split {_code(facts.tested_split or 'test')} of {place}"
    count = "" if facts.examples is None else f", {facts.examples:,} examples"
    heading = f"Of {of}{count}; intervals are 95 % bootstraps over examples.\n"
    return f"{heading}\n{_table(('metric', 'value', '95 % interval'), rows)}"


def _licences(facts: CardFacts) -> str:
    given = f"`{facts.license}`" if facts.license != "unknown" else UNKNOWN
    rows = [
        ("this model", given),
        (f"base model {_code(shown_place(facts.base))}", UNKNOWN),
        (f"data {_code(facts.data)}" if facts.data else "data", UNKNOWN),
    ]
    return _table(("of", "licence"), rows) + "\nA model may not be used more freely than what it was made of.\n"


def _limits(facts: CardFacts) -> str:
    longest = facts.setting("data.init_args.max_source_length")
    lines = [
        "- It was trained for one kind of prompt, above; others were not tried.",
        "- What it says may be wrong, and it repeats what its base and its data have of prejudice and insult.",
    ]
    if longest is not None:
        lines.append(f"- Prompts of more than {longest:,} tokens were cut in training.")
    if any(_kind(one.name) == "rouge" for one in facts.figures):
        lines.append("- ROUGE counts words that a person used too; it does not see whether an answer is true.")
    if not facts.is_tested:
        lines.append("- It was not tested on data that had no part in training or in choosing it.")
    if facts.setting("model.init_args.reward.class_path"):
        lines.append("- It was trained to please a reward, and may have found ways to do so that nobody meant.")
    return "\n".join(lines) + "\n"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(value: Any) -> str:
    text = str(value).replace("\n", "\\n").replace("`", "'")
    return f"`{text}`"
