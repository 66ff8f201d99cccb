"""image-build: build an image from its recipe; one that is under way already is joined."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.kit.errors import nearest
from insula.model.operation import Operation
from insula.storage.recipe import RecipeNotFound


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises RecipeNotFound with the nearest name."""
    names = sorted(recipe.name for recipe in desk.node.images.recipes())
    if request.name not in names:
        guess = nearest(request.name, names)
        raise RecipeNotFound(
            f"There is no recipe for an image '{request.name}'.",
            hint=(f"Did you mean '{guess}'? " if guess else "") + f"There are: {', '.join(names)}.",
        )
    return Intent(desk.image_operation("image-build", request.name))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
