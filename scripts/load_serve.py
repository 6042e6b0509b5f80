"""Put load on `parley serve`: one client by itself, then many at once, and say what was lost and how fast it was.

    python -m scripts.load_serve runs/demo/model --clients 64 --seconds 60

The server is started for it on a free port and stopped afterwards. Each client sends one request after the other, each
for so many tokens, greedy; a reply that is no answer, or of another length, counts as lost.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Phase:
    """What some clients met with.

    Attributes:
        clients: How many.
        requests: Answered.
        lost: Not answered, or not as they should be.
        tokens_per_second: Written for all of them together.
        seconds_per_request: The middle of what a client waited.
        slowest: The longest that one waited, seconds.
        memory_mb: Of the server at the end.
    """

    clients: int
    requests: int
    lost: int
    tokens_per_second: float
    seconds_per_request: float
    slowest: float
    memory_mb: float


@contextmanager
def server(*words: str) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """A server of its own: host, port, process."""
    command = [sys.executable, "-m", "src", "serve", *words, "--port", "0"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"http://([\d.]+):(\d+)", line):
                break
        else:
            raise SystemExit(said)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1], int(found[2]), process
    finally:
        process.terminate()
        process.wait(60)


def ask(connection: http.client.HTTPConnection, model: str, number: int, tokens: int) -> int:
    """Send a request; how many tokens came, or -1 where it is lost."""
    body = {"model": model, "prompt": f"Person {number}: Shall we meet?", "max_tokens": tokens, "min_tokens": tokens}
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        return int(answer["usage"]["completion_tokens"]) if reply.status == 200 else -1
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        connection.close()
        return -1


def load(host: str, port: int, process: subprocess.Popen[str], clients: int, seconds: float, tokens: int) -> Phase:
    """Have some clients ask for a while."""
    connection = http.client.HTTPConnection(host, port)
    connection.request("GET", "/v1/models")
    model = json.loads(connection.getresponse().read())["data"][0]["id"]
    waits: list[float] = []
    counts: list[int] = []
    begin = time.monotonic()

    def client(number: int) -> None:
        own = http.client.HTTPConnection(host, port, timeout=300)
        while time.monotonic() - begin < seconds:
            start = time.monotonic()
            counts.append(ask(own, model, number, tokens))
            waits.append(time.monotonic() - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    return Phase(
        clients,
        requests=sum(count == tokens for count in counts),
        lost=sum(count != tokens for count in counts),
        tokens_per_second=round(sum(max(count, 0) for count in counts) / took, 1),
        seconds_per_request=round(sorted(waits)[len(waits) // 2], 3),
        slowest=round(max(waits), 3),
        memory_mb=round(psutil.Process(process.pid).memory_info().rss / 1e6, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--alone", type=float, default=15, help="seconds for the one client")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with server(args.model) as (host, port, process):
        load(host, port, process, 2, 2, args.tokens)  # warm
        alone = load(host, port, process, 1, args.alone, args.tokens)
        half = load(host, port, process, args.clients, args.seconds / 2, args.tokens)
        whole = load(host, port, process, args.clients, args.seconds / 2, args.tokens)
    ratio = round(whole.tokens_per_second / alone.tokens_per_second, 2)
    print(json.dumps({"phases": [asdict(phase) for phase in (alone, half, whole)], "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
