"""What a person types, from the shell to the engine and back."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

import insula as sdk
from insula.storage.images import ImageStore
from tests.e2e.conftest import Shell
from tests.support.host import publish_medium

pytestmark = pytest.mark.slow

PROMISED = set("name project uid phase image cpus memory_bytes pid addresses created".split())  # noqa: SIM905


def follow(shell: Shell, *words: str) -> subprocess.Popen[str]:
    return shell.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_run_with_a_command_is_transparent(insula: Shell) -> None:
    done = insula("run", "--rm", "micro", "--", "echo", "hello")
    assert done.stdout == "hello\n"
    done = insula("run", "--rm", "micro", "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert insula("run", "--rm", "micro", "--", "cat", input="from stdin").stdout == "from stdin"
    insula("run", "--rm", "micro", "--", "no-such-command", status=127)
    assert insula.data("ls", "--all") == []


def test_ls_has_the_promised_shape(insula: Shell) -> None:
    insula("run", "-d", "--name", "web", "micro")
    (machine,) = insula.data("ls")
    assert set(machine) >= PROMISED
    assert machine["name"] == "web"
    assert machine["phase"] == "running"
    assert isinstance(machine["pid"], int)
    table = insula("ls").stdout
    assert "web" in table
    assert "running" in table


def test_the_life_of_a_machine(insula: Shell) -> None:
    insula("run", "-d", "--name", "web", "micro")
    for words, phase in [
        (["pause", "web"], "paused"),
        (["resume", "web"], "running"),
        (["reset", "web"], "running"),
        (["restart", "web"], "running"),
        (["stop", "web"], "stopped"),
        (["start", "web"], "running"),
        (["kill", "web"], "stopped"),
    ]:
        insula(*words)
        assert insula.data("info", "web")["phase"] == phase, words
    insula("rename", "web", "shop")
    insula("start", "shop")
    assert "Cannot remove machine 'shop'" in insula("rm", "shop", status=73).stderr
    insula("rm", "-f", "shop")
    assert insula.data("ls", "--all") == []
    assert list((insula.home / "machines").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run", "mikro"], 66, "micro"),
        (["start", "nobody"], 66, "There is no machine 'nobody'"),
        (["run", "--cpus", "0", "micro"], 64, "cpus"),
        (["run", "--memory", "1024TiB", "micro"], 64, "this host has"),
        (["run", "--memory", "lots", "micro"], 64, "lots"),
        (["run", "--name", "Not_A_Label", "micro"], 64, "DNS label"),
        (["run", "--name", "web", "micro"], 73, "taken"),
        (["start", "web"], 73, "already"),
        (["stop", "idle"], 73, "Cannot stop machine 'idle'"),
        (["strat", "web"], 64, "start"),
        (["ls", "--josn"], 64, "--json"),
        (["run", "--rm", "micro", "--nonsense"], 64, "--nonsense"),
        (["rename", "web", "Bad Name"], 64, "DNS label"),
        (["image", "build", "nonsense"], 66, "nonsense"),
        (["image", "rm", "nonsense"], 66, "nonsense"),
        (["exec", "idle", "--", "true"], 73, "created"),
    ],
)
def test_bad_input_is_told_with_a_hint_and_changes_nothing(
    busy: Shell, words: list[str], status: int, said: str
) -> None:
    before = busy.data("ls", "--all")
    done = busy(*words, status=status)
    assert done.stdout == ""
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert busy.data("ls", "--all") == before


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home with a running machine 'web' and 'idle', which never ran; for tests that change nothing."""
    from insula.storage.images import ImageStore
    from tests.e2e.conftest import start_fake_daemon
    from tests.support.host import publish_fake_image

    home = tmp_path_factory.mktemp("busy") / "home"
    publish_fake_image(ImageStore(home / "images"))
    shell = Shell(home, start_fake_daemon(home))
    shell("run", "-d", "--name", "web", "micro")
    client = sdk.connect(home)
    client.create("micro", name="idle", start=False)
    yield shell
    shell.daemon.terminate()
    shell.daemon.wait(10)


def test_errors_are_json_where_json_was_asked_for(busy: Shell) -> None:
    problem = json.loads(busy("info", "nobody", "--json", status=66).stderr)
    assert problem["code"] == "machine-not-found"
    assert problem["hint"]


