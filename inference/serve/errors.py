"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}` and an HTTP status.

Knows HTTP statuses and that format; knows nothing about the causes of errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from inference.errors import GenerationError, InferenceError, UserError, is_out_of_memory

# How error messages of the layers below refer to a request's prompt.
WHERE = "request"
_PREFIX = re.compile(rf"^{WHERE}( \S+)?: ")


class RequestError(Exception):
    """A request was rejected or failed.

    Args:
        status: HTTP status.
        message: what is wrong and what to do about it.
        param: the invalid key of the body, if the error is about one.
        code: a machine-readable error code.
        headers: extra headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Returns the error as an object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        """OpenAI's error type for this status."""
        special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return special.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def response(self) -> JSONResponse:
        """Builds the HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


def as_request_error(error: BaseException) -> RequestError:
    """Converts any error for the client: 400 if the client caused it, else 500; never includes a traceback."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UserError):
        return RequestError(400, _PREFIX.sub("", str(error)))
    if is_out_of_memory(error):
        return RequestError(503, "out of memory", code="out_of_memory", headers={"Retry-After": "10"})
    if isinstance(error, GenerationError):
        return RequestError(500, _PREFIX.sub("", str(error)), code="model_failed")
    if isinstance(error, InferenceError):
        return RequestError(500, str(error))
    return RequestError(500, "the server failed on this request; its log says more", code="internal_error")
