"""Images and the recipes they are built from."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.image import ExportSpec, Image, ImportSpec, PullSpec
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import json_answer, json_array
from insula.server.views import RecipeView, view_recipe
from insula.storage.catalogue import CatalogueEntry

router = APIRouter(tags=["images"], responses=problems())


@router.get("/v1/images", operation_id="list_images", response_model=list[Image])
async def list_images(request: Request) -> Response:
    """The images that machines can be made from at once."""
    return json_array(desk_of(request).control.node.images.all())


@router.get("/v1/images/{name}", operation_id="get_image", response_model=Image, responses=problems(404))
async def get_image(request: Request, name: str) -> Response:
    """One image."""
    return json_answer(desk_of(request).control.node.images.get(name))


@router.get("/v1/recipes", operation_id="list_recipes", response_model=list[RecipeView])
async def list_recipes(request: Request) -> Response:
    """What can be built here, and whether it is built."""
    node = desk_of(request).control.node
    built = {image.name for image in node.images.all()}
    return json_array(view_recipe(recipe, recipe.name in built) for recipe in node.images.recipes())


@router.get("/v1/catalogue", operation_id="list_catalogue", response_model=list[CatalogueEntry])
async def list_catalogue(request: Request) -> Response:
    """What can be pulled by name."""
    return json_array(desk_of(request).control.node.images.catalogue())


@router.post("/v1/images/prune", operation_id="prune_images", response_model=None, responses=verb_responses())
async def prune_images(request: Request, wait: Wait = 0) -> Response:
    """Remove the files of images that no name means and no machine uses, and parts of downloads."""
    return await submit_and_answer(request, VerbRequest("image-prune"), wait)


@router.post(
    "/v1/images/{name}/import",
    operation_id="import_image",
    response_model=None,
    responses=verb_responses(409),
)
async def import_image(request: Request, name: str, spec: ImportSpec, wait: Wait = 0) -> Response:
    """Make an image of a disk on the daemon's host. Its header is checked before anything else is done."""
    verb = VerbRequest("image-import", name=name, parameters=spec.model_dump(mode="json"))
    return await submit_and_answer(request, verb, wait)


@router.post(
    "/v1/images/{name}/pull", operation_id="pull_image", response_model=None, responses=verb_responses()
)
async def pull_image(request: Request, name: str, spec: PullSpec, wait: Wait = 0) -> Response:
    """Download an image that a catalogue lists, in the place of one that has the name."""
    verb = VerbRequest("image-pull", name=name, parameters=spec.model_dump(mode="json"))
    return await submit_and_answer(request, verb, wait)


@router.post(
    "/v1/images/{name}/export",
    operation_id="export_image",
    response_model=None,
    responses=verb_responses(409),
)
async def export_image(request: Request, name: str, spec: ExportSpec, wait: Wait = 0) -> Response:
    """Write the image's disk to a file on the daemon's host, which is there once it is whole."""
    verb = VerbRequest("image-export", name=name, parameters=spec.model_dump(mode="json"))
    return await submit_and_answer(request, verb, wait)


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