def test_events_follow_what_happens(insula: Shell) -> None:
    with follow(insula, "events", "-f", "--after", "0", "--json") as watching:
        assert watching.stdout is not None
        insula("run", "-d", "--name", "web", "micro")
        insula("kill", "web")
        phases = []
        while "stopped" not in phases:
            event = json.loads(watching.stdout.readline())
            if event["kind"] == "machine.phase":
                phases.append(event["data"]["to"])
        watching.send_signal(signal.SIGINT)
        watching.wait(10)
    assert phases[-2:] == ["running", "stopped"]


def test_a_crash_is_shown_with_its_evidence(insula: Shell) -> None:
    insula("run", "-d", "--name", "web", "micro")
    insula.crash_machines()
    insula("wait", "web", "--phase", "crashed", "--timeout", "5s")
    (machine,) = insula.data("ls", "--all")
    assert machine["phase"] == "crashed"
    assert machine["last_exit"]["exit_status"] == 139
    info = insula("info", "web").stdout
    assert "139" in info or "signal 11" in info
    assert "qemu-system" in info


def test_stop_says_that_it_had_to_force(insula: Shell) -> None:
    insula("run", "-d", "--name", "web", "micro")
    insula.make_guests_stubborn()
    done = insula("stop", "--timeout", "200ms", "web")
    assert "forced" in done.stderr


def test_logs_show_the_serial_console(insula: Shell) -> None:
    insula("run", "-d", "--cold", "--name", "web", "micro")
    assert "Fake guest booted" in insula("logs", "web").stdout


def test_ctrl_c_reaches_the_command_in_the_guest(insula: Shell) -> None:
    words = ["run", "--rm", "micro", "--", "sh", "-c", "echo started; sleep 100"]
    with insula.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
    assert insula.data("ls", "--all") == []


def test_several_machines_at_once(insula: Shell) -> None:
    for name in ("one", "two", "three"):
        insula("run", "-d", "--name", name, "micro")
    insula("kill", "one", "two", "three")
    done = insula("rm", "one", "nobody", "three", status=66)
    assert "nobody" in done.stderr
    assert [machine["name"] for machine in insula.data("ls", "--all")] == ["two"]


def test_the_daemon_is_seen_and_stopped_and_machines_are_kept(insula: Shell) -> None:
    assert insula.data("daemon", "status")["pid"] == insula.daemon.pid
    insula("daemon", "stop")
    assert insula.daemon.wait(10) == 0


def test_two_clients_ask_for_one_name(insula: Shell) -> None:
    both = [
        insula.popen("run", "-d", "--name", "web", "micro", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert sorted(process.wait(20) for process in both) == [0, 73]


def test_the_sdk_as_the_issue_says_it(insula: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_HOME", str(insula.home))
    with sdk.run("micro") as vm:
        result = vm.exec("uname", "-r")
        assert result.stdout.strip()
        assert result.exit_code == 0
        name = vm.name
    assert name not in [machine["name"] for machine in insula.data("ls", "--all")]
    with pytest.raises(sdk.NotFound) as caught:
        sdk.connect().machine("nobody").start()
    assert caught.value.code == "machine-not-found"


def test_cds_come_and_go(insula: Shell) -> None:
    publish_medium(ImageStore(insula.home / "images"))
    insula("run", "-d", "--name", "web", "--cdrom", "none", "micro")
    assert insula.data("cdrom", "info", "web") == {"bus": "scsi", "image": None, "image_digest": None}
    assert insula("cdrom", "insert", "web", "tools").stdout == "web\n"
    assert insula("cdrom", "info", "web").stdout == "tools (scsi)\n"
    assert "\ncdrom:       tools (scsi)\n" in insula("info", "web").stdout
    told = insula("cdrom", "insert", "web", "./tools.iso", status=64).stderr
    assert "insula image import ./tools.iso --name tools" in told
    assert insula.data("cdrom", "eject", "--force", "web")["outcome"] == {"image": "tools"}
    assert insula("cdrom", "info", "web").stdout == "empty (scsi)\n"
    insula("rm", "-f", "web")
