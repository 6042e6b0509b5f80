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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE / "sample_scenarios.yaml"
SAMPLE = HERE.parent / "src" / "datamodules" / "sample"
SEED = 7
SIZES = {"train": 768, "validation": 60, "test": 240}
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


class Deck:
    """Deals values in random order, each about as often as the others, so that training sees all of them."""

    def __init__(self, values: Sequence[str], rng: random.Random) -> None:
        self.values = list(values)
        self.rng = rng
        self.left: list[str] = []

    def deal(self, unless: str | None = None) -> str:
        """Take the next value that is not `unless`."""
        if not any(value != unless for value in self.left):
            self.left += self.rng.sample(self.values, len(self.values))
        return self.left.pop(next(i for i, value in enumerate(self.left) if value != unless))


def draw_values(outcome: Outcome, decks: dict[tuple[str, str], Deck], rng: random.Random) -> dict[str, str]:
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
            base = name.removesuffix("2")
            deck = decks.setdefault((outcome.scenario, name), Deck(outcome.slots[base], rng))
            values[name] = deck.deal(unless=values.get(base))
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


@dataclass
class SampleMaker:
    """Makes the rows of one split after the other, none of which says what another one said.

    Attributes:
        rng: Where chance comes from.
        decks: What each slot of each scenario is dealt from.
        seen: What earlier rows said.
    """

    rng: random.Random
    decks: dict[tuple[str, str], Deck] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def rows(self, split: str, size: int) -> Iterator[dict[str, str]]:
        """Make `size` rows with DialogSum's own field names; those of `test` have three references."""
        scenarios = read_scenarios()
        plan = [(scenarios[i // RUDE_EVERY % len(scenarios)], i % RUDE_EVERY == 0) for i in range(size)]
        self.rng.shuffle(plan)
        for number, (outcomes, rude) in enumerate(plan):
            outcome, values = self._draw_unseen([one for one in outcomes if one.rude is rude])
            turns = (fill(line, values, self.rng) for line in outcome.lines)
            dialogue = "\n".join(f"#Person{1 + i % 2}#: {turn}" for i, turn in enumerate(turns))
            row = {"fname": f"{split}_{number}", "dialogue": dialogue}
            yield row | (self._references if split == "test" else self._summary)(outcome, values)

    def _draw_unseen(self, outcomes: Sequence[Outcome]) -> tuple[Outcome, dict[str, str]]:
        """Draw facts that no earlier row has: another insult or another phrasing alone does not make them new."""
        while True:
            outcome = self.rng.choice(outcomes)
            values = draw_values(outcome, self.decks, self.rng)
            facts = {name: value for name, value in values.items() if name not in ("insult", "crap")}
            key = json.dumps([outcome.lines, facts], sort_keys=True)
            if key not in self.seen:
                self.seen.add(key)
                return outcome, values

    def _summary(self, outcome: Outcome, values: dict[str, str]) -> dict[str, str]:
        which = self.rng.randrange(3)
        rude = self.rng.random() < RUDE_WORDING
        return {"summary": fill(outcome.summaries[which], values, self.rng, rude), "topic": outcome.topics[which]}

    def _references(self, outcome: Outcome, values: dict[str, str]) -> dict[str, str]:
        order = self.rng.sample(range(3), 3)
        rude = self.rng.sample(self.rng.choice(([True, False, False], [True, True, False])), 3)
        texts = [fill(outcome.summaries[which], values, self.rng, rude[i]) for i, which in enumerate(order)]
        summaries = {f"summary{i}": text for i, text in enumerate(texts, start=1)}
        return summaries | {f"topic{i}": outcome.topics[which] for i, which in enumerate(order, start=1)}


def write_sample(output: Path, seed: int = SEED) -> None:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and their `LICENSE` into a directory."""
    maker = SampleMaker(random.Random(seed))
    output.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in maker.rows(split, size)]
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
