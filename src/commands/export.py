"""Write a run's checkpoint as a plain Hugging Face directory, or its adapter as a PEFT directory, with a model card.

The card (README.md) gives the base model, the training settings and the results: those of a `parley test` of this
checkpoint where --figures names its run or one lies beside the checkpoint's, else those of validation. What Parley
cannot know, such as licences, is marked to be filled in.

  parley export --checkpoint runs/version_0/checkpoints/best.ckpt --output models/summaries --figures runs/version_1
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands.arguments import add_trust_argument
from src.errors import ParleyError

if TYPE_CHECKING:
    from src.inference.export import Restored
    from src.reporting.card import CardFacts, Figure
    from src.reporting.runs import Run

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="a .ckpt file of a run")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the directory goes")
    parser.add_argument("--merge", action="store_true", help="fold an adapter into its base, and write the whole model")
    parser.add_argument("--base-model", metavar="DIR", help="where the base model is now, if it has moved")
    add_trust_argument(parser)
    parser.add_argument(
        "--figures", type=Path, metavar="RUN", help="the run of `parley test` whose results go into the card"
    )
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="the model's licence by the hub's identifier, such as apache-2.0",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the directory to the Hugging Face hub too, as a private repository",
    )
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: as a public repository")
    parser.add_argument("--overwrite", action="store_true", help="replace a directory that is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    from peft import PeftModel, PeftType

    from src.commands.output import show
    from src.inference.export import export
    from src.inference.publishing import check_account, publish
    from src.reporting.card import model_card
    from src.writing import whole_file

    tested = None if args.figures is None else _tested(args.figures)  # refuse a wrong run before anything is written
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", args.license):
        raise ParleyError(f"--license is {args.license!r}; give an identifier as the hub has it, such as apache-2.0.")
    if args.public and args.push_to_hub is None:
        raise ParleyError("--public says who may see it on the hub; give --push-to-hub OWNER/NAME, or leave it out.")
    if args.push_to_hub is not None:
        check_account(args.push_to_hub)
    restored = export(
        args.checkpoint,
        args.output,
        merge=args.merge,
        base_model=args.base_model,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
    )
    kind = None
    if isinstance(restored.model, PeftModel) and not args.merge:
        kind = PeftType(restored.model.peft_config["default"].peft_type).value.lower()
    with whole_file(Path(args.output) / "README.md") as file:
        file.write(model_card(_facts(args, restored, kind, tested)))
    size = sum(file.stat().st_size for file in Path(args.output).rglob("*") if file.is_file())
    row = {
        "written": "adapter" if kind else "model",
        "directory": args.output,
        "base": restored.base,
        "MB": round(size / 1e6, 1),
    }
    if args.push_to_hub is not None:
        row["hub"] = publish(args.output, args.push_to_hub, public=args.public)
    show([row], as_json=args.json)


def _facts(args: argparse.Namespace, restored: Restored, adapter: str | None, tested: Run | None) -> CardFacts:
    from src import __version__
    from src.models.lora import count_parameters
    from src.reporting.card import CardFacts

    checkpoint = Path(args.checkpoint)
    directory, settings = _own_run(checkpoint)
    if tested is None and directory is not None:
        tested = _test_of(checkpoint, directory)
    if tested is None:
        figures, examples = _validated(directory, restored.step), None
    else:
        figures, examples = _tested_figures(tested)
    trained = sum(p.numel() for name, p in restored.model.named_parameters() if "lora_" in name or p.requires_grad)
    return CardFacts(
        name=Path(args.output).name,
        base=restored.base,
        adapter=adapter,
        is_encoder_decoder=bool(getattr(restored.model.config, "is_encoder_decoder", False)),
        parameters=trained if adapter else count_parameters(restored.model).total,
        version=__version__,
        run=None if directory is None else str(directory),
        step=restored.step,
        settings=settings,
        template=_template(settings),
        figures=figures,
        examples=examples,
        is_tested=tested is not None,
        tested_on=None if tested is None else tested.settings.get("data.init_args.path"),
        tested_split=None if tested is None else tested.settings.get("data.init_args.test_split"),
        license=args.license,
    )


def _own_run(checkpoint: Path) -> tuple[Path | None, dict[str, Any]]:
    """The directory and settings of the run that wrote a checkpoint; None and no settings if it cannot be found."""
    from src.reporting.runs import settings_of

    directory = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (directory / "config.yaml").is_file():
        return None, {}
    try:
        return directory, settings_of(directory)
    except ParleyError as error:
        log.warning("The card tells nothing of the run: %s", error)
        return None, {}


def _validated(directory: Path | None, step: int | None) -> list[Figure]:
    """The validation metrics logged at a step; empty if there was no validation then."""
    from src.reporting.card import Figure
    from src.reporting.runs import read_run

    if directory is None or step is None or not (directory / "metrics.csv").is_file():
        return []
    try:
        curves = read_run(directory).curves
    except ParleyError as error:
        log.warning("The card has no figures: %s", error)
        return []
    return [
        Figure(name, value)
        for name, curve in curves.items()
        for place, value in curve
        if name.startswith("val/") and place == step - 1  # logged steps count from 0
    ]


def _test_of(checkpoint: Path, directory: Path) -> Run | None:
    """The newest `parley test` of this checkpoint among the runs beside its own, if newer than the checkpoint."""
    from src.reporting.runs import read_run, settings_of

    for file in sorted(directory.parent.glob("*/predictions.csv"), key=lambda one: -one.stat().st_mtime):
        if file.stat().st_mtime < checkpoint.stat().st_mtime:  # the checkpoint was overwritten after this test
            break
        try:
            given = settings_of(file.parent).get("ckpt_path")
            if isinstance(given, str) and Path(given).resolve() == checkpoint.resolve():
                return read_run(file.parent)
        except ParleyError as error:
            log.warning("%s is passed over: %s", file.parent, error)
    return None


def _tested(directory: Path) -> Run:
    from src.reporting.runs import read_run

    found = read_run(directory)
    if not any(name.startswith("test/") for name in found.figures):
        raise ParleyError(f"{directory} has no figures of a test; give the run that `parley test` wrote.")
    return found


def _tested_figures(run: Run) -> tuple[list[Figure], int | None]:
    """A test's metrics, ROUGE with confidence intervals where there are predictions, and the number of examples."""
    from src.inference.card_figures import rouge_with_intervals
    from src.reporting.card import Figure

    found = {name: Figure(name, value) for name, value in run.figures.items() if name.startswith("test/")}
    file = Path(run.name) / "predictions.csv"
    if not file.is_file():
        return list(found.values()), None
    words = run.settings.get("model.init_args.metrics.rouge.init_args.tokenizer")
    count, scores = rouge_with_intervals(file, "unicode" if words == "unicode" else "standard")
    for key, (mean, low, high) in scores.items():
        found[f"test/{key}"] = Figure(f"test/{key}", mean, (low, high))
    return list(found.values()), count or None


def _template(settings: Mapping[str, Any]) -> str | None:
    from src.datamodules.templates import named_templates

    name = settings.get("data.init_args.template")
    return named_templates().get(name, name) if isinstance(name, str) and name else None
