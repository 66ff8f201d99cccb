"""Images and the recipes they are built from."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.image import Image
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import json_answer, json_array
from insula.server.views import RecipeView, view_recipe

router = APIRouter(tags=["images"], responses=problems())


@router.get("/v1/images", operation_id="list_images", response_model=list[Image])
async def list_images(request: Request) -> Response:
    """The images that machines can be made from at once."""
    return json_array(await desk_of(request).control.node.list_images())


@router.get("/v1/images/{name}", operation_id="get_image", response_model=Image, responses=problems(404))
async def get_image(request: Request, name: str) -> Response:
    """One image."""
    return json_answer(await desk_of(request).control.node.find_image(name))


@router.get("/v1/recipes", operation_id="list_recipes", response_model=list[RecipeView])
async def list_recipes(request: Request) -> Response:
    """What can be built here, and whether it is built."""
    node = desk_of(request).control.node
    built = {image.name for image in await node.list_images()}
    return json_array(view_recipe(recipe, recipe.name in built) for recipe in node.list_recipes())


@router.post(
    "/v1/images/{name}/build",
    operation_id="build_image",
    response_model=None,
    responses=verb_responses(),
)
async def build_image(request: Request, name: str, wait: Wait = 0) -> Response:
    """Build the recipe's image, anew if it is there; machines keep what they were made from."""
    return await submit_and_answer(request, VerbRequest("image-build", name=name), wait)


@router.delete(
    "/v1/images/{name}",
    operation_id="remove_image",
    response_model=None,
    responses=verb_responses(),
)
async def remove_image(request: Request, name: str, wait: Wait = 0) -> Response:
    """Remove the image. Refused as long as a machine needs it."""
    return await submit_and_answer(request, VerbRequest("image-rm", name=name), wait)
