"""What models are called on a command line."""

from __future__ import annotations

import pytest

from src.commands.naming import labels, named_models
from src.errors import ParleyError


def test_a_name_is_the_last_part_of_a_path_where_that_tells_them_apart():
    assert labels(["a/one", "b/two"]) == ["one", "two"]
    assert labels(["a/one", "b/one"]) == ["a/one", "b/one"]


def test_only_a_file_s_columns_are_reserved():
    assert named_models(["a/prompt"], ["id=b"]) == {"prompt": "a/prompt", "id": "b"}  # a server has no columns
    assert named_models(["a/prompt"], [], ("id", "prompt")) == {"model:prompt": "a/prompt"}
    with pytest.raises(ParleyError, match="'id' is a column of the answers' file"):
        named_models([], ["id=b"], ("id", "prompt"))


def test_the_same_model_twice_is_refused():
    with pytest.raises(ParleyError, match="the same model is given twice"):
        labels(["a", "a"])
    for models, named in ((["a"], ["b=a"]), ([], ["a=x", "b=x"])):
        with pytest.raises(ParleyError, match="given twice; leave one of them out"):
            named_models(models, named)
