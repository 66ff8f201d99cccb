"""Templates: frozen machines that launches are forked from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.base import Duration, Value
from insula.model.template import TemplateView
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import json_array

router = APIRouter(prefix="/v1/templates", tags=["templates"], responses=problems())


class PruneParameters(Value):
    """unused_for: only those that no launch has used for so long, in seconds or as '2h'."""

    unused_for: Annotated[Duration, Field(ge=0, examples=[86400])] = 0


@router.get("", operation_id="list_templates", response_model=list[TemplateView])
async def list_templates(request: Request) -> Response:
    """The templates there are, the one used last first."""
    return json_array(desk_of(request).control.node.templates.all())


@router.delete("/{key}", operation_id="remove_template", response_model=None, responses=verb_responses())
async def remove_template(request: Request, key: str, wait: Wait = 0) -> Response:
    """Remove the templates that a key, its beginning or an image's name means. Their forks live on."""
    return await submit_and_answer(request, VerbRequest("template-rm", name=key), wait)


@router.post("/prune", operation_id="prune_templates", response_model=None, responses=verb_responses())
async def prune_templates(request: Request, body: PruneParameters | None = None, wait: Wait = 0) -> Response:
    """Remove every template that no launch has used for a while; all of them if nothing is said."""
    said = (body or PruneParameters()).model_dump(mode="json")
    return await submit_and_answer(request, VerbRequest("template-prune", parameters=said), wait)
