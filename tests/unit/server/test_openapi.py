"""The API's description of itself: valid, complete, and true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI

from tests.unit.server.fake_control import FakeControl, machine

METHODS = {"get", "post", "delete"}
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]
NO_WAIT = {"timeout": 0}


def operations_of(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in described["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_every_operation_is_described(app: FastAPI) -> None:
    described = app.openapi()
    assert described["openapi"].startswith("3.1")
    operations = operations_of(described)
    assert len(operations) == 60
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in described["tags"]}
    for route, operation in operations.items():
        assert operation["summary"], route
        assert operation["description"], route
        assert set(operation["tags"]) <= tags, route
        assert any(status.startswith("2") for status in operation["responses"]), route
        for status, response in operation["responses"].items():
            media = "application/problem+json" if status[0] in "45" else None
            assert media is None or list(response["content"]) == [media], (route, status)


def test_every_reference_leads_somewhere(app: FastAPI) -> None:
    described = app.openapi()
    schemas = described["components"]["schemas"]

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        if isinstance(node, list):
            return [found for value in node for found in references(value)]
        return []

    for reference in references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert {"Problem", "FieldFault", "MachineSpec", "MachineView", "Operation"} <= schemas.keys()
    assert "HTTPValidationError" not in schemas
    json.dumps(described)


@pytest.mark.slow
def test_fuzzed(app: FastAPI, control: FakeControl) -> None:
    """schemathesis: whatever is sent, the answer is one that the description promises, and never a 500."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    control.add(machine("db"))
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in ("/v1/events", "/v1/daemon/stop"):
            continue  # the one goes on for ever, the other ends it

        @given(case=operation.as_strategy())
        @settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def fuzz(case: Any) -> None:
            # As asked, these would be waited for.
            case.query = {**{k: v for k, v in case.query.items() if k not in ("wait", "follow")}, **NO_WAIT}
            case.call_and_validate(checks=checks)

        fuzz()
