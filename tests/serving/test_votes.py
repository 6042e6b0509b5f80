"""What people vote for is what DPO learns from: the prompt as the model was asked it, both answers, whole lines."""
# ruff: noqa: E402

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from src.contracts import Turn
from src.datamodules import PreferenceDataModule
from src.errors import ParleyError
from src.serving.page import Page
from src.serving.votes import VoteFile
from tests.serving.ports import KINDS, Running, running

TALK = [
    {"role": "user", "content": "Will you come?"},
    {"role": "assistant", "content": "Yes,\nat noon."},
    {"role": "user", "content": "And the café?"},
]
VOTE = {
    "messages": TALK,
    "chosen": {"text": " At one. ", "model": "gpt2", "options": {"temperature": 0.5, "stop": ["\n"]}},
    "rejected": {"text": "No.", "model": "t5", "options": {"preset": "greedy"}},
}


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


@pytest.fixture
def voting(served: Running, votes: Path) -> Iterator[Running]:
    models = {name: hosted for name, hosted in served.models.items() if name != "beams"}
    models["told"] = replace(models["gpt2"], name="told", system="Be kind.")
    with running(models, page=Page(votes=VoteFile(votes))) as server:
        yield server


def vote(server: Running, body: Any) -> Any:
    return httpx.post(f"{server.url}/votes", json=body, timeout=30)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def batch_of(file: Path, base: Path, **options: Any) -> Any:
    data = PreferenceDataModule(str(base), path=str(file), batch_size=1, **options)
    data.setup("test")
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [False, True])
def test_dpo_reads_the_pair_after_the_very_prompt_that_was_asked(
    kind: str, system: bool, voting: Running, votes: Path, tiny_base: Callable[..., Path]
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *TALK] if system else TALK
    body = {**VOTE, "messages": messages, "chosen": {**VOTE["chosen"], "model": kind}}
    assert vote(voting, body).status_code == 201
    hosted = voting.models[kind]
    asked = hosted.talk([Turn(**message) for message in messages])
    batch = batch_of(votes, tiny_base(kind), format="auto" if hosted.finished.is_encoder_decoder else hosted.style)
    assert batch["prompt_ids"][0].tolist() == asked
    tokenizer = hosted.finished.tokenizer
    answers = [
        tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).strip()
        for ids, mask in zip(batch["answer_ids"], batch["answer_mask"], strict=True)
    ]
    assert answers == ["At one.", "No."]
    assert (batch["chosen"], batch["rejected"]) == (["At one."], ["No."])


def test_the_prompt_has_what_the_server_says_first(voting: Running, votes: Path) -> None:
    vote(voting, {**VOTE, "chosen": {**VOTE["chosen"], "model": "told"}})
    vote(voting, {**VOTE, "messages": [{"role": "user", "content": "Hi"}]})
    told, plain = lines(votes)
    assert told["prompt"] == [{"role": "system", "content": "Be kind."}, *TALK]
    assert plain["prompt"] == [{"role": "user", "content": "Hi"}]


def test_a_pair_says_what_wrote_its_answers(voting: Running, votes: Path) -> None:
    for _ in range(2):
        vote(voting, VOTE)
    first, second = lines(votes)
    assert first["id"] != second["id"]
    assert (first["chosen_model"], first["rejected_model"]) == ("gpt2", "t5")
    assert first["chosen_options"]["stop"] == ["\n"]
    assert first["rejected_options"]["preset"] == "greedy"
    assert set(first["chosen_options"]) == set(first["rejected_options"])


def test_trl_reads_the_votes(voting: Running, votes: Path, tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    from datasets import load_dataset

    vote(voting, VOTE)
    rows = load_dataset("json", data_files=str(votes), split="train", cache_dir=str(tmp_path / "cache"))
    assert data_utils.is_conversational(rows[0])
    tokenizer = copy.deepcopy(voting.models["gpt2"].finished.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}(assistant){% endif %}"
    )
    text = data_utils.apply_chat_template({key: rows[0][key] for key in ("prompt", "chosen", "rejected")}, tokenizer)
    assert text == {
        "prompt": "(user)Will you come?(assistant)Yes,\nat noon.(user)And the café?(assistant)",
        "chosen": "At one.",
        "rejected": "No.",
    }


