"""insula run IMAGE [-- CMD]: a machine, and perhaps a command in it, in one line.

with CMD        start, run CMD with our stdin, stdout and stderr, exit with its status
on a terminal   start, and sit down at its serial console
-d, or no terminal   start, print its name
--rm            whatever happens (Ctrl-C, SIGTERM, a closed terminal), the machine is removed at the end
"""

from __future__ import annotations

import contextlib
import os
import sys

from insula.cli.attach import hold_console, run_attached
from insula.cli.execute import add_guest_options
from insula.cli.interrupts import Held
from insula.cli.operate import perform
from insula.cli.output import print_json, say
from insula.cli.parser import Parser, UsageError, duration, size, split_command, whole_number
from insula.client.machine import Machine
from insula.client.sdk import connect, machine_spec
from insula.kit.errors import Invalid, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula.cli.parser import Options
    from insula.client.types import OperationInfo


class UnreadableFile(Invalid):
    """A file named on the command line cannot be read, or is not what was asked for."""

    code = "unreadable-file"


def parser() -> Parser:
    p = Parser(
        "run",
        "Start a machine of an image (built first if need be), and perhaps a command in it.\n"
        "With a command: runs it, and exits with its status. Without: opens the machine's console on a\n"
        "terminal (Ctrl-] leaves it), else prints its name.",
        guest_command=True,
        examples="insula run --rm micro -- uname -a\n"
        "insula run -d --name web --memory 1GiB -p 8080:80 --network user debian-12",
    )
    p.argument("image", "IMAGE", "name of an image: insula image ls")
    _add_machine_options(p)
    _add_guest_setup(p)
    p.flag("--cold", help="boot it, even if it could wake up as a fork of a template")
    p.flag("--rm", help="remove the machine at the end, whatever happens")
    p.flag("-d", "--detach", help="start it, print its name, and return")
    add_guest_options(p)
    p.option(
        "--agent-timeout",
        metavar="TIME",
        convert=duration,
        help="how long the guest's agent may take to answer (default: 5m after the start)",
    )
    p.add_project()
    return p


def _add_machine_options(p: Parser) -> None:
    p.option("--name", metavar="NAME", help="its name (default: one is chosen)")
    p.option("--cpus", metavar="N", convert=whole_number, help="number of processors")
    p.option("--memory", "-m", metavar="SIZE", convert=size, help="memory, such as 512MiB or 1GiB")
    p.option("--disk-size", metavar="SIZE", convert=size, help="size of its disk, at least the image's")
    p.option("--boot", choices=("direct", "disk", "cdrom"), help="from a kernel file, or by a loader")
    p.option("--firmware", choices=("bios", "uefi"), help="what it boots by (default: the image's)")
    p.option("--accelerator", choices=("auto", "kvm", "tcg"), help="default: what works here")
    p.option("--cpu-model", metavar="MODEL", help="processor model, such as max or qemu64")
    p.option("--agent", choices=("insula", "qemu", "none"), help="which guest agent to talk to")
    p.option("--network", choices=("none", "isolated", "user"), help="what it reaches (default: the image's)")
    p.option("-p", "--publish", metavar="HOST:GUEST", repeat=True, help="a port of the host for it")
    p.option("--volume", metavar="VOLUME[:ro][:scsi]", repeat=True, help="a volume that it gets")
    p.option("--cdrom", metavar="IMAGE[:ata|:scsi]", help="a CD drive with an image in it; none: empty")
    p.option(
        "--run-policy", choices=("always", "keep", "once"), help="when it starts by itself (default: keep)"
    )


def _add_guest_setup(p: Parser) -> None:
    p.option("--hostname", metavar="NAME", help="host name (default: the machine's name)")
    p.option("--user", metavar="NAME", help="login name to create (images with cloud-init)")
    p.option("--ssh-key", metavar="FILE|KEY", repeat=True, help="public key that may log in")
    p.option("--user-data", metavar="FILE", help="cloud-init user-data of your own; - reads stdin")


