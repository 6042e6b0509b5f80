"""`parley fit | validate | test | predict`: LightningCLI, with Parley's classes by short name."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

import src.callbacks
import src.datamodules
import src.modules
from src.errors import ParleyError

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class ParleyCLI(LightningCLI):
    """LightningCLI in subclass mode; the DataModule prepares for the Module's model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the model once."""
        for name in ("model_name_or_path", "gguf_file"):
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")

    def _parse_ckpt_path(self) -> None:
        """The configuration stands: a checkpoint does not silently replace what was asked for."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        defaults = (
            src.callbacks.ParameterSummary,
            src.callbacks.SampleTable,
            src.callbacks.PredictionWriter,
            src.callbacks.Throughput,
            src.callbacks.BeforeAfterTable,
        )
        missing = [cls() for cls in defaults if not any(isinstance(callback, cls) for callback in given)]
        if config.get("logger") in (None, True):
            config["logger"] = CSVLogger(config.get("default_root_dir") or "runs", name="")
        return super()._instantiate_trainer({**config, "callbacks": [*given, *missing]}, callbacks)

    def before_instantiate_classes(self) -> None:
        """Look at what can be checked before anything heavy starts."""
        path = self._get(self.config, "ckpt_path")
        if path not in (None, "last", "best", "hpc") and not Path(path).exists():
            raise ParleyError(
                f"there is no checkpoint {str(path)!r}; give a .ckpt file of a run, or leave --ckpt_path out."
            )


def run(name: str, words: list[str]) -> int:
    """Run a subcommand of LightningCLI with the words after it.

    Raises:
        ParleyError: The configuration is not right.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _quieten()
    parser_kwargs: dict[str, Any] = {"exit_on_error": False, "prog": "parley"}
    # DDP starts its other processes with these words, the first of which must be a file that Python can run.
    argv, sys.argv = sys.argv, [str(Path(src.__file__).with_name("__main__.py")), name, *words]
    try:
        ParleyCLI(
            model_class=src.modules.DialogueModule,
            datamodule_class=src.datamodules.DialogueDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
            parser_kwargs=parser_kwargs | {command: {"exit_on_error": False} for command in SUBCOMMANDS},
        )
    except argparse.ArgumentError as error:
        raise ParleyError(f"{_essence(str(error))}; `parley {name} --help` lists the settings.") from error
    except Exception as error:
        if (said := _said_by_us(error)) is None:
            raise
        raise said from error
    finally:
        sys.argv = argv
    return 0


def _quieten() -> None:
    """Leave out what the libraries say that nobody can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "💡" not in record.getMessage())
    # Packed rows come without a mask on purpose.
    logging.getLogger("transformers.modeling_utils").addFilter(
        lambda record: "passing in an `attention_mask`" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Our metrics are over all processes by the time they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")


def _said_by_us(error: BaseException | None) -> ParleyError | None:
    """The line meant for the user, where a library has wrapped it in an error of its own."""
    while error is not None and not isinstance(error, ParleyError):
        error = error.__cause__ or error.__context__
    return error


def _essence(message: str) -> str:
    """The lines of a jsonargparse error that say what is wrong, as one."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    lines = [line for line in lines if not re.match(r"(Does not validate against any|Subtypes:|Parser key .*:$)", line)]
    return ": ".join(line.rstrip(":. ") for line in lines[:4])
