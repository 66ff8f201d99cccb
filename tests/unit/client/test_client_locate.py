from __future__ import annotations

from pathlib import Path

import pytest

from insula.client import locate
from insula.kit import paths


def test_names_are_those_of_kit_paths() -> None:
    home = paths.Home(Path("/h"))
    assert locate.daemon_directory("/h") == str(home.daemon)
    assert locate.daemon_socket("/h") == str(home.daemon_socket)
    assert locate.daemon_log("/h") == str(home.daemon / paths.DAEMON_LOG)
    assert locate.DAEMON_LOCK == paths.DAEMON_LOCK


@pytest.mark.parametrize(
    "environment",
    [
        {"INSULA_HOME": "/some/where"},
        {"INSULA_HOME": "relative/one"},
        {"XDG_DATA_HOME": "/data"},
        {"HOME": "/home/me"},
    ],
)
@pytest.mark.parametrize("uid", [0, 1000])
def test_home_is_found_as_kit_paths_finds_it(
    environment: dict[str, str], uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INSULA_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert locate.find_home() == str(paths.Home.from_environment().root)
