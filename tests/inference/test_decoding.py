"""Presets and changing options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from src.commands import arguments
from src.errors import ParleyError
from src.inference.decoding import (
    TOUR,
    check_option,
    describe,
    parse_option,
    preset_names,
    read_preset,
    with_changes,
    with_preset,
)
from src.inference.loading import FinishedModel
from src.models.generation_options import GenerationOptions

# What the published notebook hands to `generate`, lengths aside.
PUBLISHED = {
    "greedy": {},
    "beams-5": {"num_beams": 5},
    "beams-5-no-repeat": {"num_beams": 5, "no_repeat_ngram_size": 2},
    "beams-5-all": {"num_beams": 5, "no_repeat_ngram_size": 2, "num_return_sequences": 5},
    "sampling": {"do_sample": True, "top_k": 0},
    "temperature": {"do_sample": True, "top_k": 0, "temperature": 0.7},
    "top-k": {"do_sample": True, "top_k": 50},
    "top-p": {"do_sample": True, "top_p": 0.92, "top_k": 0},
    "top-k-top-p": {"do_sample": True, "top_k": 50, "top_p": 0.95, "num_return_sequences": 3},
}


def test_the_published_tour() -> None:
    assert tuple(PUBLISHED) == TOUR == tuple(preset_names()[: len(TOUR)])
    for name, options in PUBLISHED.items():
        assert with_preset(GenerationOptions(), name) == GenerationOptions(**options)


def test_a_preset_keeps_lengths_bans_stops_and_seed() -> None:
    options = GenerationOptions(9, 2, do_sample=True, top_k=3, bad_words=["x"], stop_strings=["\n"], seed=4)
    changed = with_preset(options, "beams-5")
    assert changed == GenerationOptions(9, 2, num_beams=5, bad_words=["x"], stop_strings=["\n"], seed=4)


def test_a_preset_may_be_any_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('max_new_tokens: 7\nbad_words: ["<unk>"]\nrepetition_penalty: 2\n', encoding="utf-8")
    assert with_preset(GenerationOptions(), str(file)) == GenerationOptions(
        7, bad_words=["<unk>"], repetition_penalty=2
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature: 1", "no decoding option 'temprature'"),
        ("top_k: many", "top_k is 'many'; it must be a whole number"),
        ("top_k: 2.5", "whole number"),
        ("top_k: true", "whole number"),
        ("do_sample: 1", "true or false"),
        ("bad_words: x", "a list of texts"),
        ("- 1", "holds list"),
        ("a: [", "is not YAML"),
        ("top_p: 7", "top_p is 7"),
    ],
)
def test_a_preset_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ParleyError, match=said) as error:
        with_preset(GenerationOptions(), str(file))
    assert "\n" not in str(error.value)


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ParleyError, match="name one of greedy, beams-5"):
        read_preset("nucleus")


def test_limits_on_sampling_switch_it_on() -> None:
    assert with_changes(GenerationOptions(), {"top_p": 0.5}) == GenerationOptions(do_sample=True, top_p=0.5)
    assert not with_changes(GenerationOptions(), {"top_p": 0.5, "do_sample": False}).do_sample
    assert not with_changes(GenerationOptions(), {"num_beams": 2}).do_sample


def test_values_as_typed() -> None:
    assert parse_option("temperature", "1") == 1
    assert parse_option("do_sample", "true") is True
    assert parse_option("seed", "null") is None
    assert parse_option("bad_words", "<unk>, 안녕 ,") == ["<unk>", "안녕"]
    for name, text in (("temperature", "hot"), ("top_k", "1.5"), ("nothing", "1"), ("top_k", "["), ("top_k", "")):
        with pytest.raises(ParleyError):
            parse_option(name, text)


def test_options_in_words() -> None:
    assert describe(GenerationOptions()) == "greedy"
    assert describe(GenerationOptions(do_sample=True, top_k=5)) == "do_sample True, top_k 5"


def test_an_engine_alone_leaves_the_models_own_settings(finished: Callable[[str], FinishedModel]) -> None:
    model = finished("gpt2")
    model.model.generation_config.update(do_sample=True, top_k=7)
    parser = argparse.ArgumentParser()
    arguments.add_decoding_arguments(parser, engine=True)
    options = arguments.decoding_options(parser.parse_args(["--engine", "static"]), model)
    assert (options.engine, options.do_sample, options.top_k) == ("static", True, 7)
    given = arguments.decoding_options(parser.parse_args(["--engine", "static", "--max-new-tokens", "3"]), model)
    assert (given.engine, given.do_sample, given.max_new_tokens) == ("static", False, 3)


@pytest.mark.parametrize("value", ["statik", 3, None])
def test_an_engine_is_one_of_two(value: object) -> None:
    with pytest.raises(ParleyError, match=r"^here: engine is .*; it must be plain or static\.$"):
        check_option("engine", value, "here: ")
    check_option("engine", "static")
