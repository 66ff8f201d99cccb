"""Errors as problem+json (RFC 9457): every exception that leaves a route becomes one, and is told fully."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from insula.kit.errors import Bug, Conflict, InsulaError, Invalid, NotFound, Unavailable

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger(__name__)


class DaemonVersion(Conflict):
    """The client and the daemon are of different versions."""

    code = "daemon-version"


class WaitTimeout(Unavailable):
    """The machine did not reach the phase in time."""

    code = "wait-timeout"
    http_status = 408


class DaemonStopping(Unavailable):
    """The daemon ends; the next request starts it again."""

    code = "daemon-stopping"


class NoSuchRoute(NotFound):
    """The API has no such path."""

    code = "no-such-route"


class MethodNotAllowed(Invalid):
    """The path exists, but not with this method."""

    code = "method-not-allowed"
    http_status = 405


class BodyTooLarge(Invalid):
    """The request's body is larger than any document can be."""

    code = "body-too-large"
    http_status = 413


class FieldFault(BaseModel):
    """One fault of a document: where, which rule, and the value that broke it."""

    path: str
    rule: str
    value: Any = None


class Problem(BaseModel):
    """An error: RFC 9457 with Insula's members."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:insula:error:machine-not-found",
                "title": "MachineNotFound",
                "status": 404,
                "exit_status": 66,
                "code": "machine-not-found",
                "family": "invalid",
                "detail": "There is no machine 'wbe' in project 'default'.",
                "hint": "Did you mean 'web'?",
            }
        }
    )

    type: str = Field(description="urn:insula:error:CODE")
    title: str = Field(description="The error's class.")
    status: int = Field(description="The HTTP status.")
    exit_status: int = Field(description="What the command line exits with.")
    code: str = Field(description="Stable; docs/reference/errors.md lists them all.")
    family: str = Field(description="invalid, conflict, unavailable or bug.")
    detail: str = Field(description="What was asked and why not, in one sentence.")
    hint: str = Field(description="What to do, ready to paste where possible.")
    evidence: dict[str, Any] | None = Field(default=None, description="What shows why.")
    fields: list[FieldFault] | None = Field(default=None, description="Every fault of a bad document.")
    retry_after: float | None = Field(default=None, description="Seconds after which to try again.")
    causes: list[str] | None = Field(default=None, description="The chain below, outermost first.")
    operation: str | None = Field(default=None, description="uid of the operation that failed.")


_DESCRIPTIONS = {
    404: "There is nothing of this name.",
    408: "Not reached in time.",
    409: "Not in this state, or another version of Insula.",
    412: "`If-Match` names a generation that is not current.",
    413: "The body is too large.",
    422: "Never possible as it was said.",
    500: "A fault of Insula's own.",
    503: "Not now; `retry_after` says when.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems besides those any route has."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: schema}}
        for status in sorted({*statuses, 409, 413, 422, 500, 503})
    }


def problem_response(problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """The answer that carries a problem; its `retry_after` becomes the header, too."""
    merged = dict(headers or {})
    if problem.get("retry_after") is not None:
        merged["Retry-After"] = str(math.ceil(problem["retry_after"]))
    body = json.dumps(problem, default=repr, ensure_ascii=False).encode()
    return Response(body, int(problem["status"]), merged, media_type=MEDIA_TYPE)


def as_insula_error(error: BaseException, doing: str) -> InsulaError:
    """The error as one of ours. What nobody expected is a Bug, and its traceback goes to the log."""
    if isinstance(error, InsulaError):
        return error
    log.error("Unexpected exception in %s", doing, exc_info=error)
    bug = Bug(
        f"Insula failed in {doing}: {type(error).__name__}.",
        hint="This is a fault of Insula's own: please report it with the traceback in the daemon's log "
        "(daemon/insulad.log in its home).",
    )
    bug.__cause__ = error
    return bug
