"""The micro image, booted for real, spoken with through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula as sdk
from insula.engine.agent.insula import connect
from insula.engine.agent.protocol import Renewal, capture
from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RealShell]:
    """A home with a machine 'warm', booted once for all tests that do not end it."""
    home = tmp_path_factory.mktemp("boot") / "home"
    with real_home(home, ROOT / "test-artifacts" / "micro") as shell:
        shell("run", "-d", "--name", "warm", "micro")
        shell("exec", "warm", "--", "true")
        yield shell


def test_uname(insula: RealShell) -> None:
    assert insula.text("exec", "warm", "--", "uname", "-s") == "Linux\n"
    assert insula.text("exec", "warm", "--", "hostname") == "warm\n"


def test_streams_are_kept_apart_and_the_status_is_the_commands(insula: RealShell) -> None:
    done = insula("exec", "warm", "--", "sh", "-c", "echo out; echo err >&2; exit 3", status=3)
    assert done.stdout == b"out\n"
    assert done.stderr == b"err\n"
    insula("exec", "warm", "--", "sh", "-c", "kill -9 $$", status=137)
    insula("exec", "warm", "--", "/no/such/thing", status=127)
    insula("exec", "warm", "--", "/etc/passwd", status=126)


def test_output_streams_while_the_command_runs(insula: RealShell) -> None:
    with insula.popen(
        "exec", "warm", "--", "sh", "-c", "echo first; read x; echo got $x",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == b"first\n"
        running.stdin.write(b"later\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"got later\n"


def test_a_megabyte_there_and_back(insula: RealShell) -> None:
    sent = os.urandom(2**20)
    done = insula("exec", "warm", "--", "cat", input=sent)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()


def test_a_background_process_does_not_hold_the_caller(insula: RealShell) -> None:
    done = insula("exec", "warm", "--", "sh", "-c", "sleep 1000 & echo done", timeout=20)
    assert done.stdout == b"done\n"


def test_ctrl_c_interrupts_the_guests_command(insula: RealShell) -> None:
    with insula.popen(
        "exec", "warm", "--", "sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do :; done",
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == b"caught\n"
        assert running.wait(20) == 9


def test_a_terminal_for_a_command(insula: RealShell) -> None:
    controller, terminal = os.openpty()
    with insula.popen(
        "exec", "-t", "warm", "--", "sh", "-c", "tty; stty size",
        stdin=terminal, stdout=terminal, stderr=terminal,
    ) as running:  # fmt: skip
        os.close(terminal)
        assert running.wait(30) == 0
    said = os.read(controller, 4096)
    os.close(controller)
    assert b"/dev/pts/" in said


def test_the_serial_console_and_its_log(insula: RealShell) -> None:
    with sdk.connect(insula.home).machine("warm").console() as console:
        console.write(b"echo $((6 * 7))-from-console\n")
        heard = b""
        deadline = time.monotonic() + 30
        while b"42-from-console" not in heard and time.monotonic() < deadline:
            heard += console.read(timeout=1)
        assert b"42-from-console" in heard
    assert b"42-from-console" in insula("logs", "--tail", "20", "warm").stdout


def test_the_console_is_held_by_one(insula: RealShell) -> None:
    machine = sdk.connect(insula.home).machine("warm")
    with machine.console(), pytest.raises(sdk.Conflict) as caught, machine.console() as second:
        second.read(timeout=5)
    assert caught.value.code == "console-busy"


def test_pause_and_resume_and_reset(insula: RealShell) -> None:
    insula("pause", "warm")
    assert insula.info("warm")["phase"] == "paused"
    assert "paused" in insula("exec", "warm", "--", "true", status=73).stderr.decode()
    insula("resume", "warm")
    assert insula.text("exec", "warm", "--", "echo", "on") == "on\n"


async def test_no_file_system_of_a_disk_is_nothing_to_freeze(insula: RealShell) -> None:
    agent = await connect(insula.agent_socket("warm"))
    assert await agent.freeze(10) == 0
    assert (await capture(await agent.exec(["echo", "on"]))).stdout == b"on\n"
    assert await agent.thaw() == 0
    assert await agent.refresh() == Renewal(("random", "clock"))
    await agent.close()
    assert insula.text("exec", "warm", "--", "hostname") == "warm\n"


def test_info_says_which_accelerator_and_why(insula: RealShell) -> None:
    info = insula.info("warm")
    assert info["accelerator"]["name"] in ("kvm", "tcg")
    assert info["accelerator"]["reason"]
    assert info["accelerator"]["name"] in insula.text("info", "warm").lower()


def test_kill_9_of_the_daemon_harms_no_machine(insula: RealShell) -> None:
    insula("exec", "warm", "--", "sh", "-c", "echo kept >/tmp/mark")
    pid = insula.info("warm")["pid"]
    insula.kill_daemon()
    assert insula.info("warm")["pid"] == pid
    assert insula.info("warm")["phase"] == "running"
    assert any("'warm' was adopted" in line for line in insula.data("daemon", "status")["recovered"])
    assert insula.text("exec", "warm", "--", "cat", "/tmp/mark") == "kept\n"


def test_stopping_the_daemon_stops_no_machine(insula: RealShell) -> None:
    pid = insula.info("warm")["pid"]
    insula("daemon", "stop")
    os.kill(pid, 0)
    assert insula.info("warm")["pid"] == pid


def test_kill_9_of_qemu_is_a_crash_with_evidence_at_once(insula: RealShell) -> None:
    insula("run", "-d", "--name", "victim", "micro")
    pid = insula.info("victim")["pid"]
    client = sdk.connect(insula.home)
    after = list(client.events(follow=False))[-1]["seq"]
    events = client.events(after=after, follow=True)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    event = next(event for event in events if event["kind"] == "machine.phase")
    took = time.monotonic() - began
    assert event["data"]["to"] == "crashed"
    assert took < 0.3
    info = insula.info("victim")
    assert info["phase"] == "crashed"
    assert info["last_exit"]["exit_status"] == 137
    assert "qemu-system" in info["last_exit"]["command"]
    insula("start", "victim")
    assert insula.info("victim")["phase"] == "running"
    insula("rm", "-f", "victim")


def test_a_crash_while_no_daemon_ran_is_found_with_its_exit_status(insula: RealShell) -> None:
    insula("run", "-d", "--name", "unseen", "micro")
    pid = insula.info("unseen")["pid"]
    insula.kill_daemon()
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSEGV)
    assert select.select([watch], [], [], 10)[0]
    os.close(watch)
    info = insula.info("unseen")
    assert info["phase"] == "crashed"
    assert info["last_exit"]["exit_status"] == 139
    insula("rm", "unseen")


def test_run_rm_leaves_nothing_even_when_it_is_killed(insula: RealShell) -> None:
    before = {machine["name"] for machine in insula.data("ls", "--all")}
    words = ["run", "--rm", "micro", "--", "sh", "-c", "echo started; sleep 1000"]
    with insula.popen(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"started\n"
        running.kill()
    deadline = time.monotonic() + 60
    while {machine["name"] for machine in insula.data("ls", "--all")} != before:
        assert time.monotonic() < deadline, insula.data("ls", "--all")


def test_stop_asks_the_guest_first(insula: RealShell) -> None:
    for agent in ("insula", "none"):
        insula("run", "-d", "--cold", "--name", "polite", "--agent", agent, "micro")
        wait_for_boot(insula, "polite")
        done = insula("stop", "--timeout", "60s", "polite")
        assert b"forced" not in done.stderr, done.stderr
        assert insula.info("polite")["last_exit"]["exit_status"] == 0
        insula("rm", "polite")


def wait_for_boot(insula: RealShell, name: str) -> None:
    """Until the console shows a shell's prompt: a guest without agent tells nothing else."""
    with insula.popen("logs", "-f", name, stdout=subprocess.PIPE) as logs:
        assert logs.stdout is not None
        said = b""
        while b"#" not in said:
            piece = os.read(logs.stdout.fileno(), 4096)
            assert piece, said
            said += piece
        logs.terminate()


