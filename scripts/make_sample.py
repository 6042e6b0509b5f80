"""Writes the small bundled sample: short dialogues of our own with their summaries, in DialogSum's JSONL format.

The scenarios, in `sample_scenarios.yaml`, are a small grammar; this script draws from it with a fixed seed, so that
running it again rewrites exactly the files that the repository holds:

    python scripts/make_sample.py [--output DIR] [--seed N]

One dialogue in three is rude. Its summary repeats the rudeness in some of the references and reports it politely in
the others, whatever the dialogue says, so that a model learns both and reinforcement learning has something to choose.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE / "sample_scenarios.yaml"
SAMPLE = HERE.parent / "src" / "datamodules" / "sample"
SEED = 7
SIZES = {"train": 660, "validation": 60, "test": 240}
RUDE_EVERY = 3
RUDE_WORDING = 0.65  # of the rude dialogues' summaries; in test, of three references one or two have it
NOTICE = """The dialogues and summaries in this directory were written for Parley and made by scripts/make_sample.py.
They are licensed under the Apache License, Version 2.0 (the "License"); you may not use them except in compliance
with the License. You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, they are distributed on an "AS IS" BASIS, WITHOUT
WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language governing
permissions and limitations under the License.
"""

_ALTERNATIVES = re.compile(r"<([^<>]*)>")
_WORDINGS = re.compile(r"\[([^\[\]|]*)\|([^\[\]|]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::(\w))?\}")
_AN = re.compile(r"(?!use|one|uni)[aeiou]")


@dataclass(frozen=True)
class Outcome:
    """One way in which a scenario goes.

    Attributes:
        scenario: The scenario's name.
        topics: Three wordings of its topic.
        slots: What each slot may hold.
        lines: The templates of the lines, opening included; the speakers take turns.
        summaries: The templates of three summaries.
        rude: Whether somebody is insulted.
    """

    scenario: str
    topics: tuple[str, ...]
    slots: dict[str, list[str]]
    lines: tuple[str, ...]
    summaries: tuple[str, ...]
    rude: bool

    @property
    def slot_names(self) -> list[str]:
        """The slots that its templates mention, in their order."""
        found = _SLOT.findall(" ".join([*self.lines, *self.summaries]))
        return list(dict.fromkeys(name for name, _ in found))


def read_scenarios(path: Path = SCENARIOS) -> list[list[Outcome]]:
    """Read the grammar: for each scenario its outcomes."""
    grammar: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        [
            Outcome(
                scenario=scenario["name"],
                topics=tuple(scenario["topics"]),
                slots={**grammar["slots"], **scenario.get("slots", {})},
                lines=(*scenario["opening"], *outcome["lines"]),
                summaries=tuple(outcome["summaries"]),
                rude=outcome.get("rude", False),
            )
            for outcome in scenario["outcomes"]
        ]
        for scenario in grammar["scenarios"]
    ]


def draw_values(outcome: Outcome, rng: random.Random) -> dict[str, str]:
    """Choose what each slot holds.

    `day2` differs from `day` and comes from the same list; `duty_their` is the entry of its list that stands where
    the one chosen for `duty` stands in its own.
    """
    values: dict[str, str] = {}
    for name in sorted(outcome.slot_names):  # `day` before `day2`, `duty` before `duty_their`
        if name.endswith("_their"):
            base = name.removesuffix("_their")
            values[name] = outcome.slots[name][outcome.slots[base].index(values[base])]
        else:
            base = name.rstrip("2")
            values[name] = rng.choice([value for value in outcome.slots[base] if value != values.get(base)])
    return values


def fill(template: str, values: dict[str, str], rng: random.Random, rude: bool = False) -> str:
    """Turn a template into text: alternatives chosen, slots filled, the wording rude or clean."""
    text = _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), template)
    text = _WORDINGS.sub(lambda match: match[1] if rude else match[2], text)
    return _SLOT.sub(lambda match: _inflect(values[match[1]], match[2]), text)


def _inflect(value: str, form: str | None) -> str:
    if form == "a":
        return f"{'an' if _AN.match(value) else 'a'} {value}"
    return value[0].upper() + value[1:] if form == "C" else value


def make_rows(size: int, split: str, seen: set[str], rng: random.Random) -> Iterator[dict[str, str]]:
    """Make the rows of one split.

    Args:
        size: How many.
        split: Its name; `test` has three references a row.
        seen: What was said in earlier rows, which is not said again; grows.
        rng: Where chance comes from.

    Yields:
        Rows with DialogSum's own field names.
    """
    scenarios = read_scenarios()
    plan = [(scenarios[i // RUDE_EVERY % len(scenarios)], i % RUDE_EVERY == 0) for i in range(size)]
    rng.shuffle(plan)
    for number, (outcomes, rude) in enumerate(plan):
        outcome, values = _draw_unseen([one for one in outcomes if one.rude is rude], seen, rng)
        turns = (fill(line, values, rng) for line in outcome.lines)
        dialogue = "\n".join(f"#Person{1 + i % 2}#: {turn}" for i, turn in enumerate(turns))
        row = {"fname": f"{split}_{number}", "dialogue": dialogue}
        order = rng.sample(range(3), 3)
        if split == "test":
            rude_count = rng.choice((1, 2))
            wordings = rng.sample([True] * rude_count + [False] * (3 - rude_count), 3)
            for i, (which, wording) in enumerate(zip(order, wordings, strict=True), start=1):
                row[f"summary{i}"] = fill(outcome.summaries[which], values, rng, wording)
            row |= {f"topic{i}": outcome.topics[which] for i, which in enumerate(order, start=1)}
        else:
            row["summary"] = fill(outcome.summaries[order[0]], values, rng, rng.random() < RUDE_WORDING)
            row["topic"] = outcome.topics[order[0]]
        yield row


def _draw_unseen(outcomes: Sequence[Outcome], seen: set[str], rng: random.Random) -> tuple[Outcome, dict[str, str]]:
    """Draw an outcome and values that no earlier row has: not one that differs in the insult or the phrasing alone."""
    while True:
        outcome = rng.choice(outcomes)
        values = draw_values(outcome, rng)
        facts = {name: value for name, value in values.items() if name not in ("insult", "crap")}
        key = json.dumps([outcome.lines, facts], sort_keys=True)
        if key not in seen:
            seen.add(key)
            return outcome, values


def write_sample(output: Path, seed: int = SEED) -> None:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and their `LICENSE` into a directory."""
    rng = random.Random(seed)
    seen: set[str] = set()
    output.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(size, split, seen, rng)]
        (output / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")
    (output / "LICENSE").write_text(NOTICE, encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SAMPLE, help="directory to write (default: the bundled sample)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the draw (default: {SEED})")
    args = parser.parse_args(argv)
    write_sample(args.output, args.seed)
    sizes = ", ".join(f"{size} {split}" for split, size in SIZES.items())
    print(f"Wrote {sizes} dialogues to {args.output}.")


if __name__ == "__main__":
    main()
