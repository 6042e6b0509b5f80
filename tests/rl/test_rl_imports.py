import ast
from pathlib import Path

import pytest

RL = Path(__file__).parents[2] / "src" / "rl"
ALLOWED = (
    "torch",
    "src.rl",
    "src.errors",
    "src.ranges",
    "__future__",
    "collections",
    "dataclasses",
    "typing",
    "abc",
    "math",
)


@pytest.mark.parametrize("path", sorted(RL.glob("*.py")), ids=lambda path: path.stem)
def test_the_mathematics_knows_tensors_only(path):
    allowed = (*ALLOWED, "trl") if path.stem in ("logprobs", "groups") else ALLOWED
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert any(name == each or name.startswith(f"{each}.") for each in allowed), name
            assert not name.startswith("torch.distributed")
