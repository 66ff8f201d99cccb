"""No room for the ledger in the middle of an operation: it ends once there is, and so does the next one."""

from __future__ import annotations

from typing import Any

import pytest

from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.store import room
from insula.store.protocol import LedgerFull
from tests.support.host import FakeHost


class Room:
    """Has the store's commits fail: the first `after` succeed, then `times` of them do not."""

    def __init__(self, store: Any, after: int, times: int) -> None:
        self.left, self.times = after, times
        self._commit = store._commit
        store._commit = self

    async def __call__(self, *words: Any) -> Any:
        self.left -= 1
        if self.left < 0 and self.times > 0:
            self.times -= 1
            raise LedgerFull("There is no room for the ledger.")
        return await self._commit(*words)


@pytest.mark.parametrize("after", range(1, 8))
@pytest.mark.parametrize("verb", ["stop", "kill", "fork", "snapshot-create"])
async def test_what_was_begun_ends_once_there_is_room(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, verb: str, after: int
) -> None:
    monkeypatch.setattr(room, "LOOK_AGAIN", 0.001)
    await host.run("web")
    parameters: dict[str, Any] = {"snapshot-create": {"memory": True}, "fork": {"count": 1}}.get(verb, {})
    store = Room(host.store, after, 3)
    operation = await host.do(verb, "web", **parameters)
    store.times = 0
    if operation.state is not OperationState.DONE:
        assert operation.problem is not None
        assert operation.problem["code"] == "ledger-full"
    for _ in range(3):
        if host.seen().phase is not Phase.RUNNING:
            assert (await host.do("start", "web")).problem is None
        paused = await host.do("pause", "web")
        if paused.problem is None:
            break
        assert paused.problem["code"] == "not-running"  # that it had ended was written down only now
    assert host.seen().phase is Phase.PAUSED
