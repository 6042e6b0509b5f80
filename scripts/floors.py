"""The lowest version of each dependency that pyproject.toml allows, but torch's, as pip takes it: `rich==14 …`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def floors() -> dict[str, str]:
    """From a package to its lowest version; torch is the one that is there."""
    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = [re.match(r"([\w-]+)(?:\[.*?\])?>=([\w.]+)", dependency) for dependency in dependencies]
    return {match[1]: match[2] for match in found if match is not None and match[1] != "torch"}


if __name__ == "__main__":
    print(" ".join(f"{package}=={version}" for package, version in floors().items()))
