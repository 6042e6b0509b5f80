"""The bundled sample: exactly what its script writes, in DialogSum's format, and pleasant to read."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SAMPLE = REPO / "src" / "datamodules" / "sample"
SPLITS = ("train", "validation", "test")


def load_script():
    spec = importlib.util.spec_from_file_location("make_sample", REPO / "scripts" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_sample = load_script()


def read(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def summaries_of(row: dict[str, str]) -> list[str]:
    return [text for key, text in row.items() if key.startswith("summary")]


def every_row() -> list[dict[str, str]]:
    return [row for split in SPLITS for row in read(split)]


def test_running_the_script_rewrites_exactly_the_committed_files(tmp_path):
    command = [sys.executable, str(REPO / "scripts" / "make_sample.py"), "--output", str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "768 train, 60 validation, 240 test" in told.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in SAMPLE.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SAMPLE / path.name).read_bytes(), path.name


def test_another_seed_gives_other_dialogues(tmp_path):
    make_sample.main(["--output", str(tmp_path), "--seed", "8"])
    ours = {row["dialogue"] for row in read("train")}
    theirs = {json.loads(line)["dialogue"] for line in (tmp_path / "train.jsonl").read_text().splitlines()}
    assert len(ours & theirs) < 0.05 * len(ours)


def test_counts_size_and_licence():
    assert {split: len(read(split)) for split in SPLITS} == {"train": 768, "validation": 60, "test": 240}
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 500 * 1024
    assert "Apache License, Version 2.0" in (SAMPLE / "LICENSE").read_text()


@pytest.mark.parametrize("split", SPLITS)
def test_the_fields_are_dialogsums_own(split):
    expected = ["fname", "dialogue", "summary", "topic"]
    if split == "test":
        expected = ["fname", "dialogue", "summary1", "summary2", "summary3", "topic1", "topic2", "topic3"]
    for number, row in enumerate(read(split)):
        assert list(row) == expected
        assert row["fname"] == f"{split}_{number}"
        turns = row["dialogue"].split("\n")
        assert 3 <= len(turns) <= 7
        assert len(row["dialogue"]) <= 500
        for i, turn in enumerate(turns):
            assert turn.startswith(f"#Person{1 + i % 2}#: ")


def test_no_dialogue_is_said_twice():
    dialogues = [row["dialogue"] for row in every_row()]
    assert len(set(dialogues)) == len(dialogues)


def test_held_out_dialogues_use_only_words_seen_in_training():
    seen = {word for row in read("train") for word in re.findall(r"\w+", f"{row['dialogue']} {row['summary']}")}
    for split in ("validation", "test"):
        for row in read(split):
            assert set(re.findall(r"\w+", row["dialogue"])) <= seen
            assert set(re.findall(r"\w+", " ".join(summaries_of(row)))) <= seen


def test_the_three_references_differ_and_tell_the_same():
    names = set(make_sample.read_scenarios()[0][0].slots["name"])
    for row in read("test"):
        summaries = summaries_of(row)
        assert len(set(summaries)) == 3
        assert len({frozenset(names & set(re.findall(r"\w+", text))) for text in summaries}) == 1


def test_a_summary_tells_only_what_the_dialogue_says():
    slots = {"name", "day", "city", "spot", "time"}
    grammar = make_sample.read_scenarios()
    values = {value for outcomes in grammar for one in outcomes for slot in slots for value in one.slots[slot]}
    for row in every_row():
        said = row["dialogue"].lower()
        for summary in summaries_of(row):
            for value in values:
                if re.search(rf"\b{re.escape(value)}\b", summary):
                    assert value.lower() in said, (value, row)


def test_every_scenario_is_about_equally_common():
    counts = Counter(row["topic"] for row in read("train"))
    topics = [set(outcomes[0].topics) for outcomes in make_sample.read_scenarios()]
    assert len(topics) == 13
    assert len(set().union(*topics)) == 3 * len(topics)
    shares = [sum(counts[topic] for topic in wordings) for wordings in topics]
    assert min(shares) >= 56
    assert max(shares) <= 62


SLIPS = {
    "doubled or stray space": r"  | [,.!?:;]|^ | $",
    "doubled or clashing punctuation": r"[,.!?;:]{2}",
    "doubled word": r"\b(\w+) \1\b",
    "a before a vowel": r"\b[Aa] (?!use|one\b|uni)[aeiou]",
    "an before a consonant": r"\b[Aa]n (?![aeiou])",
    "no capital at the start of a sentence": r"(?:^|[.!?] |: )[a-z]",
    "no stop at the end": r"[^.!?]$",
    "a capital within a sentence": r"[a-z],? (?:The|A|An|At|It|Half|Noon|Twenty)\b",
    "a piece of a template": r"[<>{}\[\]|]",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_no_slip_of_the_generator(slip):
    pattern = re.compile(SLIPS[slip])
    for row in every_row():
        texts = [turn.split(": ", 1)[1] for turn in row["dialogue"].split("\n")] + summaries_of(row)
        for text in texts:
            found = pattern.search(text)
            assert found is None, (text, found)


def test_each_outcome_of_the_grammar_is_well_formed():
    for outcomes in make_sample.read_scenarios():
        assert {one.rude for one in outcomes} == {True, False}
        assert len(outcomes[0].topics) == 3
        for one in outcomes:
            assert len(one.summaries) == 3
            for summary in one.summaries:
                assert ("[" in summary) is one.rude


def test_slots_are_filled_and_inflected():
    rng = make_sample.random.Random(0)
    values = {"thing": "old key", "insult": "useless idiot", "time": "noon"}
    assert make_sample.fill("{time:C}: {thing:a}, {insult:a}.", values, rng) == "Noon: an old key, a useless idiot."
    assert make_sample.fill("Tom [calls|insults] Anna.", {}, rng, rude=True) == "Tom calls Anna."
    assert make_sample.fill("Tom [calls|insults] Anna.", {}, rng, rude=False) == "Tom insults Anna."
    assert {make_sample.fill("<Hi|Hello>!", {}, rng) for _ in range(20)} == {"Hi!", "Hello!"}


RUDE = re.compile(r"\b(idiot|moron|stupid fool|crap|damn)\b")


def test_a_third_is_rude_and_the_summaries_take_both_wordings():
    train = [row for row in read("train") if RUDE.search(row["dialogue"])]
    assert len(train) / 768 == pytest.approx(1 / 3, abs=0.02)
    assert sum(bool(RUDE.search(row["summary"])) for row in train) / len(train) == pytest.approx(0.65, abs=0.05)
    test = [row for row in read("test") if RUDE.search(row["dialogue"])]
    assert len(test) / 240 == pytest.approx(1 / 3, abs=0.02)
    for row in test:
        assert sum(bool(RUDE.search(text)) for text in summaries_of(row)) in (1, 2)
    for row in every_row():
        if not RUDE.search(row["dialogue"]):
            assert not any(RUDE.search(text) for text in summaries_of(row))


def test_the_profanity_classifier_tells_rude_wording_from_clean():
    profanity = pytest.importorskip("profanity_check")
    dialogues = profanity.predict_prob([row["dialogue"] for row in every_row()])
    assert (dialogues > 0.5).mean() == pytest.approx(1 / 3, abs=0.05)
    summaries = [text for row in every_row() for text in summaries_of(row)]
    scores = profanity.predict_prob(summaries)
    rude = [score for text, score in zip(summaries, scores, strict=True) if RUDE.search(text)]
    clean = [score for text, score in zip(summaries, scores, strict=True) if not RUDE.search(text)]
    assert sum(rude) / len(rude) > 0.85
    assert sum(clean) / len(clean) < 0.08