def run(_command: str, argv: list[str]) -> int:
    own, command = split_command(argv)
    options = parser().parse(own)
    _check(options, command)
    console = command is None and not options.detach and not options.json and _on_terminal()
    spec = _spec(options, removed_by_itself=options.rm)
    client = connect()
    info = perform(
        lambda: client.submit_create(spec, options.project, cold=options.cold), quiet=options.quiet
    )
    if options.verbose:
        _say_how(info)
    machine = Machine(client.transport, info["name"], options.project, uid=info["target"])
    stays = not command and not console
    try:
        if command:
            return run_attached(
                machine, command, options, agent_timeout=options.agent_timeout, attached=options.rm
            )
        if console:
            with machine.console() as held:
                hold_console(held, machine.name)
        elif options.json:
            print_json(machine.info)
        else:
            print(machine.name, flush=True)
    finally:
        if not stays:
            _leave(machine, options)
    return 0


def _say_how(info: OperationInfo) -> None:
    """Whether it was forked, and what it renewed; or why it was booted."""
    outcome = info.get("outcome") or {}
    renewed = outcome.get("renewed")
    if renewed:
        say(f"Forked from a template; renewed in the guest: {', '.join(renewed['renewed'])}.")
    elif outcome.get("booted"):
        say(f"Booted, not forked: {outcome['booted']}")


def _check(options: Options, command: list[str] | None) -> None:
    """What can be said before anything is done."""
    if command == []:
        raise UsageError("There is no command after --.", hint="insula run IMAGE -- COMMAND [ARGUMENT ...]")
    if command and options.detach:
        raise UsageError(
            "A command in the guest cannot be run detached.",
            hint="Start the machine first: insula run -d ..., then: insula exec NAME -- COMMAND",
        )
    if command and options.json:
        raise UsageError("What a guest command prints is not JSON: leave out --json.")
    if not command and (options.tty or options.interactive or options.env or options.workdir):
        raise UsageError("-t, -i, -e and -w are for a command in the guest.", hint="Put it after --: -- sh")


def _on_terminal() -> bool:
    try:
        return os.isatty(0) and os.isatty(1)
    except OSError:
        return False


def _spec(options: Options, *, removed_by_itself: bool) -> dict[str, Any]:
    if options.cpus is not None and options.cpus < 1:
        raise UsageError(f"--cpus {options.cpus} is less than one processor.", hint="Use --cpus 1.")
    return machine_spec(
        options.image,
        name=options.name,
        cpus=options.cpus,
        memory=options.memory,
        disk_size=options.disk_size,
        boot=options.boot,
        firmware=options.firmware,
        accelerator=options.accelerator,
        cpu_model=options.cpu_model,
        agent=options.agent,
        network=options.network,
        publish=options.publish,
        volumes=options.volume,
        cdrom=options.cdrom,
        run_policy=options.run_policy,
        ephemeral=removed_by_itself,
        cloud_init={
            "hostname": options.hostname,
            "user": options.user,
            "ssh_keys": [key for text in options.ssh_key for key in _ssh_keys(text)],
            "user_data": _read(options.user_data, "--user-data") if options.user_data else None,
        },
    )


def _ssh_keys(text: str) -> list[str]:
    """Public keys from a key, or from a file with one key a line."""
    if text.startswith(("ssh-", "ecdsa-", "sk-")):
        return [text]
    content = _read(os.path.expanduser(text), "--ssh-key")  # noqa: PTH111
    if "PRIVATE KEY" in content:
        raise UnreadableFile(f"'{text}' is a private key.", hint=f"Give the public one: --ssh-key {text}.pub")
    return [line.strip() for line in content.splitlines() if line.strip() and not line.startswith("#")]


def _read(path: str, option: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as stream:  # noqa: PTH123
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"The file '{path}' of {option} cannot be read.") from error


def _leave(machine: Machine, options: Options) -> None:
    """With --rm remove the machine, else say that it goes on."""
    if options.rm:
        with Held(), contextlib.suppress(NotFound):
            machine.remove(force=True)
    elif not options.quiet:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
        say(f"Machine '{machine.name}' goes on running. Remove it: insula rm -f {machine.name}")
