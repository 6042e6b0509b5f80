"""What a port has to stand: nonsense, strangers, clients that leave, too many of them."""
# ruff: noqa: E402

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from src.models.generation_options import GenerationOptions
from src.serving.engine import Engine
from src.serving.hosted import Hosted, Limits
from tests.serving.ports import Running, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
LONG = {"model": "gpt2", "prompt": "Hi", "max_tokens": 400, "min_tokens": 400}

MALFORMED: dict[str, tuple[str, Any]] = {
    "no body": (CHAT, b""),
    "not JSON": (CHAT, b"{"),
    "not UTF-8": (CHAT, b'{"model": "\xff\xfe"}'),
    "a list": (CHAT, []),
    "a number": (CHAT, 3),
    "null": (CHAT, None),
    "nested without end": (CHAT, b"[" * 100_000),
    "empty": (CHAT, {}),
    "no messages": (CHAT, {"model": "gpt2"}),
    "no message": (CHAT, {**ASKED, "messages": []}),
    "messages of text": (CHAT, {**ASKED, "messages": "Hi"}),
    "a message of text": (CHAT, {**ASKED, "messages": ["Hi"]}),
    "an unknown role": (CHAT, {**ASKED, "messages": [{"role": "wizard", "content": "Hi"}]}),
    "no content": (CHAT, {**ASKED, "messages": [{"role": "user"}]}),
    "a picture": (CHAT, {**ASKED, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    "the assistant last": (CHAT, {**ASKED, "messages": [*ASKED["messages"], {"role": "assistant", "content": "Hi"}]}),
    "the system late": (CHAT, {**ASKED, "messages": [*ASKED["messages"], {"role": "system", "content": "Be."}]}),
    "half a character": (CHAT, b'{"model": "gpt2", "messages": [{"role": "user", "content": "\\ud800"}]}'),
    "a model of half a character": (CHAT, b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}'),
    "a temperature of text": (CHAT, {**ASKED, "temperature": "1"}),
    "a temperature of NaN": (TEXT, b'{"model": "gpt2", "prompt": "x", "temperature": NaN}'),
    "a temperature below 0": (CHAT, {**ASKED, "temperature": -1}),
    "top_p of 0": (CHAT, {**ASKED, "top_p": 0}),
    "n of 0": (CHAT, {**ASKED, "n": 0}),
    "n of too many": (CHAT, {**ASKED, "n": 900, "temperature": 1}),
    "n without sampling": (CHAT, {**ASKED, "n": 2}),
    "max_tokens of true": (CHAT, {**ASKED, "max_tokens": True}),
    "max_tokens of 0": (CHAT, {**ASKED, "max_tokens": 0}),
    "max_tokens of a fraction": (CHAT, {**ASKED, "max_tokens": 1.5}),
    "max_tokens of too many": (CHAT, {**ASKED, "max_tokens": 900_000}),
    "min_tokens above max_tokens": (CHAT, {**ASKED, "max_tokens": 3, "min_tokens": 5}),
    "a seed beyond 64 bits": (CHAT, {**ASKED, "seed": 2**64}),
    "a seed below 0": (CHAT, {**ASKED, "seed": -1}),
    "stops of numbers": (CHAT, {**ASKED, "stop": [1]}),
    "too many stops": (CHAT, {**ASKED, "stop": ["x"] * 99}),
    "a bias of no token": (CHAT, {**ASKED, "logit_bias": {"99999999": 1}}),
    "a bias of text": (CHAT, {**ASKED, "logit_bias": {"hello": 1}}),
    "tools": (CHAT, {**ASKED, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    "a schema": (CHAT, {**ASKED, "response_format": {"type": "json_object"}}),
    "a misspelt field": (CHAT, {**ASKED, "temprature": 1}),
    "an unknown field": (CHAT, {**ASKED, "guided_choice": ["a", "b"]}),
    "no prompt": (TEXT, {"model": "gpt2"}),
    "an empty prompt": (TEXT, {"model": "gpt2", "prompt": ""}),
    "no prompts": (TEXT, {"model": "gpt2", "prompt": []}),
    "a prompt of both": (TEXT, {"model": "gpt2", "prompt": ["Hi", 3]}),
    "a prompt of true": (TEXT, {"model": "gpt2", "prompt": [True]}),
    "no such token": (TEXT, {"model": "gpt2", "prompt": [10**6]}),
    "a token below 0": (TEXT, {"model": "gpt2", "prompt": [-1]}),
    "too long a prompt": (TEXT, {"model": "gpt2", "prompt": "Hello there, " * 2000}),
    "too many prompts": (TEXT, {"model": "gpt2", "prompt": ["Hi"] * 1000}),
    "best of several": (TEXT, {"model": "gpt2", "prompt": "Hi", "best_of": 4}),
    "a suffix": (TEXT, {"model": "gpt2", "prompt": "Hi", "suffix": "x"}),
    "echo with logprobs": (TEXT, {"model": "gpt2", "prompt": "Hi", "echo": True, "logprobs": 1}),
}  # fmt: skip


def post(served: Running, path: str, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        served.url + path, content=content, headers={"content-type": "application/json", **headers}, timeout=30
    )


def check_error(reply: Any, status: int | None = None) -> dict[str, Any]:
    assert 400 <= reply.status_code < 500
    assert status is None or reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].strip().endswith(".")
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize("kind", MALFORMED)
def test_nonsense_is_refused_in_json_and_never_a_500(kind: str, served: Running) -> None:
    path, body = MALFORMED[kind]
    check_error(post(served, path, body))
    assert served.client().completions.create(model="gpt2", prompt="Hi", max_tokens=1).choices


def test_the_openai_client_knows_what_is_wrong(served: Running) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="gpt2", prompt="Hello there, " * 2000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="gpt2", prompt="Hi", temperature=9)
    assert error.value.param == "temperature"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("PUT", TEXT, 405)]
)
def test_other_places_and_methods(method: str, path: str, status: int, served: Running) -> None:
    check_error(httpx.request(method, served.url + path), status)


