"""What routes raise, turned into problems where the web framework lets us."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from insula.kit.errors import InsulaError, Invalid
from insula.model.base import bad_document
from insula.server.problems import BodyTooLarge, MethodNotAllowed, NoSuchRoute, problem_response


def validation_error(error: RequestValidationError, what: str) -> InsulaError:
    """BadDocument with every fault FastAPI found in a request's path, query, headers and body."""
    faults = []
    for fault in error.errors():
        where, *path = fault["loc"]
        # People wrote the body's fields, not 'body'; the parser's position in broken JSON is not a field.
        loc = ("body",) if fault["type"] == "json_invalid" else path if where == "body" else fault["loc"]
        faults.append({**fault, "loc": tuple(loc)})
    only_body = all(fault["loc"][0] == "body" for fault in error.errors())
    return bad_document(faults, what if only_body else "request")


async def _on_insula_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InsulaError)
    return problem_response(error.to_problem())


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    route = request.scope.get("route")
    what = "machine" if getattr(route, "operation_id", None) == "create_machine" else "request"
    return problem_response(validation_error(error, what).to_problem())


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told: InsulaError
    if error.status_code == 404:
        told = NoSuchRoute(
            f"The API has no path '{request.url.path}'.", hint="/v1/openapi.json describes them all."
        )
    elif error.status_code == 405:
        told = MethodNotAllowed(
            f"'{request.url.path}' cannot be asked with {request.method}.",
            hint="/v1/openapi.json describes what can.",
        )
    elif error.status_code == 413:
        told = BodyTooLarge("The request's body is too large.", hint=str(error.detail))
    else:
        told = Invalid("The request cannot be read.", hint=str(error.detail))
    return problem_response(told.to_problem(), error.headers)


def install_handlers(app: FastAPI) -> None:
    """Turn what routes raise into problems; what nobody expected is caught by the gate."""
    app.add_exception_handler(InsulaError, _on_insula_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
