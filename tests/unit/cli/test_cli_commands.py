from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Command
from tests.unit.client.stub import MACHINES, OPERATION, WEB, Stub, machine, operation


def test_ls_shows_what_runs_or_crashed_and_counts_the_rest(stub: Stub, insula: Command) -> None:
    phases = ["running", "stopped", "crashed", "created", "paused"]
    stub.answer("GET", "/v1/machines", [machine(f"m-{p}", phase=p) for p in phases])
    ran = insula("ls")
    assert [line.split()[0] for line in ran.out.splitlines()] == [
        "NAME",
        "m-crashed",
        "m-paused",
        "m-running",
    ]
    assert ran.err == "2 more not running: insula ls --all\n"
    assert "\x1b" not in ran.out
    assert len(insula("ls", "-a").out.splitlines()) == 6
    assert insula("ls", "-q").out.split() == ["m-running", "m-crashed", "m-paused"]


def test_ls_table(stub: Stub, insula: Command) -> None:
    stub.answer(
        "GET", "/v1/machines", [machine(), machine("b", project="p2", addresses=[], memory_bytes=2**30)]
    )
    head, default, other = insula("ls").out.splitlines()
    assert head == "PROJECT  NAME  IMAGE  PHASE    CPUS  MEMORY  ADDRESSES  AGE"
    assert default.startswith("default  web   micro  running  2     512MiB  10.0.2.15  ")
    assert other.startswith("p2       b     micro  running  2     1GiB    -          ")


def test_ls_json(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/machines", [machine()])
    assert json.loads(insula("ls", "--json").out) == [machine()]


def test_ls_of_nothing(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/machines", [])
    ran = insula("ls")
    assert (ran.out, ran.err) == ("", "No machines. Start one: insula run micro\n")
    assert insula("ls", "--json").out == "[]\n"


def test_error_on_stderr(stub: Stub, insula: Command) -> None:
    problem = {
        "code": "volume-in-use",
        "detail": "Cannot start machine 'web': volume 'data' is in use by machine 'db'.",
        "hint": "Stop 'db'.",
        "evidence": {"exit_status": 1, "stderr": "one\ntwo", "serial": ""},
        "fields": [{"path": "cpus", "rule": "too many", "value": 900}],
        "causes": ["The lock is held.", "The lock is held."],
    }
    stub.refuse("POST", f"{WEB}/start", **problem)
    ran = insula("start", "web")
    assert ran.status == 73
    assert ran.out == ""
    assert ran.err == (
        "error: Cannot start machine 'web': volume 'data' is in use by machine 'db'.\n"
        "  cpus: too many (given: 900)\n"
        "hint: Stop 'db'.\n"
        "  exit status: 1\n"
        "  stderr:\n    one\n    two\n"
        "caused by: The lock is held.\n"
    )
    told = json.loads(insula("start", "web", "--json").err)
    assert (told["code"], told["exit_status"], told["hint"]) == ("volume-in-use", 73, "Stop 'db'.")


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("strat web", "There is no command 'strat'.", "Did you mean 'insula start'?"),
        ("--verbos", "There is no option '--verbos' before a command.", "insula --help"),
        ("image bild x", "'insula image' has no command 'bild'.", "Did you mean 'insula image build'?"),
        ("ls --al", "'insula ls' has no option '--al'.", "Did you mean --all?"),
        ("run micro --uefi", "has no option '--uefi'.", "Did you mean --firmware uefi?"),
        ("volume create data 1G", "'1G' is more than", "Did you mean --size 1G?"),
        ("fork web 3", "'3' is more than", "Did you mean --count 3?"),
        ("volume attach data web scsi", "'scsi' is more than", "Did you mean --bus scsi?"),
        ("fork web db", "'db' is more than", "hint: See: insula fork --help"),
        ("volume resize data 2G 3G", "'3G' is more than", "hint: See: insula volume resize --help"),
        ("rm", "Say which machines", "insula rm --help"),
        ("exec web", "Say which command", "insula exec web -- uname -a"),
        ("run micro --cpus 0", "--cpus 0 is less than one processor.", "--cpus 1"),
        ("run micro --cpus two", "'two' is not a whole number.", ""),
        ("run micro --memory lots", "'lots' is not a size.", "512MiB"),
        ("run micro --", "There is no command after --.", "insula run"),
        ("run -d micro -- true", "cannot be run detached", "insula exec"),
        ("run -t micro", "are for a command in the guest", "-- sh"),
        ("run micro uname", "'uname' is more than", "-- uname"),
        ("run micro --ssh-key /none", "The file '/none' of --ssh-key cannot be read.", ""),
        ("wait web --phase stoped", "There is no phase 'stoped'.", "Did you mean stopped?"),
        ("shell web", "needs a terminal", "insula exec"),
        ("exec -t web -- sh", "needs a terminal", "insula exec"),
        ("logs web --tail -3", "cannot be negative", ""),
    ],
)
def test_usage_errors(insula: Command, line: str, error: str, hint: str) -> None:
    ran = insula(*line.split())
    assert ran.status == 64
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert error in ran.err
    assert hint in ran.err


