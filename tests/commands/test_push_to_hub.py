"""`parley export --push-to-hub`, with a server of our own in the hub's place that takes what the hub's client sends."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load as load_tensors

from src.cli import main

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Knows one account and takes commits, by the routes of the hub's documentation and Git LFS's batch API."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.refuses_commits = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Asked(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_args: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status: int, content: Any = None) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        is_known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if self.path == "/api/whoami-v2" and is_known:
            self.answer(200, {"name": "me", "type": "user", "orgs": []})
        else:
            self.answer(401, {"error": "Invalid credentials"})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def do_POST(self) -> None:
        sent, path = self.body(), self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.made.append(json.loads(sent))
            self.answer(200, {"url": f"{self.server.address}/me/summaries", "name": "me/summaries", "id": "1"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/me/summaries/preupload/main":
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(sent)["files"]
            ]  # fmt: skip
            self.answer(200, {"files": files})
        elif path == "/me/summaries.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/objects/{one['oid']}", "header": {}}}}
                for one in json.loads(sent)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif path == "/api/models/me/summaries/commit/main" and not self.server.refuses_commits:
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.objects[value["oid"]]
            self.answer(200, {"commitUrl": f"{self.server.address}/me/summaries/commit/1", "commitOid": "1" * 40})
        else:
            self.answer(403, {"error": f"{path} is not for you"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is another, of the hub's alone
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_the_directory_is_on_the_hub_as_it_is_here(
    hub: Hub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "summaries"
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(output), "--push-to-hub", "me/summaries"]
    capsys.readouterr()
    assert main([*words, "--merge", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["hub"] == f"{hub.address}/me/summaries"
    here = {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}
    assert hub.files == here
    assert {Path(name).suffix for name in here} <= {".json", ".md", ".jinja", ".txt", ".safetensors"}  # no pickles
    assert load_tensors(hub.files["model.safetensors"])
    assert all(hashlib.sha256(content).hexdigest() == oid for oid, content in hub.objects.items())
    assert main([*words, "--overwrite", "--public"]) == 0
    assert [(made["name"], made["organization"], made["visibility"]) for made in hub.made] == [
        ("summaries", "me", "private"),
        ("summaries", "me", "public"),
    ]
    hub.refuses_commits = True
    assert main([*words, "--overwrite"]) == 2
    assert f"try again with: hf upload me/summaries {output}" in capsys.readouterr().err
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "constant", "token", "said"),
    [
        (["--push-to-hub", "me/summaries"], {}, None, "there is no token for the hub"),
        (["--push-to-hub", "me/summaries"], {}, "hf_wrong", "the hub cannot be asked"),
        (["--push-to-hub", "me/summaries"], {"HF_HUB_OFFLINE": True}, TOKEN, "offline mode is enabled"),
        (["--push-to-hub", "me/summaries"], {"ENDPOINT": "http://127.0.0.1:9"}, TOKEN, "the hub cannot be asked"),
        (["--push-to-hub", "summaries"], {}, TOKEN, "OWNER/summaries"),
        (["--push-to-hub", "me/../x"], {}, TOKEN, "give OWNER/NAME"),
        (["--public"], {}, TOKEN, "--public says who may see"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_would_not_take_is_one_line_before_anything_is_read(
    words: list[str],
    constant: dict[str, Any],
    token: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in constant.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert main(["export", "--checkpoint", str(tmp_path / "none.ckpt"), "--output", str(tmp_path / "out"), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("parley export: ")
    assert said in line
