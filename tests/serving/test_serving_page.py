"""What the server has for the page: its files, the headers that keep it to itself, its settings, rows of data."""
# ruff: noqa: E402

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from scripts.load_serve import server
from src.cli import main
from src.errors import ParleyError
from src.models.generation_options import GenerationOptions
from src.serving.page import Page, page_files
from src.serving.page_rows import PageRow, read_page_rows
from tests.conftest import ROOT
from tests.serving.ports import Running, running

FILES = sorted(ROOT.glob("src/serving/page/*"))
ROWS = [PageRow("first", "Ann: Hi.", ["A greeting."]), PageRow("second", "Ben: Bye.")]


@pytest.fixture(scope="module")
def site(served: Running) -> Iterator[Running]:
    with running(served.models, page=Page(ROWS)) as server:
        yield server


@pytest.mark.parametrize("path", ["/", *(f"/page/{file.name}" for file in FILES if file.name != "index.html")])
def test_a_file_may_do_nothing_with_any_other_host(path: str, site: Running) -> None:
    reply = httpx.get(site.url + path)
    assert reply.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy.pop("img-src") == "'self' data:"
    assert {policy.pop(f"{kind}-src") for kind in ("script", "style", "connect")} == {"'self'"}
    assert set(policy.values()) == {"'none'"}
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript"}
    assert reply.headers["content-type"] == f"{kinds[path.partition('.')[2]]}; charset=utf-8"


def test_the_files_name_no_other_host_and_run_nothing_inline() -> None:
    for file in FILES:
        text = file.read_text("utf-8")
        assert "://" not in text, file
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "<script>",
            " style=",
        ):
            assert unsafe not in text, (file, unsafe)
        assert len(text.splitlines()) < 250


def test_a_wheel_has_the_files(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    source = tmp_path / "source"
    source.mkdir()
    for each in ("src", "pyproject.toml", "README.md", "LICENSE"):
        (source / each).symlink_to(ROOT / each)
    subprocess.run([*build, str(source)], check=True, timeout=120)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"src/serving/page/{file.name}" for file in FILES} <= names


def test_only_the_files_are_reached_without_the_key(served: Running) -> None:
    with running({"gpt2": served.models["gpt2"]}, page=Page(ROWS), key="s3cret") as server:
        for path in page_files():
            assert httpx.get(server.url + path).status_code == 200
        for path in ("/page/settings", "/page/rows/0", "/page/nothing.js", "/v1/models", "//", "/page/"):
            assert httpx.get(server.url + path).status_code == 401, path
        assert httpx.post(f"{server.url}/votes", json={}).status_code == 401
        key = {"authorization": "Bearer s3cret"}
        assert httpx.get(f"{server.url}/page/settings", headers=key).status_code == 200


def test_under_another_name_there_is_no_page(site: Running) -> None:
    assert httpx.get(site.url, headers={"host": "evil.example"}).status_code == 403


def test_without_a_page_there_is_nothing(served: Running) -> None:
    for path in ("/", "/page/main.js", "/page/settings", "/page/rows/0"):
        assert httpx.get(served.url + path).status_code == 404


def test_the_settings(site: Running) -> None:
    settings = httpx.get(f"{site.url}/page/settings").json()
    assert [model["id"] for model in settings["models"]] == list(site.models)
    assert (settings["rows"], settings["votes"]) == (2, False)
    presets = {file.stem for file in (ROOT / "configs" / "decoding").glob("*.yaml")}
    assert {preset["name"] for preset in settings["presets"]} == presets
    assert {preset["name"]: preset["answers"] for preset in settings["presets"]}["beams-5-all"] == 5
    assert settings["templates"]["flan"] == "Dialogue:\n{dialogue}\nWhat was going on?"
    assert all(text.count("{") == text.count("}") == 1 for text in settings["templates"].values())


