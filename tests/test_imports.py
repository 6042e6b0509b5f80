"""Imports point one way: whoever knows a package may be imported by nothing that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# A package and what of ours it may import, besides itself and what everybody may.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"commands"},
    "commands": {
        "serving",
        "inference",
        "reporting",
        "modules",
        "datamodules",
        "callbacks",
        "models",
        "metrics",
        "parallel",
    },
    "serving": {"inference", "datamodules", "models"},
    "reporting": set(),
    "inference": {"modules", "datamodules", "callbacks", "models", "metrics", "rewards"},
    "modules": {"models", "parallel", "rl", "rewards", "metrics"},
    "datamodules": {"models"},
    "callbacks": {"models", "metrics", "parallel"},
    "models": {"parallel", "rl"},
    "parallel": set(),
    "rl": set(),
    "rewards": {"metrics", "models"},
    "metrics": {"models", "rewards"},
}
FOR_EVERYBODY = {"contracts", "errors", "files", "internals", "ranges", "signals", "writing", "yaml_files"}
EXCEPTIONS = {("commands/demo.py", "cli")}  # the demo types commands, as a user would

# Libraries that a package must do without.
MUST_NOT_IMPORT = {
    "models": {"lightning", "pytorch_lightning", "datasets", "torchmetrics", "wandb"},
    "rl": {"lightning", "pytorch_lightning", "transformers", "peft", "tokenizers", "datasets", "wandb"},
    "rewards": {"lightning", "pytorch_lightning", "wandb"},
    "metrics": {"lightning", "pytorch_lightning", "wandb"},
    "contracts": {"lightning", "transformers", "peft", "trl", "datasets"},
    "errors": {"torch", "lightning", "transformers"},
    "files": {"torch", "lightning", "transformers"},
    "writing": {"torch", "lightning", "transformers"},
    "internals": {"transformers", "peft", "trl", "datasets"},
    "reporting": {"torch", "lightning", "transformers"},
}
FILES = sorted(SRC.rglob("*.py"))
MODULES = {
    ".".join(("src", *file.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): file for file in FILES
}


def imports(file: Path, *, late: bool = True) -> Iterator[str]:
    """Every module that a file imports; those inside functions only when `late` ones are wanted."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where they lead"
            for alias in node.names:  # `from src.models import lora` is the module src.models.lora
                whole = f"{node.module}.{alias.name}"
                yield whole if node.module == "src" or whole in MODULES else str(node.module)


def package(file: Path) -> str:
    """`models` for src/models/lora.py, `cli` for src/cli.py."""
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def name(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_file_imports_only_what_lies_below_it(file):
    own = package(file)
    allowed = {own} | MAY_IMPORT.get(own, set()) | FOR_EVERYBODY | {"__version__"}
    for imported in imports(file):
        if imported.startswith("src.") and (name(file), imported.split(".")[1]) not in EXCEPTIONS:
            assert imported.split(".")[1] in allowed, f"{name(file)} imports {imported}"
        assert imported.split(".")[0] not in MUST_NOT_IMPORT.get(own, set()), f"{name(file)} imports {imported}"


def test_every_package_has_its_place():
    found = {package(file) for file in FILES} - {"__init__"}
    assert found == set(MAY_IMPORT) | FOR_EVERYBODY


def test_no_module_needs_itself_to_be_imported():
    """Also where two packages of one level use each other, as rewards and metrics do."""
    graph = {own: {one for one in imports(file, late=False) if one in MODULES} for own, file in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle
