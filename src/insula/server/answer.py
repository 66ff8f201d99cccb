"""Verbs: submitted, perhaps waited for, and answered with the operation or with its problem."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.kit.errors import Bug, Conflict
from insula.model.operation import Operation, OperationState
from insula.server.desk import desk_of
from insula.server.live import while_wanted
from insula.server.problems import problem_response, problems
from insula.server.respond import raw_json
from insula.server.views import OperationView, render_operation

_LOCATION = {"Location": {"description": "The operation's path.", "schema": {"type": "string"}}}


def verb_responses(*statuses: int, finished: int = 200) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that submits a verb."""
    return {
        finished: {"description": "Done within `wait`.", "model": OperationView, "headers": _LOCATION},
        202: {"description": "Accepted, and not finished yet.", "model": OperationView, "headers": _LOCATION},
        **problems(404, *statuses),
    }


async def submit_and_answer(
    request: Request, verb: VerbRequest, wait: float, *, finished: int = 200
) -> Response:
    """Submit the verb and answer with the operation: 202, or `finished` once done within `wait` seconds.

    An operation that failed or was cancelled within the wait is answered with its problem.
    """
    desk = desk_of(request)
    operation = await desk.control.submit(verb)
    headers = {"Location": f"/v1/operations/{operation.uid}"}
    if wait > 0:
        waiting = desk.control.wait_operation(operation.uid, wait)
        operation = await while_wanted(request, desk.daemon, waiting) or operation
        if operation.state in (OperationState.FAILED, OperationState.CANCELLED):
            return problem_response({**_problem_of(operation), "operation": operation.uid}, headers)
        if operation.state is OperationState.DONE:
            return raw_json(render_operation(operation), finished, headers)
    return raw_json(render_operation(operation), 202, headers)


def _problem_of(operation: Operation) -> dict[str, Any]:
    if operation.problem is not None:
        return operation.problem
    if operation.state is OperationState.CANCELLED:
        told = f"The {operation.verb} of {operation.target_kind} '{operation.name}' was cancelled."
        return {**Conflict(told).to_problem(), "type": "urn:insula:error:cancelled", "code": "cancelled"}
    return Bug(f"The {operation.verb} of '{operation.name}' failed without saying why.").to_problem()
