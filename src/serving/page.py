"""The web page at `/`: its static files, and the routes that it needs beside the API."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from src.datamodules.templates import named_templates
from src.errors import ParleyError
from src.inference.decoding import describe, preset_names, with_preset
from src.models.generation_options import GenerationOptions
from src.serving.errors import ApiError, BadRequestError
from src.serving.hosted import Hosted
from src.serving.page_rows import PageRow
from src.serving.votes import Vote, VoteFile, voted_pair

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

# The page may load the server's own files only, so that text of a model cannot load or run anything.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    """What the page offers beside the models.

    Attributes:
        rows: Data rows that a user may ask about.
        votes: The file for votes; None to take none.
    """

    rows: Sequence[PageRow] = ()
    votes: VoteFile | None = None


@dataclass(frozen=True)
class Preset:
    """A decoding preset on the page.

    Attributes:
        name: Its name in requests.
        does: Its options, in one line.
        answers: The number of answers that it sets.
    """

    name: str
    does: str
    answers: int


def page_files() -> dict[str, bytes]:
    """The page's files by their URL paths."""
    place = resources.files("src.serving").joinpath("page")
    files = {f"/page/{file.name}": file.read_bytes() for file in place.iterdir() if _suffix(file.name) in KINDS}
    return {"/": files.pop("/page/index.html"), **files}


def add_page(app: FastAPI, models: Mapping[str, Hosted], page: Page) -> frozenset[str]:
    """Add the page's routes to an application.

    Args:
        app: The application.
        models: The models by the names that clients use.
        page: Rows and votes.

    Returns:
        The paths of the static files, which need no API key, since a browser loads them before it can send one.
    """
    files = page_files()
    for path, content in files.items():
        _add_file(app, path, content)
    settings = _settings(models, page)

    @app.get("/page/settings")
    async def get_settings() -> Response:
        return JSONResponse(settings, headers=HEADERS)

    @app.get("/page/rows/{number}")
    async def get_row(number: int) -> Response:
        if not 0 <= number < len(page.rows):
            raise ApiError(404, f"there is no row {number}; there are {len(page.rows)}.", "invalid_request_error")
        return JSONResponse({"number": number, **asdict(page.rows[number])}, headers=HEADERS)

    @app.post("/votes")
    def vote(body: Vote) -> Response:  # not async, so that it runs in a thread: it writes to disk
        if page.votes is None:
            raise ApiError(404, "no votes are taken here; start the server with --votes FILE.", "invalid_request_error")
        for name in (body.chosen.model, body.rejected.model):
            if name not in models:
                raise BadRequestError(f"there is no model {name!r} here; reload the page.", "model")
        try:
            turns = models[body.chosen.model].with_system(body.turns())
            row = voted_pair(body, turns)
        except ParleyError as error:
            raise BadRequestError(str(error)) from error
        try:
            page.votes.add(row)
        except ParleyError as error:
            raise ApiError(507, str(error), "server_error") from error
        return JSONResponse({"id": row["id"]}, status_code=201, headers=HEADERS)

    return frozenset(files)


def _add_file(app: FastAPI, path: str, content: bytes) -> None:
    kind = KINDS[_suffix(path) or ".html"]

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""


def _settings(models: Mapping[str, Hosted], page: Page) -> dict[str, Any]:
    """The page's settings, which it loads first."""
    return {
        "models": [
            {"id": name, "does": describe(hosted.options), "samples": hosted.options.do_sample}
            for name, hosted in models.items()
        ],
        "answers": min(hosted.limits.answers for hosted in models.values()),
        "presets": [asdict(preset) for preset in _presets()],
        "templates": _dialogue_templates(),
        "rows": len(page.rows),
        "votes": page.votes is not None,
    }


def _presets() -> list[Preset]:
    try:
        names = preset_names()
    except ParleyError:  # installed without the repository's configs/
        return []
    found = []
    for name in names:
        options = with_preset(GenerationOptions(), name)
        found.append(Preset(name, describe(options), options.num_return_sequences))
    return found


def _dialogue_templates() -> dict[str, str]:
    """The named templates whose one field is a dialogue."""
    fields = {
        name: {field for _, field, _, _ in string.Formatter().parse(text) if field}
        for name, text in named_templates().items()
    }
    return {name: text for name, text in named_templates().items() if fields[name] == {"dialogue"}}
