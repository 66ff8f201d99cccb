"""The application: routes, problems, the gate, and its own description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from insula.control.control import Control
from insula.server import (
    daemon,
    events,
    host,
    images,
    machines,
    operations,
    snapshots,
    system,
    templates,
    verbs,
    volumes,
)
from insula.server.desk import Desk
from insula.server.gate import Gate
from insula.server.handlers import install_handlers
from insula.server.info import DaemonInfo
from insula.server.problems import Problem
from insula.server.sockets import ROUTES

_DESCRIPTION = """\
Machines, images, templates, operations and events of one Insula host.

Errors are `application/problem+json`. Verbs answer with an *operation*: 202 at once, or with \
`?wait=SECONDS` its outcome, or the problem that ended it. Two websockets are not described here: \
`/v1/projects/{project}/machines/{name}/console` and `.../exec` (docs/reference/rest.md).
"""

_TAGS = [
    {"name": "machines", "description": "Machines and the verbs on them."},
    {"name": "snapshots", "description": "What machines were at one moment, and can be again."},
    {"name": "volumes", "description": "Disks that outlive machines."},
    {"name": "operations", "description": "What was asked for and how far it is."},
    {"name": "images", "description": "What machines are made from."},
    {"name": "templates", "description": "Frozen machines that launches are forked from."},
    {"name": "events", "description": "Transitions, in order, as they happen."},
    {"name": "system", "description": "What the files of a home take, and what is wrong with them."},
    {"name": "host", "description": "What the host has and lacks."},
    {"name": "daemon", "description": "The daemon itself."},
]


class InsulaApp(FastAPI):
    """FastAPI whose description has the schemas that routes refer to by name."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            problem = TypeAdapter(Problem).json_schema(ref_template="#/components/schemas/{model}")
            schemas = described["components"]["schemas"]
            schemas.update(problem.pop("$defs"))
            schemas["Problem"] = problem
        return super().openapi()


def create_app(control: Control, info: DaemonInfo) -> FastAPI:
    """The REST API of one daemon; needs no lifespan, and ends its streams when info.closing is set."""
    app = InsulaApp(
        title="Insula",
        version=info.version,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_url="/v1/openapi.json",
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = Desk(control, info)
    app.add_middleware(Gate, daemon=info)
    install_handlers(app)
    things = (machines, verbs, snapshots, volumes, operations, images, templates)
    for room in (*things, events, system, host, daemon):
        app.include_router(room.router)
    app.router.routes.extend(ROUTES)
    return app