def test_rows_are_those_of_the_file_alone(site: Running) -> None:
    assert httpx.get(f"{site.url}/page/rows/1").json() == {
        "number": 1, "id": "second", "text": "Ben: Bye.", "references": [], "is_dialogue": False,
    }  # fmt: skip
    for odd in ("2", "-1"):
        assert httpx.get(f"{site.url}/page/rows/{odd}").status_code == 404
    for odd in ("x", "1e0", "../rows/0x1", "%2e%2e%2fetc%2fpasswd"):
        assert httpx.get(f"{site.url}/page/rows/{odd}").status_code in (400, 404)


DATA: dict[str, tuple[list[dict[str, Any]], list[PageRow]]] = {
    "DialogSum": (
        [{"id": "a", "dialogue": "A: Hi.", "summary1": "One.", "summary2": "Two."}],
        [PageRow("a_1", "A: Hi.", ["One.", "Two."], is_dialogue=True)],
    ),
    "dialogues alone": ([{"id": "a", "dialogue": "A: Hi."}], [PageRow("a", "A: Hi.", is_dialogue=True)]),
    "ChatbotData": ([{"Q": "Hi?", "A": "Ho.", "label": 0}], [PageRow("0", "Hi?", ["Ho."])]),
    "prompts": ([{"prompt": "Go on."}, {"prompt": " "}], [PageRow("0", "Go on.")]),
    "pairs of talks": ([{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [], "id": 7}], [PageRow("7", "Hi")]),
    "conversations": (
        [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}],
        [PageRow("0", "Hi", ["Ho"])],
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_of_every_kind(kind: str, tmp_path: Path) -> None:
    written, rows = DATA[kind]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in written), "utf-8")
    assert read_page_rows(str(file)) == rows


def test_a_directory_and_a_text(tmp_path: Path, sample: Path) -> None:
    assert len(read_page_rows(str(sample))[0].references) == 3
    (tmp_path / "validation.jsonl").write_text('{"prompt": "One"}', "utf-8")
    (tmp_path / "train.jsonl").write_text('{"prompt": "Two"}', "utf-8")
    assert [row.text for row in read_page_rows(str(tmp_path))] == ["One"]
    (tmp_path / "asked.txt").write_text("One\nTwo\n", "utf-8")
    assert [row.text for row in read_page_rows(str(tmp_path / "asked.txt"))] == ["One", "Two"]


def test_data_that_asks_nothing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"x": "1"}', "utf-8")
    with pytest.raises(ParleyError, match="columns x"):
        read_page_rows(str(file))
    with pytest.raises(ParleyError, match="nowhere"):
        read_page_rows(str(tmp_path / "nowhere"))


def test_options_of_a_page_that_is_left_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "nobody/nothing", "--no-page", "--votes", str(tmp_path / "votes.jsonl"), "--port", "0"]
    assert main(words) == 2
    assert "--no-page" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_serves_the_page(tiny_base: Callable[..., Path], sample: Path, tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    words = [str(tiny_base("t5")), "--page-data", str(sample), "--votes", str(votes), "--device", "cpu"]
    with server(*words) as (host, port, _):
        url = f"http://{host}:{port}"
        assert "<title>Parley</title>" in httpx.get(url).text
        settings = httpx.get(f"{url}/page/settings").json()
        assert (settings["rows"], settings["votes"]) == (len(read_page_rows(str(sample))), True)
        asked = [{"role": "user", "content": "Well?"}]
        sides = {side: {"text": side, "model": "t5-0"} for side in ("chosen", "rejected")}
        assert httpx.post(f"{url}/votes", json={"messages": asked, **sides}).status_code == 201
    assert json.loads(votes.read_text("utf-8"))["prompt"] == asked


def test_the_defaults_are_said(served: Running) -> None:
    hosted = served.models["gpt2"]
    hosted = type(hosted)("x", hosted.finished, GenerationOptions(do_sample=True, top_p=0.5))
    with running({"x": hosted}, page=Page()) as server:
        [model] = httpx.get(f"{server.url}/page/settings").json()["models"]
    assert model["samples"] is True
    assert "top_p 0.5" in model["does"]
