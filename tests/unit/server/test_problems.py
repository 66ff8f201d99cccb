"""Refusals: each is a problem with a code, and nothing was submitted."""

from __future__ import annotations

import logging

import httpx
import pytest

from insula.kit.errors import Conflict, Unavailable, error_from_problem
from insula.model.operation import OperationState
from insula.server.gate import LARGEST_BODY
from tests.unit.server.fake_control import FakeControl

WEB = "/v1/projects/default/machines/web"


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = answer.json()
    assert (problem["code"], problem["status"]) == (code, status)
    assert problem["type"] == f"urn:insula:error:{code}"
    return problem


async def test_unknown_machine(api: httpx.AsyncClient) -> None:
    problem = problem_of(await api.get("/v1/projects/default/machines/wbe"), 404, "machine-not-found")
    assert problem["detail"] == "There is no machine 'wbe' in project 'default'."
    assert problem["exit_status"] == 66


async def test_bad_document_tells_every_fault(api: httpx.AsyncClient, control: FakeControl) -> None:
    spec = {"image": "micro", "cpus": 0, "memory": "lots", "colour": "blue", "name": "Not A Label"}
    problem = problem_of(await api.post("/v1/projects/default/machines", json=spec), 422, "bad-document")
    assert str(problem["detail"]).startswith("The machine is not valid: ")
    fields = problem["fields"]
    assert isinstance(fields, list)
    assert {field["path"] for field in fields} == {"cpus", "memory", "colour", "name"}
    assert {"path": "colour", "rule": "unknown field", "value": "blue"} in fields
    assert control.requests == []


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", f"{WEB}/start?wait=-1", "query.wait"),
        ("POST", f"{WEB}/start?wait=nan", "query.wait"),
        ("GET", f"{WEB}/wait", "query.phase"),
        ("GET", f"{WEB}/wait?phase=stopped,asleep", "query.phase"),
        ("GET", f"{WEB}/log?tail=some", "query.tail"),
        ("GET", "/v1/events?after=-1", "query.after"),
    ],
)
async def test_bad_queries(api: httpx.AsyncClient, method: str, path: str, fault: str) -> None:
    problem = problem_of(await api.request(method, path), 422, "bad-document")
    assert str(problem["detail"]).startswith(f"The request is not valid: {fault}: ")


async def test_broken_json(api: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.post("/v1/projects/default/machines", content=b'{"image": ', headers=headers)
    problem_of(answer, 422, "bad-document")


async def test_unknown_parameter_of_a_verb(api: httpx.AsyncClient, control: FakeControl) -> None:
    problem_of(await api.post(f"{WEB}/start", json={"fast": True}), 422, "bad-document")
    problem_of(await api.post(f"{WEB}/rename", json={}), 422, "bad-document")
    assert control.requests == []


async def test_unknown_path_and_method(api: httpx.AsyncClient) -> None:
    problem_of(await api.get("/v1/nothing"), 404, "no-such-route")
    answer = await api.put("/v1/machines")
    problem_of(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


async def test_body_too_large(api: httpx.AsyncClient) -> None:
    spec = {"image": "micro", "cloud_init": {"user_data": "x" * LARGEST_BODY}}
    problem_of(await api.post("/v1/projects/default/machines", json=spec), 413, "body-too-large")


async def test_if_match(api: httpx.AsyncClient, control: FakeControl) -> None:
    for tag in ('"3"', "3", 'W/"3"', "*"):
        assert (await api.post(f"{WEB}/start", headers={"If-Match": tag})).status_code == 202
    assert [request.if_generation for request in control.requests] == [3, 3, 3, None]
    problem_of(await api.delete(WEB, headers={"If-Match": '"2"'}), 412, "stale-generation")
    for tag in ("three", '"3', '"3", "4"', "-3", ""):
        problem_of(await api.post(f"{WEB}/start", headers={"If-Match": tag}), 422, "bad-document")


async def test_other_version_is_refused_but_where_it_must_not_be(api: httpx.AsyncClient) -> None:
    other = {"Insula-Version": "1.2.4"}
    problem = problem_of(await api.get("/v1/machines", headers=other), 409, "daemon-version")
    assert "insula daemon stop" in str(problem["hint"])
    assert problem["evidence"] == {"daemon": "1.2.3", "client": "1.2.4"}
    for path in ("/v1/version", "/v1/daemon", "/v1/openapi.json"):
        assert (await api.get(path, headers=other)).status_code == 200
    assert (await api.post("/v1/daemon/stop", headers=other)).status_code == 202
    assert (await api.get("/v1/machines", headers={"Insula-Version": "1.2.3"})).status_code == 200
    assert (await api.get("/v1/machines")).status_code == 200


async def test_errors_of_control_keep_what_they_say(api: httpx.AsyncClient, control: FakeControl) -> None:
    error = Unavailable("Not now.", hint="Later.", evidence={"load": 1}, retry_after=1.5)
    error.__cause__ = RuntimeError("too hot")
    control.failure = error
    answer = await api.post(f"{WEB}/start")
    problem = problem_of(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "2"
    rebuilt = error_from_problem(problem)
    assert (rebuilt.message, rebuilt.hint, rebuilt.evidence) == ("Not now.", "Later.", {"load": 1})
    assert rebuilt.causes() == ["too hot"]


async def test_unexpected_exception_is_a_bug(
    api: httpx.AsyncClient, control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    control.failure = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR, "insula.server"):
        problem = problem_of(await api.get("/v1/machines"), 500, "bug")
    assert "insulad.log" in str(problem["hint"])
    assert "secret detail" not in str(problem["detail"])
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


async def test_without_wait_even_a_failure_is_accepted(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.ends_as = OperationState.FAILED
    assert (await api.post(f"{WEB}/start")).status_code == 202


async def test_wait_answers_when_done(api: httpx.AsyncClient) -> None:
    done = await api.post(f"{WEB}/start", params={"wait": 5})
    assert (done.status_code, done.json()["state"]) == (200, "done")
    made = await api.post("/v1/projects/default/machines", json={"image": "micro"}, params={"wait": 5})
    assert made.status_code == 201


async def test_wait_that_is_over_answers_with_the_operation(
    api: httpx.AsyncClient, control: FakeControl
) -> None:
    control.holds = True
    answer = await api.post(f"{WEB}/start", params={"wait": 0.01})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    uid = answer.json()["uid"]
    assert (await api.get(f"/v1/operations/{uid}", params={"wait": 0.01})).json()["state"] == "queued"


async def test_failed_within_wait_is_its_problem(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.ends_as = OperationState.FAILED
    control.problem = Conflict("Machine 'web' runs already.").to_problem()
    answer = await api.post(f"{WEB}/start", params={"wait": 5})
    problem = problem_of(answer, 409, "conflict")
    assert problem["operation"] == next(iter(control.operations))
    assert answer.headers["location"] == f"/v1/operations/{problem['operation']}"


async def test_cancelled_within_wait(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.ends_as = OperationState.CANCELLED
    problem = problem_of(await api.post(f"{WEB}/start", params={"wait": 5}), 409, "cancelled")
    assert problem["operation"] in control.operations


async def test_machine_wait(api: httpx.AsyncClient) -> None:
    reached = await api.get(f"{WEB}/wait", params={"phase": "running,paused"})
    assert (reached.status_code, reached.headers["etag"]) == (200, '"3"')
    late = await api.get(f"{WEB}/wait", params={"phase": "stopped", "timeout": 0.01})
    problem = problem_of(late, 408, "wait-timeout")
    assert problem["evidence"] == {"phase": "running"}
