"""Turns the libraries' errors about wrong settings into one line for the user."""

from __future__ import annotations

import re

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import BitsAndBytesConfig

from src.commands.settings import RANGES, parameters_of
from src.errors import ParleyError, nearest_to

KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "list": "a list", "tuple": "a list"}
SECTIONS = ("model", "data", "trainer", "seed_everything", "ckpt_path")  # of a recipe
_NOISE = (
    r"Does not validate|Subtypes:|Errors:|Parser key|Problem with given|Given value|"
    r"Expected a <class '(NoneType|list|tuple)'>"
)

# Modules whose exceptions are about settings, and the setting to name in the message.
_BLAMED = {
    "torch.optim.lr_scheduler": "model.init_args.lr_scheduler",
    "torch.optim": "model.init_args.optimizer",
    "lightning": "",
}


def complaint_about_settings(error: BaseException) -> str | None:
    """The message of a library's error about settings, as one line.

    Args:
        error: What a run raised. It is about settings if Lightning, an optimiser or a schedule raised it itself.

    Returns:
        The line; None where the error is something else.
    """
    if not isinstance(error, (ValueError, TypeError, RuntimeError, ImportError)):
        return None
    module = raised_in(error)
    for blamed, setting in _BLAMED.items():
        if module == blamed or module.startswith(f"{blamed}."):
            said = " ".join(str(error).split()).rstrip(".")
            return f"{setting}: {said}; mend or change it." if setting else f"{said}."
    return None


def complaint_about_quantization(error: BaseException | None) -> str | None:
    """What transformers says is wrong with how to quantise, wherever it is in the chain of errors."""
    while error is not None:
        if raised_in(error) == BitsAndBytesConfig.__module__:
            return f"model.init_args.quantization: {' '.join(str(error).split()).rstrip('.')}."
        error = error.__cause__ or error.__context__
    return None


def raised_in(error: BaseException) -> str:
    """The module that an error comes from; empty where it was not raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))


def said_by_us(error: BaseException | None) -> ParleyError | None:
    """The ParleyError in a chain of exceptions, which a library may have wrapped in its own; None if there is none."""
    while error is not None and not isinstance(error, ParleyError):
        error = error.__cause__ or error.__context__
    return error


def misconfiguration(error: BaseException | None) -> str | None:
    """The first line of Lightning's MisconfigurationException in a chain of exceptions; None if there is none."""
    while error is not None:
        if isinstance(error, MisconfigurationException):
            line = str(error).splitlines()[0]
            is_about_gpus = re.search(r"(?i)\bgpus?\b|(cuda|mps)accelerator", line)
            return line + (" (`-c configs/trainer/cpu.yaml` runs on a CPU)" if is_about_gpus else "")
        error = error.__cause__ or error.__context__
    return None


def missing_package(error: BaseException | None) -> str | None:
    """The message of a configured class that needs a package that is not installed; None for other errors."""
    configured = None
    while error is not None:
        if found := re.match(r"Problem with given class_path '([\w.]+)'", str(error)):
            configured = found[1]
        if configured and isinstance(error, ImportError):
            return f"{configured} cannot be used: {str(error).splitlines()[0]}"
        error = error.__cause__ or error.__context__
    return None


def essence(message: str) -> str:
    """A jsonargparse error reduced to one line: the setting and what is wrong with it."""
    keys, inside = _innermost(message)
    name = ".".join(keys)
    lines = [line.strip(" -") for line in (inside.strip() or message).splitlines()]
    telling = [line for line in lines if line and not re.match(_NOISE, line)]
    kinds = dict.fromkeys(re.findall(r"Expected a <class '(\w+)'>", inside))
    given = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", inside, re.MULTILINE)
    is_of_numbers = bool(kinds.keys() & {"bool", "int", "float"}) or not telling
    if keys and given and is_of_numbers and kinds.keys() & KINDS.keys() and kinds.keys() <= {*KINDS, "NoneType"}:
        wanted = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds if kind in KINDS))
        value = given[1].removesuffix(".")
        return f"{name} is {'null' if value == 'None' else value}; it must be {wanted}{_range_of(keys)}"
    said = next(iter(telling), lines[0]).rstrip(".")
    if of_class := re.search(r"Problem with given class_path '([\w.]+)':\n *" + re.escape(said), inside):
        said = _about_class(of_class[1], said)
    elif of_class := re.search(r"callable class: (Option .*)\. Got value: Namespace\(class_path='([\w.]+)'", said):
        said = _about_class(of_class[2], of_class[1])  # an optimiser or a schedule
    elif missing := re.search(r"callable class: the following arguments are required: (.+)", said):
        said = f"{missing[1]} must be given to it"
    elif unknown := re.search(r"does not accept option '([^']+)'", said):
        said = _about_key(unknown[1])
    elif "required" in said:
        said += "; give a recipe, such as -c configs/dialogsum_lora.yaml"
    return f"{name}: {said}" if name else said


def _about_key(key: str) -> str:
    """An error about a key that belongs to no class that a recipe names: the trainer's, or a section of the recipe."""
    section, _, name = key.partition(".")
    if section == "trainer" and name:
        return f"the trainer has no setting {name}{nearest_to(name, parameters_of('lightning.pytorch.Trainer'))}"
    return f"a recipe has no {key}{nearest_to(section, SECTIONS)}"


def _about_class(class_path: str, said: str) -> str:
    """An error about a class's arguments, with the class's short name and the nearest existing argument."""
    short = class_path.rpartition(".")[2]
    if missing := re.match(r"the following arguments are required: (.+)", said):
        return f"{missing[1]} must be given to {short}"
    unknown = re.match(r"unrecognized arguments: -*([\w-]+)|Option '([\w-]+)' is not accepted", said)
    if unknown is None:
        return said
    name = unknown[1] or unknown[2]
    return f"{short} has no setting {name}{nearest_to(name, parameters_of(class_path), cutoff=0.7)}"


def _innermost(message: str) -> tuple[list[str], str]:
    """The nested keys of the first wrong setting in a jsonargparse message, and the text about it."""
    keys: list[str] = []
    indentation, inside = -1, ""
    for line in message.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        found = re.findall(r'Parser key "([^"]+)"', line)
        if found and depth > indentation:
            keys, indentation, inside = [*keys, *found], depth, ""
        elif found or (keys and depth <= indentation):
            break
        else:
            inside += f"{line.strip()}\n"
    return keys, inside


def _range_of(keys: list[str]) -> str:
    """The setting's allowed range, as text to append; empty if it has none."""
    for name, allowed in RANGES.items():
        if [part for part in name.split(".") if part != "init_args"] == keys:
            return f", {allowed}"
    return ""