REFUSED: dict[str, Any] = {
    "no messages": {**VOTE, "messages": []},
    "the assistant last": {**VOTE, "messages": TALK[:2]},
    "an unknown role": {**VOTE, "messages": [{"role": "wizard", "content": "Hi"}]},
    "the system late": {**VOTE, "messages": [*TALK[:2], {"role": "system", "content": "Hi"}, TALK[2]]},
    "no content": {**VOTE, "messages": [{"role": "user"}]},
    "an empty answer": {**VOTE, "rejected": {**VOTE["rejected"], "text": " \n"}},
    "equal answers": {**VOTE, "rejected": {**VOTE["rejected"], "text": "At one."}},
    "an unknown model": {**VOTE, "chosen": {**VOTE["chosen"], "model": "nobody"}},
    "an option of another kind": {**VOTE, "chosen": {**VOTE["chosen"], "options": {"seed": "1"}}},
    "a field that nobody knows": {**VOTE, "file": "/etc/passwd"},
    "too long a text": {**VOTE, "chosen": {**VOTE["chosen"], "text": "x" * 200_001}},
    "a list": [VOTE],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_vote_is_refused_in_a_line_and_not_written(kind: str, voting: Running, votes: Path) -> None:
    reply = vote(voting, REFUSED[kind])
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].count("\n") == 0
    assert votes.read_bytes() == b""


def test_half_a_character_is_refused(voting: Running, votes: Path) -> None:
    body = json.dumps(VOTE).replace("At one.", "\\ud800")
    reply = httpx.post(f"{voting.url}/votes", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert votes.read_bytes() == b""


def test_a_page_elsewhere_cannot_vote(voting: Running, votes: Path) -> None:
    as_form = httpx.post(f"{voting.url}/votes", content=json.dumps(VOTE), headers={"content-type": "text/plain"})
    renamed = httpx.post(f"{voting.url}/votes", json=VOTE, headers={"host": "evil.example"})
    assert (as_form.status_code, renamed.status_code) == (415, 403)
    assert votes.read_bytes() == b""


def test_without_a_file_no_votes_are_taken(served: Running) -> None:
    with running({"gpt2": served.models["gpt2"]}, page=Page()) as server:
        assert vote(server, VOTE).status_code == 404


def test_what_a_kill_left_of_a_line_costs_no_other(votes: Path) -> None:
    votes.write_bytes(b'{"id": 1}\n{"id": 2, "prompt": "caf\xc3')
    VoteFile(votes).add({"id": 3})
    assert lines(votes) == [{"id": 1}, {"id": 3}]
    votes.write_bytes(b'{"id": "' + b"x" * 200_000)
    VoteFile(votes).add({"id": 3})
    assert lines(votes) == [{"id": 3}]


def test_a_last_line_without_its_end_stays(votes: Path) -> None:
    votes.write_bytes(b'{"id": 1}\n{"id": 2}')
    VoteFile(votes).add({"id": 3})
    assert lines(votes) == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_votes_at_once_are_whole_lines(votes: Path) -> None:
    """From two servers with several threads each."""
    files = [VoteFile(votes), VoteFile(votes)]
    rows = [{"id": number, "text": "é" * 5000} for number in range(40)]
    threads = [threading.Thread(target=files[n % 2].add, args=(row,)) for n, row in enumerate(rows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(lines(votes), key=lambda row: row["id"]) == rows


def test_a_file_that_cannot_be_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ParleyError, match="jsonl"):
        VoteFile(tmp_path / "votes.csv")
    with pytest.raises(ParleyError, match="nowhere"):
        VoteFile(tmp_path / "nowhere" / "votes.jsonl")


def test_a_disk_that_refuses_is_said_to_the_voter(voting: Running, votes: Path) -> None:
    votes.unlink()
    votes.mkdir()
    reply = vote(voting, VOTE)
    assert reply.status_code == 507
    assert "votes.jsonl" in reply.json()["error"]["message"]
