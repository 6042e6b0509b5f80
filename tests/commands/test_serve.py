"""`parley serve` as a user runs it."""
# ruff: noqa: E402

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from peft import LoraConfig

from src.cli import main
from src.models.adapters import save_adapter
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora
from tests.announcing import announced
from tests.shaking import shaken

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    command = [sys.executable, "-m", "src", "serve", *words, "--port", "0", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path])), **environment}
    with announced(command, env, ROOT) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_under_way(number: signal.Signals, tiny_base: Callable[..., Path]) -> None:
    with serving(str(tiny_base("gpt2")), "--name", f"second={tiny_base('t5')}") as (process, url, lines):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list().data] == ["gpt2-0", "second"]
        chunks = iter(
            client.completions.create(
                model="gpt2-0", prompt="Hi", max_tokens=600, stream=True, extra_body={"min_tokens": 600}
            )
        )
        next(chunks)
        process.send_signal(number)
        finishes = [chunk.choices[0].finish_reason for chunk in chunks]
        assert finishes[-1] == "length"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/models")
    assert any(f"{number.name}: no more requests are taken" in line for line in lines)


@pytest.mark.slow
def test_the_key_comes_from_the_environment(tiny_base: Callable[..., Path]) -> None:
    with serving(str(tiny_base("t5")), PARLEY_API_KEY="k") as (_, url, _lines):
        assert httpx.get(url + "/models").status_code == 401
        assert openai.OpenAI(base_url=url, api_key="k").models.list().data


@pytest.mark.parametrize("beams", [1, 3])
def test_adapters_share_a_base(beams: int, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """Asked all at once, each answers as it does when it is loaded by itself, and the base as without adapters."""
    from src.inference.loading import load_finished
    from src.models.generation_options import GenerationOptions
    from src.serving.adapters import share
    from src.serving.hosted import Hosted
    from tests.serving.ports import expected, running

    base = tiny_base("t5")
    places = {}
    for seed, name in enumerate(("flan-t5.v1.5", "two")):
        adapted = add_lora(load_model(base), LoraConfig(r=2 + seed, target_modules=["q", "v"]))
        shaken(adapted, "lora_", size=1.0, seed=seed)
        places[name] = str(save_adapter(adapted, load_tokenizer(base), tmp_path / name))
    options = GenerationOptions(max_new_tokens=12, num_beams=beams)
    wanted = {}
    for name, place in {"base": str(base), **places}.items():
        hosted = Hosted(name, load_finished(place, device="cpu"), options)
        [wanted[name]] = expected(hosted, hosted.text("Will you meet me?"), num_beams=beams)
    assert len(set(wanted.values())) == 3
    shared, switch = share(load_finished(str(base), device="cpu"), places)
    models = {
        name: Hosted(name, shared, options, activate=partial(switch.to, None if name == "base" else name))
        for name in wanted
    }
    with running(models) as server:
        client, found = server.client(), {}

        def ask(number: int) -> None:
            name = list(models)[number % 3]
            found[number] = (name, client.completions.create(model=name, prompt="Will you meet me?").choices[0].text)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(found) == 9
    assert all(text == wanted[name] for name, text in found.values())


def test_bad_input_is_one_line(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    t5 = str(tiny_base("t5"))
    empty, biased = tmp_path / "key", tmp_path / "biased"
    empty.write_text("\n")
    adapted = add_lora(load_model(tiny_base("bart")), LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only"))
    save_adapter(adapted, load_tokenizer(tiny_base("bart")), biased)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, said in (
            ([], "there is no MODEL to serve"),
            ([t5, "--port", port], "cannot be listened at"),
            ([t5, "--port", "99999"], "--port is 99999"),
            ([t5, "--port", "0", "--host", "no.such.host.invalid"], "cannot be listened at"),
            ([t5, t5], "given twice"),
            ([t5, "--max-batch", "4"], "--max-answers is 16"),
            ([t5, "--num-return-sequences", "2", "--num-beams", "2"], "client's to say"),
            ([t5, "--port", "0", "--api-key-file", str(empty)], "does not hold one key"),
            ([t5, "--port", "0", "--format", "published"], "encoder-decoder"),
            ([str(tmp_path / "none"), "--port", "0"], "there is no model directory"),
            ([t5, str(tiny_base("bart")), "--adapter", "a=x"], "adapters are on one MODEL"),
            ([t5, "--adapter", "models/adapter"], "--adapter is 'models/adapter'; write a name and a model"),
            ([t5, "--adapter", "a=x", "--adapter", "a=y"], "--adapter: the name 'a' is taken or given twice"),
            ([t5, "--adapter", f"{Path(t5).name}=x"], f"--adapter: the name {Path(t5).name!r} is taken"),
            ([t5, "--port", "0", "--adapter", f"a={tmp_path}"], "no adapter directory"),
            ([str(tiny_base("bart")), "--port", "0", "--adapter", f"a={biased}"], "cannot be switched on and off"),
        ):
            assert main(["serve", *words]) == 2
            error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parley serve: ")]
            assert len(error) == 1
            assert said in error[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", t5]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


def test_a_server_for_everybody_without_a_key_is_warned_of(
    tiny_base: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.serving.server.serve", lambda app, listening, ready: listening.close())
    monkeypatch.delenv("PARLEY_API_KEY", raising=False)
    assert main(["serve", str(tiny_base("t5")), "--host", "0.0.0.0", "--port", "0"]) == 0
    assert "there is no key" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
def test_a_server_is_called_by_the_name_that_it_was_given(
    host: str, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = []
    monkeypatch.setattr(
        "src.serving.server.serve", lambda app, listening, ready: guards.append(app) or listening.close()
    )
    assert main(["serve", str(tiny_base("t5")), "--host", host, "--port", "0"]) == 0
    assert {host, "127.0.0.1"} <= guards[0].hosts