def test_usage_error_as_json(insula: Command) -> None:
    assert json.loads(insula("ls", "--json", "--nope").err)["code"] == "usage"


def test_help(insula: Command) -> None:
    assert "insula run micro -- uname -a" in insula().out
    assert "Usage: insula COMMAND" in insula("--help").out
    assert insula("help", "ls").out == insula("ls", "--help").out


def test_stop_tells_notes_and_names(stub: Stub, insula: Command) -> None:
    note = "The guest did not answer within 5s; it was forced."
    stub.answer("POST", f"{WEB}/stop", operation("stop", "running"))
    stub.answer("GET", OPERATION, operation("stop", notes=[note]))
    ran = insula("stop", "web", "--timeout", "5s", "--no-force")
    assert (ran.status, ran.out, ran.err) == (0, "web\n", f"{note}\n")
    assert stub.asked("POST", f"{WEB}/stop")[0].json == {"timeout": 5.0, "force": False}


def test_several_machines_each_failure_told(stub: Stub, insula: Command) -> None:
    stub.refuse(
        "POST", f"{MACHINES}/a/kill", code="no-a", family="invalid", status=404, exit_status=66, detail="A."
    )
    stub.answer("POST", f"{WEB}/kill", operation("kill"))
    stub.refuse("POST", f"{MACHINES}/c/kill", code="no-c", exit_status=73, detail="C.")
    ran = insula("kill", "a", "web", "c", "web")
    assert (ran.status, ran.out, ran.err) == (66, "web\n", "error: A.\nerror: C.\n")
    assert len(stub.asked("POST", f"{WEB}/kill")) == 1


def test_rm_all(stub: Stub, insula: Command) -> None:
    stub.answer("GET", f"{MACHINES}", [machine("a", phase="stopped"), machine("b")])
    stub.answer("DELETE", f"{MACHINES}/a", operation("rm"))
    stub.answer("GET", f"{MACHINES}/a", machine("a"))
    ran = insula("rm", "--all", "--json")
    assert ran.status == 0
    assert [o["verb"] for o in json.loads(ran.out)] == ["rm"]
    assert stub.asked("DELETE", f"{MACHINES}/b") == []


def test_rename_and_wait(stub: Stub, insula: Command) -> None:
    stub.answer("POST", f"{WEB}/rename", operation("rename"))
    assert insula("rename", "web", "db").out == "db\n"
    assert stub.requests[0].json == {"name": "db"}
    stub.answer("GET", f"{WEB}/wait", machine(phase="stopped"))
    assert insula("wait", "web", "--timeout", "3s").out == "stopped\n"
    assert stub.requests[-1].query.startswith("phase=stopped,crashed&timeout=")


def test_info_tells_how_to_reach_it(stub: Stub, insula: Command) -> None:
    stub.answer("GET", WEB, machine())
    out = insula("info", "web").out
    for line in (
        "accelerator: tcg: KVM opens and does not run",
        "network:     user, 127.0.0.1:2222 -> 22/tcp",
        "  insula shell web",
        "  ssh -p 2222 127.0.0.1",
    ):
        assert line in out.splitlines()
    assert json.loads(insula("info", "web", "--json").out) == machine()


def test_info_tells_how_it_ended(stub: Stub, insula: Command) -> None:
    last = {
        "at": "2026-05-01T12:00:00Z",
        "cause": "crash",
        "exit_status": 137,
        "signal": 9,
        "command": "qemu-system-x86_64 -m 512",
        "stderr": "boom\n",
        "serial": "",
    }
    stub.answer("GET", WEB, machine(phase="crashed", last_exit=last))
    out = insula("info", "web").out
    assert "it crashed, by signal 9" in out
    assert "  command:\n    qemu-system-x86_64 -m 512\n  stderr:\n    boom\n" in out
    assert "reach it" not in out


