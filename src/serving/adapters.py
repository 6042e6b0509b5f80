"""Serves several adapters on one base model in memory; to clients each is a separate model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel

from src.errors import ParleyError
from src.inference.loading import FinishedModel
from src.models.adapter_checks import acts_in_layers
from src.models.adapters import load_adapter, refuse_code
from src.models.loading import identify
from src.models.sources import BASE_FILE, is_adapter, read_json, reading
from src.models.tying import embedding_matrix

_KEEPS_BASE = (True, False, "gaussian")  # init_lora_weights that do not change the base


class Switch:
    """Switches between the adapters of one model; not thread-safe.

    PEFT's context manager `disable_adapter` traverses the model twice, which takes longer than generating a token.

    Args:
        model: The model with all adapters loaded.
        names: PEFT's name of each adapter, by the name that clients use.
    """

    def __init__(self, model: PeftModel, names: Mapping[str, str]) -> None:
        self._model = model
        assert isinstance(model.base_model, BaseTuner), "prompt learning has been refused"
        self._tuner = model.base_model
        self._names = names
        self._now: str | None = None
        self._tuner.disable_adapter_layers()

    def to(self, adapter: str | None) -> None:
        """Activate one adapter and no other.

        Args:
            adapter: The name that clients use; None for the base model alone.
        """
        if adapter == self._now:
            return
        if adapter is None:
            self._tuner.disable_adapter_layers()
        else:
            self._tuner.enable_adapter_layers()
            self._model.set_adapter(self._names[adapter])
        self._now = adapter


def share(
    base: FinishedModel, adapters: Mapping[str, str], *, trust_remote_code: bool = False
) -> tuple[FinishedModel, Switch]:
    """Load several adapters on one model, to switch between them.

    Args:
        base: A whole model; changed in place.
        adapters: The adapters' directories, by name.
        trust_remote_code: Allow an adapter's settings to name code that is run.

    Returns:
        The model with all adapters, and the switch.

    Raises:
        ParleyError: A directory is not an adapter of this base, or disabling it would not restore the base exactly.
    """
    model = base.model
    if not isinstance(model, PreTrainedModel):
        raise ParleyError(f"{base.name} has an adapter of its own, which cannot be folded in; give a whole model.")
    record, adapted = identify(model), None
    device, dtype = base.device, next(model.parameters()).dtype
    names = {name: f"adapter{number}" for number, name in enumerate(adapters)}  # PEFT allows no dots in names
    for name, directory in adapters.items():
        place = str(Path(directory).expanduser())
        if not is_adapter(place):
            raise ParleyError(f"{directory} is no adapter directory: it has no adapter_config.json.")
        if not trust_remote_code:
            refuse_code(read_json(Path(place) / "adapter_config.json"), place)
        with reading("the adapter's settings", place):
            config = PeftConfig.from_pretrained(place)
        _check_switchable(config, place, embedding_matrix(model).shape[0])
        adapted = load_adapter(model, record, place, base.tokenizer, beside=adapted, name=names[name])
    assert adapted is not None, "there is an adapter at least"
    nn.Module.to(adapted, device=device, dtype=dtype)
    return FinishedModel(adapted.eval(), base.tokenizer, base.name), Switch(adapted, names)


def _check_switchable(config: PeftConfig, place: str, rows: int) -> None:
    changes_base = getattr(config, "init_lora_weights", True) not in _KEEPS_BASE
    trains_biases = getattr(config, "bias", "none") != "none"
    record = read_json(Path(place) / BASE_FILE) if (Path(place) / BASE_FILE).is_file() else {}
    has_grown = record.get("rows", rows) > rows
    if not acts_in_layers(config):
        raise ParleyError(
            f"the adapter {place} does not act in its layers alone (prompt tuning, aLoRA), which is not served; "
            "`parley generate` has it."
        )
    if changes_base or trains_biases or has_grown:
        raise ParleyError(
            f"the adapter {place} cannot be switched on and off beside others (biases, more tokens, or a start that "
            "changes the base); serve it by itself, as a MODEL."
        )
