"""The HTTP application: routes, streaming, error responses."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from src import __version__
from src.serving.engine import Engine, Event, Failed, FullError, Job
from src.serving.errors import ApiError, BadRequestError, error_body
from src.serving.hosted import Hosted
from src.serving.plan import plan
from src.serving.replies import Replies, usage
from src.serving.rows import Piece
from src.serving.schemas import ChatRequest, CompletionRequest

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25  # seconds between checks that the client is still connected


def make_app(models: Mapping[str, Hosted], engine: Engine) -> FastAPI:
    """Make the application that serves some models.

    Args:
        models: The models by the names that clients use.
        engine: Generates the answers; started and stopped with the application.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    # FastAPI's interactive documentation is off, since it loads scripts from another host.
    app = FastAPI(title="Parley", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    began = int(time.time())

    def described(name: str) -> dict[str, Any]:
        hosted = models[name]
        window = hosted.finished.positions
        return {
            "id": name,
            "object": "model",
            "created": began,
            "owned_by": "parley",
            "max_model_len": window if window is not None else hosted.limits.prompt_tokens,
        }

    def hosted_of(name: str) -> Hosted:
        if name not in models:
            known = ", ".join(models)
            raise ApiError(
                404, f"there is no model {name!r} here; there are: {known}.", "invalid_request_error",
                code="model_not_found", param="model",
            )  # fmt: skip
        return models[name]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        load = engine.load
        return {
            "status": "ok",
            "models": list(models),
            "rows": load.rows,
            "waiting": load.waiting,
            "requests": load.requests,
            "tokens": load.tokens,
            "largest_batch": load.largest,
        }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in models]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        hosted_of(name)
        return described(name)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answer(engine, hosted_of(body.model), body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _answer(engine, hosted_of(body.model), body, request)

    _say_errors_as_json(app)
    return app


async def _answer(engine: Engine, hosted: Hosted, body: ChatRequest | CompletionRequest, request: Request) -> Response:
    made = await asyncio.to_thread(plan, hosted, body)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[list[Event]]()
    job = Job(
        hosted,
        made.rows,
        lambda new: loop.call_soon_threadsafe(events.put_nowait, new),
        beams=made.beams,
        is_streamed=bool(body.stream),
    )
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    replies = Replies(
        body.model,
        isinstance(body, ChatRequest),
        hosted.decoding_tokenizer,
        made.echoes,
        with_usage=wants_usage,
        with_logprobs=body.top_tokens is not None,
    )
    try:
        engine.submit(job)
    except FullError:
        raise ApiError(
            429, f"{engine.max_waiting} requests wait already; try again in a moment.", "rate_limit_error",
            code="queue_full",
        ) from None  # fmt: skip
    if body.stream:
        stream = _stream(engine, job, events, request, replies, made.prompt_tokens)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    pieces: list[Piece] = []
    async for piece in _pieces(engine, job, events, request):
        if isinstance(piece, Failed):
            raise ApiError(500, f"the answer failed: {piece.reason}", "server_error")
        pieces.append(piece)
    written = sum(len(row.ids) for row in job.rows)
    return JSONResponse(replies.whole(pieces, usage(made.prompt_tokens, written)))


async def _pieces(
    engine: Engine, job: Job, events: asyncio.Queue[list[Event]], request: Request
) -> AsyncIterator[Event]:
    """Yield a job's events until all its answers have ended or the client has disconnected."""
    left = len(job.rows)
    looked = time.monotonic()
    try:
        while left:
            new: list[Event] = []
            with suppress(TimeoutError):
                new = await asyncio.wait_for(events.get(), LOOK_EVERY)
            if time.monotonic() - looked >= LOOK_EVERY:
                if await request.is_disconnected():
                    return
                looked = time.monotonic()
            for event in new:
                yield event
                if isinstance(event, Failed):
                    return
                left -= event.finish is not None
    finally:
        if left:
            engine.cancel(job)


async def _stream(
    engine: Engine,
    job: Job,
    events: asyncio.Queue[list[Event]],
    request: Request,
    replies: Replies,
    prompt_tokens: int,
) -> AsyncIterator[bytes]:
    offsets = [len(echo) for echo in replies.echoes]
    for chunk in replies.opening():
        yield _sent(chunk)
    async for piece in _pieces(engine, job, events, request):
        if isinstance(piece, Failed):
            yield _sent(error_body(f"the answer failed: {piece.reason}", "server_error"))
            return
        yield _sent(replies.chunk(piece, offsets[piece.choice]))
        offsets[piece.choice] += len(piece.text)
    for chunk in replies.closing(usage(prompt_tokens, sum(len(row.ids) for row in job.rows))):
        yield _sent(chunk)
    yield b"data: [DONE]\n\n"


def _sent(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _say_errors_as_json(app: FastAPI) -> None:
    """Make the application return every error as the API's JSON object."""

    @app.exception_handler(ApiError)
    async def refused(_request: Request, error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        refusal = _first_complaint(error)
        return JSONResponse(refusal.body(), status_code=refusal.status)

    @app.exception_handler(HTTPException)
    async def no_such_place(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            400: "the request is not JSON; mend it.",
            404: f"there is no {request.url.path} here.",
            405: f"{request.method} does not go here.",
        }
        message = said.get(error.status_code, str(error.detail))
        body = error_body(message, "invalid_request_error")
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def our_mistake(_request: Request, error: Exception) -> JSONResponse:
        log.error("A request failed.", exc_info=error)
        return JSONResponse(error_body("the server failed; its log says more.", "server_error"), status_code=500)


def _first_complaint(error: RequestValidationError) -> BadRequestError:
    """The first validation error with its field, without repeating the client's data."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid" or not place:
        return BadRequestError("the request is not a JSON object; mend it.")
    if place[0] == "prompt":
        return BadRequestError("prompt must be a text, a list of texts, or token ids; mend it.", "prompt")
    field = ".".join(part for part in place if part.replace("_", "").isalnum() and part != "str")
    return BadRequestError(f"{field}: {first['msg'].rstrip('.')}.", place[0])