def test_run_prints_the_name_without_a_terminal(stub: Stub, insula: Command, tmp_path: Path) -> None:
    stub.answer("POST", MACHINES, operation("create"))
    (tmp_path / "key.pub").write_text("# mine\nssh-ed25519 AAAA me\n")
    line = "run micro --name web --cpus 2 --memory 1GiB -p 2222:22 --user me --network user"
    ran = insula(*line.split(), "--ssh-key", str(tmp_path / "key.pub"))
    assert (ran.status, ran.out, ran.err) == (0, "web\n", "")
    assert stub.requests[0].json == {
        "image": "micro",
        "name": "web",
        "cpus": 2,
        "memory": 2**30,
        "network": "user",
        "publish": ["2222:22"],
        "cloud_init": {"user": "me", "ssh_keys": ["ssh-ed25519 AAAA me"]},
    }


def test_private_key_is_not_sent(insula: Command, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    ran = insula("run", "micro", "--ssh-key", str(tmp_path / "key"))
    assert ran.status == 64
    assert "is a private key" in ran.err


def commanding(heard: list[Any], status: int) -> Any:
    def talk(peer: Any) -> None:
        heard.append(peer.hear())
        peer.say(type="started")
        data = b""
        while isinstance(message := peer.hear(), bytes):
            data += message[1:]
        heard.append(data)
        peer.output(1, b"to stdout " + data)
        peer.output(2, b"to stderr")
        peer.say(type="exit", code=status, signal=None, status=status)
        peer.close_with()

    return talk


def test_run_with_a_command(stub: Stub, insula: Command) -> None:
    heard: list[Any] = []
    stub.answer("POST", MACHINES, operation("create"))
    stub.websocket(f"{WEB}/exec", commanding(heard, 7))
    ran = insula("run", "-e", "A=1", "-w", "/tmp", "micro", "--", "sh", "-c", "exit 7", stdin=b"input")
    assert (ran.status, ran.out) == (7, "to stdout input")
    assert ran.err == "to stderrMachine 'web' goes on running. Remove it: insula rm -f web\n"
    assert (heard[0]["argv"], heard[0]["environment"]) == (["sh", "-c", "exit 7"], {"A": "1"})
    assert (heard[0]["working_directory"], heard[0]["timeout"], heard[1]) == ("/tmp", None, b"input")


def test_run_rm_removes_after_success_and_after_failure(stub: Stub, insula: Command) -> None:
    stub.answer("POST", MACHINES, operation("create"))
    stub.answer("GET", WEB, machine())
    stub.answer("DELETE", WEB, operation("rm"))
    stub.websocket(f"{WEB}/exec", commanding([], 0))
    problem = {
        "code": "agent-silent",
        "family": "unavailable",
        "exit_status": 69,
        "detail": "Silent for 60s.",
    }
    stub.websocket(f"{WEB}/exec", lambda peer: peer.hear() and peer.say(type="error", problem=problem))
    ran = insula("run", "--rm", "micro", "--", "true")
    assert (ran.status, ran.err) == (0, "to stderr")
    ran = insula("run", "--rm", "micro", "--", "true")
    assert (ran.status, ran.err) == (69, "error: Silent for 60s.\n")
    assert [asked.query for asked in stub.asked("DELETE", WEB)] == ["force=true", "force=true"]
    assert stub.asked("POST", MACHINES)[0].json["ephemeral"] is True
    assert stub.asked("GET", f"{WEB}/exec")[0].query == "attached=true"


@pytest.mark.parametrize("status", [126, 127])
def test_exec_errors_have_a_shells_status(stub: Stub, insula: Command, status: int) -> None:
    problem = {"code": "some", "family": "invalid", "exit_status": status, "detail": "No."}
    stub.websocket(f"{WEB}/exec", lambda peer: peer.hear() and peer.say(type="error", problem=problem))
    assert insula("exec", "web", "--", "nope").status == status


def test_first_build_shows_progress_in_lines(stub: Stub, insula: Command) -> None:
    def running(message: str, fraction: float) -> dict[str, Any]:
        return operation("image-build", "running", progress={"message": message, "fraction": fraction})

    stub.answer("POST", "/v1/images/micro/build", operation("image-build", "queued", target_kind="image"))
    stub.answer(
        "GET",
        OPERATION,
        running("unpacking", 0.1),
        running("unpacking", 0.2),
        running("packing", 0.9),
        operation(),
    )
    image = {"name": "micro", "size_bytes": 2**20}
    stub.answer("GET", "/v1/images/micro", image)
    ran = insula("image", "build", "micro")
    assert ran.out == "micro\n"
    assert ran.err.splitlines()[:2] == ["unpacking", "packing"]
    assert ran.err.splitlines()[2].startswith("Built 1MiB in ")


def test_image_ls(stub: Stub, insula: Command) -> None:
    image = {
        "name": "micro",
        "size_bytes": 2**20,
        "boots": ["direct"],
        "created": "2026-05-01T12:00:00Z",
        "summary": "S",
    }
    stub.answer("GET", "/v1/images", [image])
    recipes = [
        {"name": n, "summary": "R", "kind": "disk", "built": n == "micro"} for n in ("micro", "debian-12")
    ]
    stub.answer("GET", "/v1/recipes", recipes)
    _head, micro, debian = insula("image", "ls").out.splitlines()
    assert micro.split()[:4] == ["micro", "yes", "1MiB", "direct"]
    assert debian.split() == ["debian-12", "no", "-", "-", "-", "R"]
    assert [i["built"] for i in json.loads(insula("image", "ls", "--json").out)] == [True, False]


def test_template(stub: Stub, insula: Command) -> None:
    template = {
        "key": "0123456789ab",
        "image": {"name": "micro", "digest": "sha256:0"},
        "cpus": 2,
        "memory_bytes": 2**29,
        "held_bytes": 2**27,
        "disk_bytes": 2**20,
        "last_used": "2026-05-01T12:00:00Z",
    }
    stub.answer("GET", "/v1/templates", [template])
    head, line = insula("template", "ls").out.splitlines()
    assert head.split() == ["KEY", "IMAGE", "CPUS", "MEMORY", "HELD", "DISK", "LAST-USED"]
    assert line.split()[:6] == ["0123456789ab", "micro", "2", "512MiB", "128MiB", "1MiB"]
    assert insula("template", "ls", "-q").out == "0123456789ab\n"
    assert json.loads(insula("template", "ls", "--json").out) == [template]
    outcome = {"removed": ["0123456789ab"], "freed_bytes": 2**27}
    done = operation("template-rm", target_kind="template", outcome=outcome)
    stub.answer("DELETE", "/v1/templates/micro", done)
    assert insula("template", "rm", "micro").out == "micro\n"
    stub.answer("POST", "/v1/templates/prune", {**done, "verb": "template-prune"})
    ran = insula("template", "prune", "--unused-for", "2h")
    assert (ran.out, ran.err) == ("0123456789ab\n", "Freed 128MiB of memory.\n")
    assert stub.requests[-1].json == {"unused_for": 7200}
    assert json.loads(insula("template", "prune", "--json").out) == outcome
    assert insula("template", "prune", "--unused-for", "soon").status == 64


def test_logs(stub: Stub, insula: Command) -> None:
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\nboot\r\nlogin: ")
    assert insula("logs", "web", "-n", "5").out == "boot\r\nlogin: "


def test_events(stub: Stub, insula: Command) -> None:
    event = {"seq": 4, "at": "2026-05-01T12:00:00.250Z", "kind": "machine.phase", "project": "default"}
    event |= {"target": "uid-web", "name": "web", "data": {"phase": "running"}}  # type: ignore[operator]
    stub.raw("GET", "/v1/events", b"HTTP/1.1 200 OK\r\n\r\ndata: " + json.dumps(event).encode() + b"\n\n")
    ran = insula("events", "--after", "3")
    assert ran.out.split() == ["2026-05-01", "12:00:00.250", "4", "machine.phase", "web", "phase=running"]
    assert json.loads(insula("events", "--json").out) == event


def test_version_and_daemon_start_nothing(insula: Command) -> None:
    versions = json.loads(insula("version", "--json").out)
    assert versions["client"]
    assert versions["daemon"] is None
    assert json.loads(insula("daemon", "status", "--json").out) == {"running": False}
    assert insula("daemon", "stop").err == "The daemon does not run.\n"


def test_version_of_another_daemon(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/version", {"version": "9.9", "api": "v1"})
    stub.refuse("GET", "/v1/host", code="daemon-version", detail="Other.")
    assert "daemon 9.9" in insula("version").out


def test_doctor(stub: Stub, insula: Command) -> None:
    findings = [
        {"name": "qemu", "state": "ok", "detail": "7.2", "mend": ""},
        {"name": "kvm", "state": "limited", "detail": "no permission", "mend": "usermod"},
    ]
    stub.answer(
        "GET", "/v1/host/findings", findings, [{**findings[0], "state": "missing", "mend": "apt-get"}]
    )
    ran = insula("doctor")
    assert ran.status == 0
    assert ran.out == "ok       qemu  7.2\nlimited  kvm   no permission\n               mend: usermod\n"
    ran = insula("doctor", "--json")
    assert (ran.status, json.loads(ran.out)[0]["mend"]) == (69, "apt-get")


def test_doctor_without_a_daemon(tmp_path: Path, insula: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "file" / "home"))
    ran = insula("doctor")
    assert ran.status == 69
    assert ran.out.startswith("MISSING  daemon ")
    assert "/dev/kvm" in ran.out
    assert "cannot be written" in ran.out


def test_op(stub: Stub, insula: Command) -> None:
    stub.answer(
        "GET", "/v1/operations", [operation(state="running", progress={"message": "x", "fraction": None})]
    )
    assert insula("op", "ls").out.splitlines()[1].split()[:4] == [
        "0123456789abcdef",
        "start",
        "web",
        "running",
    ]
    stub.answer("GET", OPERATION, operation(state="running"), operation(state="cancelled"))
    stub.answer("POST", f"{OPERATION}/cancel", operation(state="running"))
    ran = insula("op", "cancel", "0123456789abcdef")
    assert (ran.status, ran.err) == (0, "'start' of machine 'web' was cancelled; nothing had to be undone.\n")


def test_fault_of_our_own_is_told_as_one(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/machines", [{"name": "no phase"}])
    ran = insula("ls")
    assert ran.status == 70
    assert "error: Insula itself failed: KeyError: 'phase'." in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in insula("ls", "-v").err


def test_image_import(stub: Stub, insula: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = operation("image-import", target_kind="image", outcome={})
    stub.answer("POST", "/v1/images/my-server-1/import", done)
    stub.answer("GET", "/v1/images/my-server-1", {"name": "my-server-1", "size_bytes": 2**20})
    ran = insula("image", "import", "./My Server_1.vmdk", "--cloud-init", "--memory", "2GiB", "--user", "me")
    assert (ran.status, ran.out) == (0, "my-server-1\n")
    assert "Imported 1MiB." in ran.err
    asked = stub.asked("POST", "/v1/images/my-server-1/import")[-1].json
    assert asked == {
        "path": str(tmp_path / "My Server_1.vmdk"),
        "default_user": "me",
        "cloud_init": True,
        "memory": 2**31,
    }
    stub.answer("POST", "/v1/images/web/import", done)
    stub.answer("GET", "/v1/images/web", {"name": "web", "size_bytes": 2**20})
    ran = insula("image", "import", "x", "--name", "web", "--format", "raw", "--replace", "--json")
    assert json.loads(ran.out)["name"] == "web"
    assert stub.asked("POST", "/v1/images/web/import")[0].json == {
        "path": str(tmp_path / "x"),
        "format": "raw",
        "replace": True,
    }
    assert insula("image", "import", "x", "--format", "floppy").status == 64


def test_image_pull_and_export(
    stub: Stub, insula: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stub.answer("POST", "/v1/images/mine/pull", operation("image-pull", target_kind="image", outcome={}))
    stub.answer("GET", "/v1/images/mine", {"name": "mine", "size_bytes": 2**20})
    assert insula("image", "pull", "arch", "--name", "mine").out == "mine\n"
    assert stub.asked("POST", "/v1/images/mine/pull")[0].json == {"source": "arch"}
    outcome = {"path": "/out/x", "format": "vhdx", "size_bytes": 2**20}
    done = operation("image-export", target_kind="image", outcome=outcome)
    stub.answer("POST", "/v1/images/mine/export", done)
    ran = insula("image", "export", "mine", "out.bin", "--format", "vhdx")
    assert ran.out == "/out/x\n"
    assert "Exported as vhdx: 1MiB." in ran.err
    assert json.loads(insula("image", "export", "mine", "out.bin", "--json").out) == outcome
    first, second = (asked.json for asked in stub.asked("POST", "/v1/images/mine/export"))
    assert first == {"path": str(tmp_path / "out.bin"), "format": "vhdx", "replace": False}
    assert second["format"] == "qcow2"


def test_image_prune_and_catalogue(stub: Stub, insula: Command) -> None:
    outcome = {"removed": ["sha256:aa", "sha256:bb"]}
    stub.answer("POST", "/v1/images/prune", operation("image-prune", target_kind="image", outcome=outcome))
    assert insula("image", "prune").out == "sha256:aa\nsha256:bb\n"
    assert json.loads(insula("image", "prune", "--json").out) == outcome
    entry = {"name": "arch", "version": "latest", "architecture": "x86_64", "os": "Arch Linux", "size": 2**30}
    stub.answer("GET", "/v1/catalogue", [entry])
    assert insula("image", "ls", "--catalogue").out.splitlines()[1].split()[:2] == ["arch", "latest"]
    assert insula("image", "ls", "--catalogue", "-q").out == "arch\n"
    assert json.loads(insula("image", "ls", "--catalogue", "--json").out) == [entry]
