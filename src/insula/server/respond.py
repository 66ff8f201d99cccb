"""Values as JSON answers."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel
from starlette.responses import Response

from insula.server.views import render, render_array


def json_answer(value: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as the answer."""
    return raw_json(render(value), status, headers)


def json_array(values: Iterable[BaseModel]) -> Response:
    """Values as an array."""
    return raw_json(render_array(values))


def raw_json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """What is JSON already."""
    return Response(body, status, headers, media_type="application/json")
