"""Which figures of the same name mean the same, so that they may be compared and share a picture.

A loss is that of its Module and of the settings that shape it; a reward is that of its reward; a figure of validation
or test is of its data. All others mean what their names say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from src.reporting.runs import Run

Kind = tuple[tuple[str, str], ...]

LOSS = re.compile(r"loss|perplexity|margin|(^|/)rewards/(?!accuracies)")
REWARD = re.compile(r"reward|score|returns")
SHAPES_LOSS = (
    *("label_smoothing", "loss_type", "beta", "simpo_gamma", "rpo_alpha", "center_rewards_coefficient"),
    *("vf_coef", "entropy_coef", "loss_on"),
)
SPLITS = {"val": "validation", "test": "test"}
CHOOSES_ROWS = ("path", "every_nth", "min_chars", "max_chars")


def kind_of(run: Run, metric: str) -> Kind:
    """What a figure of a run is of: settings that give it its meaning, by name."""
    settings = run.settings
    loss = LOSS.search(metric) is not None
    found: dict[str, object] = {}
    if loss:
        found["model.class_path"] = settings.get("model.class_path")
        found |= {name: value for name, value in settings.items() if _last(name) in SHAPES_LOSS}
    elif REWARD.search(metric) and "rewards/accuracies" not in metric:
        found |= {name: value for name, value in settings.items() if name.startswith("model.init_args.reward.")}
    stage = metric.partition("/")[0]
    if stage in SPLITS:
        names = ["data.class_path", *(f"data.init_args.{name}" for name in CHOOSES_ROWS)]
        names += [f"data.init_args.{SPLITS[stage]}_split", f"trainer.limit_{stage}_batches"]
        found |= {name: settings.get(name) for name in names}
    return tuple(sorted((name, str(value)) for name, value in found.items() if value is not None))


def by_kind(runs: Sequence[Run], metric: str) -> dict[Kind, list[int]]:
    """The places of the runs that have a metric, those together whose figure means the same."""
    groups: dict[Kind, list[int]] = {}
    for number, run in enumerate(runs):
        if metric in run.curves:
            groups.setdefault(kind_of(run, metric), []).append(number)
    return groups


def told_apart(kinds: Sequence[Kind]) -> list[str]:
    """What each kind has that not all of them have, in words; nothing where there is one kind."""
    common = set(kinds[0]).intersection(*kinds[1:]) if kinds else set()
    rest = [{name: value for name, value in kind if (name, value) not in common} for kind in kinds]
    classes = [[_last(value) for name, value in each.items() if name.endswith("class_path")] for each in rest]
    if len(set(map(tuple, classes))) == len(kinds):  # of other classes other settings are not worth a word
        return [", ".join(each) for each in classes]
    others = [
        [f"{_last(name)} {value}" for name, value in each.items() if _last(name) != "class_path"] for each in rest
    ]
    return [", ".join((*one, *other)) for one, other in zip(classes, others, strict=True)]


def baselines(runs: Sequence[Run], metric: str) -> Mapping[int, int]:
    """For each run that has a metric, the first whose figure means the same."""
    return {number: group[0] for group in by_kind(runs, metric).values() for number in group}


def _last(name: str) -> str:
    return name.rpartition(".")[2]
