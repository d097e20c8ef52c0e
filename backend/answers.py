"""Errors as HTTP answers: the sentence is the reason phrase as well as in the JSON body, because Label Studio keeps only the former."""

from __future__ import annotations

import math
from http import HTTPStatus

from flask import Response, json
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from backend import logs
from sam2_backend.errors import NotFoundError, RequestError, Sam2BackendError

ENDPOINTS = (
    "/",
    "/health",
    "/ready",
    "/setup",
    "/predict",
    "/webhook",
    "/versions",
    "/metrics",
    "/propagations",
    "/tasks",
    "/projects/<number>",
)
UNEXPECTED = "The backend met an error that it does not know. Its log has the details; the same request may work again."


def reason_phrase(message: str) -> str:
    """A message as it may stand in the status line: one line, latin-1, no control characters."""
    return logs.one_line(message).replace("…", "...").replace("’", "'").encode("latin-1", "replace").decode("latin-1")


def error_response(error: Sam2BackendError, status: int = 0) -> Response:
    """The answer to a request that failed, with the error's own status unless another is given."""
    message = logs.one_line(error.message, limit=2000)
    body = {"error": {"code": error.code, "message": message, "mender": error.mender}}
    response = Response(json.dumps(body), mimetype="application/json")
    response.status = f"{status or error.status.value} {reason_phrase(message)}"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


def known_error(error: Exception, max_request_bytes: int) -> tuple[Sam2BackendError, int]:
    """Any exception as one of ours, with its HTTP status; an unexpected one loses its words, which may hold what must not be shown."""
    if isinstance(error, Sam2BackendError):
        return error, error.status.value
    if isinstance(error, HTTPException) and error.code is not None and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _http_error(error, max_request_bytes), error.code
    return Sam2BackendError(UNEXPECTED), HTTPStatus.INTERNAL_SERVER_ERROR.value


def _http_error(error: HTTPException, max_request_bytes: int) -> RequestError:
    if isinstance(error, NotFound):
        return NotFoundError(f"There is no such endpoint. There are {', '.join(ENDPOINTS)}.")
    if isinstance(error, MethodNotAllowed):
        return RequestError(f"This endpoint takes {', '.join(sorted(error.valid_methods or ()))} only.")
    if isinstance(error, RequestEntityTooLarge):
        return RequestError(f"The request is larger than {max_request_bytes} bytes (SAM2_MAX_REQUEST_BYTES), or a webhook above 64 MiB.")
    return RequestError("The request could not be read to its end, or its headers are malformed. Send it again.")