def test_a_page_elsewhere_cannot_make_a_browser_ask(served: Running) -> None:
    plain = httpx.post(served.url + CHAT, content=json.dumps(ASKED), headers={"content-type": "text/plain"})
    check_error(plain, 415)
    check_error(httpx.get(served.url + "/v1/models", headers={"host": "evil.example:80"}), 403)
    port = served.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert httpx.get(served.url + "/health", headers={"host": host}).status_code == 200


def test_health_says_how_busy_it_is(served: Running) -> None:
    before = httpx.get(served.url + "/health").json()
    served.client().completions.create(model="gpt2", prompt="Hi", max_tokens=5, extra_body={"min_tokens": 5})
    assert served.until_idle()
    after = httpx.get(served.url + "/health").json()
    assert after["status"] == "ok"
    assert (after["tokens"] - before["tokens"], after["requests"] - before["requests"]) == (5, 1)
    assert (after["rows"], after["waiting"]) == (0, 0)


@pytest.fixture
def gpt2(served: Running) -> Hosted:
    return Hosted("gpt2", served.models["gpt2"].finished, GenerationOptions(), Limits(answer_tokens=400))


def test_the_key(gpt2: Hosted) -> None:
    with running({"gpt2": gpt2}, key="s3cret") as server:
        assert httpx.get(server.url + "/health").status_code == 200
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "s3cret"},
            {"authorization": "Basic s3cret"},
        ):
            assert check_error(httpx.get(server.url + "/v1/models", headers=header), 401)["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        right = openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=0)
        assert right.completions.create(model="gpt2", prompt="Hi", max_tokens=2).choices


def test_a_body_that_is_too_large_is_not_read(gpt2: Hosted) -> None:
    with running({"gpt2": gpt2}, max_body=1000) as server:
        check_error(post(server, TEXT, {"model": "gpt2", "prompt": "x" * 2000}), 413)

        def parts():
            for _ in range(50):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        check_error(httpx.post(server.url + TEXT, content=parts(), headers=headers), 413)
        assert post(server, TEXT, {"model": "gpt2", "prompt": "Hi", "max_tokens": 1}).status_code == 200


def test_one_more_than_may_wait_is_told_to_come_again(gpt2: Hosted) -> None:
    with running({"gpt2": gpt2}, Engine(max_rows=1, max_waiting=1)) as server:
        replies: list[Any] = []
        threads = [threading.Thread(target=lambda: replies.append(post(server, TEXT, LONG))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        codes = sorted(reply.status_code for reply in replies)
        assert set(codes) == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert check_error(refused)["code"] == "queue_full"
        assert refused.headers["retry-after"] == "1"


def test_a_client_that_leaves_stops_its_work(served: Running) -> None:
    def written_after(leave: Any) -> int:
        assert served.until_idle()
        before = served.engine.load.tokens
        leave()
        assert served.until_idle(20)
        return served.engine.load.tokens - before

    asked = {**LONG, "n": 16, "temperature": 1}

    def leave_a_stream() -> None:
        with httpx.stream("POST", served.url + TEXT, json={**asked, "stream": True}) as stream:
            next(stream.iter_lines())

    def leave_while_waiting() -> None:
        body = json.dumps(asked).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.1)

    for leave in (leave_a_stream, leave_while_waiting):
        assert written_after(leave) < 16 * 400 * 0.9, leave


def test_many_clients_lose_nothing(served: Running) -> None:
    """Streams and whole answers of several models at once, each the one that it is alone."""
    client = served.client()
    asked = [
        {"model": name, "prompt": f"{word}, will you", "max_tokens": 5 + n}
        for n, word in enumerate(("Yes", "No", "Then", "Now"))
        for name in ("gpt2", "t5", "bart", "llama")
    ]
    alone = [client.completions.create(**one).choices[0].text for one in asked]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        if number % 2:
            chunks = client.completions.create(**asked[number], stream=True)
            found[number] = "".join(chunk.choices[0].text for chunk in chunks)
        else:
            found[number] = client.completions.create(**asked[number]).choices[0].text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found.get(number) for number in range(len(asked))] == alone


def test_two_servers_cannot_have_one_port() -> None:
    from src.errors import ParleyError
    from src.serving.server import bound

    with bound("127.0.0.1", 0) as taken, pytest.raises(ParleyError, match="cannot be listened at"):
        bound("127.0.0.1", taken.getsockname()[1])


def test_a_misspelt_field_is_named_and_what_changes_nothing_is_taken(served: Running) -> None:
    wrong = post(served, CHAT, {**ASKED, "temprature": 1}).json()["error"]
    assert wrong["param"] == "temprature"
    assert "did you mean temperature?" in wrong["message"]
    assert post(served, CHAT, {**ASKED, "user": "me", "metadata": {"a": "b"}, "store": False}).status_code == 200
