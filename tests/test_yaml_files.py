"""YAML is read when it says one thing, and refused, soon, when it does not."""

from __future__ import annotations

import time

import pytest
import yaml

from src.errors import ParleyError
from src.yaml_files import DEEPEST, MOST_VALUES, UnreasonableYAMLError, check_yaml, read_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is there twice"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "'d' is there twice"),
        ("a: &x {b: *x}", r"\*x is inside itself"),
        ("[&x [1, *x]]", r"\*x is inside itself"),
        ("[" * 5000 + "]" * 5000, f"more than {DEEPEST} levels"),
        ("{a: " * 5000 + "1" + "}" * 5000, f"more than {DEEPEST} levels"),
        (LAUGHS, f"more than {MOST_VALUES:,} values"),
        ("base: &b [1, 2]\nmore: [*b, *nobody]\n", None),
    ],
)
def test_unreasonable(tmp_path, text, said):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(ParleyError, match=r"settings.yaml is not YAML to be used"):
        read_yaml(file)
    assert time.monotonic() - start < 5
    if said is not None:
        with pytest.raises(UnreasonableYAMLError, match=said):
            check_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: {a: 1}\nc: [{a: 1}, {a: 2}]\n",
        "a: &x [1, 2]\nb: *x\nc: *x\n",
        "a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n",
        "[" * 50 + "]" * 50,
        "? [1, 2]\n: 3\n? [1, 3]\n: 4\n",
    ],
)
def test_reasonable_is_as_ever(text):
    check_yaml(text)
    if not text.startswith("?"):  # lists as keys are none of Python's
        yaml.safe_load(text)


def test_a_repetition_is_found_where_it_is():
    with pytest.raises(UnreasonableYAMLError, match="line 3"):
        check_yaml("a: 1\nb: 2\na: 3\n")
