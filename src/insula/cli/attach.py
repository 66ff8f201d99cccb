"""A guest command, or a serial console, joined to our own stdin, stdout and stderr."""

from __future__ import annotations

import math
import os
import signal
import time

from insula.cli.interrupts import SignalInbox
from insula.cli.output import say
from insula.cli.terminal import RawTerminal, require_terminal, window_size, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.cli.parser import Options
    from insula.client.machine import Machine
    from insula.client.session import Console, ExecSession

GIVE_UP_WITHIN = 2.0  # seconds between two Ctrl-C that mean: leave it
ESCAPE = 0x1D  # Ctrl-], as telnet, virsh and incus have it


def environment_of(pairs: list[str]) -> dict[str, str]:
    """-e NAME=VALUE, or -e NAME for the value it has here."""
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


def run_attached(
    machine: Machine,
    argv: list[str],
    options: Options,
    *,
    user: str | None = None,
    agent_timeout: float | None,
    attached: bool = False,
) -> int:
    """Run a command in the machine with our stdin, stdout and stderr; its exit status.

    Stdin is passed on when it is no terminal, or with -i or -t. Raises what `Machine.popen` and its session
    do.
    """
    if options.tty:
        require_terminal()
    environment = environment_of(options.env)
    if options.tty and "TERM" in os.environ:
        environment.setdefault("TERM", os.environ["TERM"])
    rows, columns = window_size() if options.tty else (24, 80)
    session = machine.popen(
        *argv,
        env=environment,
        cwd=options.workdir,
        user=user,
        tty=options.tty,
        rows=rows,
        columns=columns,
        agent_timeout=agent_timeout,
        attached=attached,
    )
    with session:
        if not (options.interactive or options.tty or not _is_terminal(0)):
            session.close_stdin()
            return pump(session, None)
        if not options.tty:
            return pump(session, 0)
        with RawTerminal():
            return pump(session, 0, tty=True)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def pump(session: ExecSession, source: int | None, *, tty: bool = False) -> int:
    """Carry bytes and signals until the command has ended. source: what to read its stdin from, or None.

    Ctrl-C goes to the command as SIGINT; a second one within GIVE_UP_WITHIN, or one before the command has
    started, raises KeyboardInterrupt. Raises BrokenPipeError when nobody reads our output.
    """
    last_interrupt = -math.inf
    with SignalInbox(signal.SIGINT, *([signal.SIGWINCH] if tty else [])) as inbox:
        while not session.ended:
            inputs = [inbox.fileno()]
            if source is not None and not session.congested:
                inputs.append(source)
            output, ready = session.exchange(inputs)
            for channel, data in output:
                write_all(2 if channel == 2 else 1, data)
            if source in ready and source is not None:
                source = _feed(session, source)
            for number in inbox.take() if inbox.fileno() in ready else ():
                if number == signal.SIGWINCH:
                    session.resize(*window_size())
                    continue
                now = time.monotonic()
                if not session.started or now - last_interrupt < GIVE_UP_WITHIN:
                    raise KeyboardInterrupt
                last_interrupt = now
                session.send_signal(signal.SIGINT)
    return session.exit_code if session.exit_code is not None else 255


def _feed(session: ExecSession, source: int) -> int | None:
    try:
        data = os.read(source, 65536)
    except OSError:  # closed, or a terminal whose foreground we are not
        data = b""
    if data:
        session.write(data)
        return source
    session.close_stdin()
    return None


def hold_console(console: Console, name: str) -> None:
    """Join the terminal to a serial console until Ctrl-] or the machine's end. Raises UsageError."""
    require_terminal()
    rows, columns = window_size()
    say(
        f"Console of '{name}'. Ctrl-] leaves it; Enter wakes a login prompt. "
        f"(For full-screen programs, in the guest: stty rows {rows} columns {columns})"
    )
    left = False
    with RawTerminal():
        while not console.closed and not left:
            data, ready = console.exchange((0,))
            write_all(1, data)
            if ready:
                left = not _type(console)
    say(f"\n{'Left' if left else 'The machine has closed'} the console of '{name}'.")


def _type(console: Console) -> bool:
    """Pass on what was typed; False when that was Ctrl-], or the terminal is gone."""
    try:
        keys = os.read(0, 65536)
    except OSError:
        return False
    escape = keys.find(ESCAPE)
    console.write(keys if escape < 0 else keys[:escape])
    return escape < 0 and bool(keys)