def test_a_guest_that_powers_itself_off_is_stopped_not_crashed(insula: RealShell) -> None:
    insula("run", "-d", "--name", "brief", "--run-policy", "always", "micro")
    insula("exec", "brief", "--", "poweroff", status=None)
    insula("wait", "brief", "--phase", "stopped", "--timeout", "60s")
    assert insula.info("brief")["last_exit"]["cause"] == "guest-shutdown"
    assert insula.info("brief")["power"] == "off"
    insula("rm", "brief")


def test_the_qemu_guest_agent_serves_as_well(insula: RealShell) -> None:
    insula("run", "-d", "--name", "standard", "--agent", "qemu", "micro")
    done = insula("exec", "standard", "--", "sh", "-c", "cat; echo err >&2; exit 4", input=b"in", status=4)
    assert done.stdout == b"in"
    assert done.stderr == b"err\n"
    insula("stop", "standard")
    insula("rm", "standard")


def test_a_machine_with_a_network_tells_its_address_and_a_published_port(insula: RealShell) -> None:
    insula("run", "-d", "--name", "net", "-p", "28080:80", "micro")
    insula("exec", "net", "--", "true")
    script = "mkdir -p /tmp/www; echo served > /tmp/www/index.html; httpd -p 80 -h /tmp/www"
    insula("exec", "net", "--", "sh", "-c", script)
    deadline = time.monotonic() + 60
    while not insula.info("net")["addresses"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert insula.info("net")["network"] == "isolated"
    import urllib.request

    with urllib.request.urlopen("http://127.0.0.1:28080/", timeout=30) as answer:
        assert answer.read() == b"served\n"
    insula("rm", "-f", "net")


def test_launch_failures_carry_their_evidence_and_leave_nothing(insula: RealShell) -> None:
    done = insula("run", "-d", "--name", "odd", "--cpu-model", "no-such-cpu", "--json", "micro", status=69)
    problem = json.loads(done.stderr)
    assert problem["code"] == "launch-failed"
    assert "no-such-cpu" in problem["evidence"]["stderr"]
    assert "odd" not in [machine["name"] for machine in insula.data("ls", "--all")]


def test_the_sdk(insula: RealShell) -> None:
    with sdk.run("micro", home=insula.home) as vm:
        result = vm.exec("uname", "-r")
        assert result.exit_code == 0
        assert "cloud-amd64" in result.stdout
        name = vm.name
    assert name not in [machine["name"] for machine in insula.data("ls", "--all")]


def test_a_home_deep_down_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100) / "home"
    deep.mkdir(parents=True)
    with real_home(deep) as shell:
        assert shell.text("run", "--rm", "micro", "--", "echo", "deep") == "deep\n"
