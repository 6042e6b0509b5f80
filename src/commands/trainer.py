"""`parley fit | validate | test | predict`: LightningCLI, with Parley's classes by short name."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry

import src.callbacks
import src.datamodules
import src.modules
from src.callbacks.storage import read_checkpoint
from src.commands.complaints import (
    complaint_about_quantization,
    complaint_about_settings,
    essence,
    misconfiguration,
    missing_package,
    said_by_us,
)
from src.commands.resume import choose_checkpoint
from src.commands.settings import check_settings
from src.errors import ParleyError, StoppedBySignalError
from src.internals import hold_signals_at_launch
from src.parallel.strategy import ShardedStrategy
from src.signals import end_with_parent, give_way_to_parent
from src.writing import whole_file
from src.yaml_files import check_yaml, read_yaml

SUBCOMMANDS = ("fit", "validate", "test", "predict")
CALLBACKS = Path(src.__file__).parents[1] / "configs" / "callbacks.yaml"


class SettingsFile(SaveConfigCallback):
    """Writes `config.yaml` to the run's own directory, whatever the logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, except in `fit`, where the directory must be locked first."""
        if stage != "fit":
            self._write(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it: all callbacks' `setup` has run by now, and so the directory is locked."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        directory = src.callbacks.run_directory(trainer)
        if trainer.is_global_zero:
            with whole_file(directory / self.config_filename) as stream:
                stream.write(self.parser.dump(self.config, skip_none=False))


class ParleyCLI(LightningCLI):
    """LightningCLI in subclass mode; the DataModule gets the model's name from the Module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Pass the Module's model settings on to the DataModule, so that they are given once."""
        for name in ("model_name_or_path", "gguf_file", "trust_remote_code"):
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument(
            "--default_callbacks",
            "--default-callbacks",
            type=list[Callback],
            enable_path=True,
            default=yaml.safe_load(CALLBACKS.read_text(encoding="utf-8")),
            help="Callbacks beside trainer.callbacks: a list, or a YAML file that holds one; [] for none.",
        )
        if subcommand == "fit":
            parser.add_argument(
                "--fresh_run",
                "--fresh-run",
                type=bool,
                default=False,
                help="With --ckpt_path: log as a new run instead of continuing the checkpoint's.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the configuration and check it (`check_settings`)."""
        super().parse_arguments(parser, args)
        check_settings(self.config[self.config["subcommand"]].as_dict())

    def _parse_ckpt_path(self) -> None:
        """Override LightningCLI's reading of hyperparameters from the checkpoint: the configuration alone holds."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint to resume from, before anything heavy is loaded."""
        settings = self.config[self.subcommand]
        settings.trainer.callbacks = _one_of_each(settings.trainer.callbacks)
        self._settings = json.loads(json.dumps(self._plain_settings(), default=str))
        asked = settings.get("ckpt_path")
        root = Path(settings.trainer.default_root_dir or "runs")
        self.resumed_from = None
        if asked is not None:
            fresh = self.subcommand == "fit"
            self.resumed_from = choose_checkpoint(str(asked), root, self._settings, may_start_fresh=fresh)
        settings.ckpt_path = None if self.resumed_from is None else str(self.resumed_from)

    def _plain_settings(self) -> dict[str, Any]:
        self._dump_config()
        return self.config_dump

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        defaults = self._get(self.config_init, "default_callbacks") or []
        given += [one for one in defaults if not any(isinstance(callback, type(one)) for callback in given)]
        for callback in given:
            if isinstance(callback, (src.callbacks.ExactResume, src.callbacks.RunRecord)):
                callback.config = self._settings
        if config.get("logger") in (None, True):
            config["logger"] = src.callbacks.RunLogger(config.get("default_root_dir") or "runs", name="")
        if self.subcommand == "fit" and self.resumed_from is not None and not self._get(self.config, "fresh_run"):
            config["logger"] = _going_on(config["logger"], self.resumed_from)
        trainer = super()._instantiate_trainer(
            {**config, "callbacks": given, "plugins": _with_atomic_checkpoints(config)}, callbacks
        )
        hold_signals_at_launch(trainer)
        return trainer


def _one_of_each(given: Any) -> Any:
    """Merge several configurations of the same Parley callback, which would otherwise run twice.

    The later one wins; an argument that it leaves at the default keeps the earlier one's value.
    """
    if not isinstance(given, list):
        return given
    kept: dict[str, Any] = {}
    for number, callback in enumerate(given):
        name = callback.class_path
        if not name.startswith(f"{src.callbacks.__name__}."):
            name = str(number)  # other callbacks may occur twice, such as EarlyStopping on two metrics
        elif name in kept:
            parameters = inspect.signature(getattr(src.callbacks, name.rsplit(".", 1)[1])).parameters
            for setting, value in callback.get("init_args", {}).items():
                if setting not in parameters or value != parameters[setting].default:
                    kept[name].init_args[setting] = value
            continue
        kept[name] = callback
    return list(kept.values())


def _going_on(logger: Any, checkpoint: Path) -> Any:
    """The loggers of a resumed run: Parley's own continue the log of the run that wrote the checkpoint."""
    if isinstance(logger, (list, tuple)):
        return [_going_on(one, checkpoint) for one in logger]
    if isinstance(logger, src.callbacks.RunLogger) and checkpoint.parent.name == "checkpoints":
        directory = checkpoint.parent.parent
        return src.callbacks.RunLogger(
            str(directory.parent),
            name="",
            version=directory.name,
            prefix=logger._prefix,
            flush_logs_every_n_steps=logger._flush_logs_every_n_steps,
        )
    if isinstance(logger, src.callbacks.WandbRun):
        saved = read_checkpoint(checkpoint, mmap=True)["callbacks"].get("ExactResume", {}).get("loggers", [])
        for state in (state for state in saved if "id" in state):
            logger.continue_run(state)
    return logger


def _with_atomic_checkpoints(config: dict[str, Any]) -> list[Any]:
    plugins = config.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    has_own = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
    return plugins if has_own else [*plugins, src.callbacks.AtomicCheckpointIO()]


def run(name: str, words: list[str]) -> int:
    """Run a subcommand of LightningCLI.

    Args:
        name: `fit`, `validate`, `test` or `predict`.
        words: The command-line arguments after it.

    Returns:
        The exit status, 0.

    Raises:
        ParleyError: The configuration is wrong, or the run failed for a reason that the user can mend.
        StoppedBySignalError: Training was stopped by a signal.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    end_with_parent()
    _quieten()
    StrategyRegistry.register("sharded", ShardedStrategy, description=ShardedStrategy.__doc__, override=True)
    parser_kwargs: dict[str, Any] = {"exit_on_error": False, "prog": "parley"}
    # DDP starts its other processes with sys.argv, the first of which must be a file that Python can run.
    _read_yaml_with_care()
    _refuse_unreadable(words)
    argv, sys.argv = sys.argv, [str(Path(src.__file__).with_name("__main__.py")), name, *words]
    try:
        ParleyCLI(
            model_class=src.modules.ModelModule,
            datamodule_class=src.datamodules.TextDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_callback=SettingsFile,
            trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
            parser_kwargs=parser_kwargs | {command: {"exit_on_error": False} for command in SUBCOMMANDS},
        )
    except argparse.ArgumentError as error:
        raise ParleyError(f"{essence(str(error))}; `parley {name} --help` lists the settings.") from error
    except StoppedBySignalError:
        raise
    except Exception as error:
        give_way_to_parent()
        said = said_by_us(error)
        complaints = (missing_package, misconfiguration, complaint_about_settings, complaint_about_quantization)
        for complaint in complaints if said is None else ():
            if line := complaint(error):
                raise ParleyError(line) from error
        if said is None:
            raise
        raise said from error
    finally:
        sys.argv = argv
    return 0


def _read_yaml_with_care() -> None:
    """Make jsonargparse check every YAML text by `check_yaml` before it is loaded."""
    load = getattr(get_loader("yaml"), "without_care", get_loader("yaml"))

    def load_checked(text: str) -> Any:
        if text == "None":  # what jsonargparse makes of a null two classes deep on the command line
            return None
        check_yaml(text)
        try:
            return load(text)
        except ValueError as error:  # a number of 5,000 digits, a date of month 13
            raise yaml.YAMLError(str(error)) from error

    load_checked.without_care = load  # type: ignore[attr-defined]
    set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))


def _refuse_unreadable(words: Sequence[str]) -> None:
    """Read the configuration files once before jsonargparse does, for error messages that name the file."""
    names = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    names += [name for option, name in pairwise(words) if option in ("-c", "--config")]
    for path in (Path(name).expanduser() for name in names):
        if os.path.isfile(path) and not isinstance(read_yaml(path), dict):  # noqa: PTH113  (never raises)
            raise ParleyError(f"{path} holds no settings; write `name: value` lines, or leave it out.")


def _quieten() -> None:
    """Suppress messages and warnings of the libraries that a user cannot act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "💡" not in record.getMessage())
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "`weights_only` was not set" not in record.getMessage()
    )
    # Packed rows have no attention mask on purpose.
    logging.getLogger("transformers.modeling_utils").addFilter(
        lambda record: "passing in an `attention_mask`" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # PPO's policy, on purpose
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # no block writes into it
    # Our metrics are reduced over all processes before they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")
