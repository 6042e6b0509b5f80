"""Errors in the form of the OpenAI API: an HTTP status and a JSON object."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: The HTTP status.
        message: One line: what is wrong and what to do.
        kind: The API's `type`.
        code: The API's `code`, by which clients distinguish errors.
        param: The field that is wrong.
    """

    def __init__(
        self, status: int, message: str, kind: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return error_body(str(self), self.kind, code=self.code, param=self.param)


class BadRequestError(ApiError):
    """An invalid request (status 400).

    Args:
        message: One line.
        param: The field that is wrong.
        code: As in `ApiError`.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, "invalid_request_error", code=code, param=param)


def error_body(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The API's JSON object of an error; lone surrogates in the message become question marks."""
    clean = message.encode("utf-8", "replace").decode("utf-8")
    return {"error": {"message": clean, "type": kind, "param": param, "code": code}}
