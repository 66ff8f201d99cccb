"""insula exec NAME -- CMD: a command in a machine, with our stdin, stdout, stderr and exit status."""

from __future__ import annotations

from insula.cli.attach import run_attached
from insula.cli.interrupts import arm
from insula.cli.parser import Parser, UsageError, duration, split_command
from insula.client.sdk import connect


def parser() -> Parser:
    p = Parser(
        "exec",
        "Run a command in a machine and exit with its status (128+N: it was ended by signal N).\n"
        "Standard input is passed on when it is no terminal, or with -i or -t. Ctrl-C goes to the\n"
        "command; twice within 2s leaves it.",
        json=False,
        guest_command=True,
        examples="insula exec web -- uname -a\n"
        "insula exec -t web -- sh\n"
        'insula exec web -- sh -c "cat >/tmp/f" <f',
    )
    add_guest_options(p)
    p.option("-u", "--user", metavar="NAME", help="as this user of the guest (default: root)")
    p.option(
        "--agent-timeout",
        metavar="TIME",
        convert=duration,
        help="how long the guest's agent may take to answer (default: 30s; 5m after a start)",
    )
    p.add_name()
    p.add_project()
    return p


def add_guest_options(p: Parser) -> None:
    """What `exec` and `run` both take for a command in the guest."""
    p.flag("-t", "--tty", help="give the command a terminal (implies -i)")
    p.flag("-i", "--interactive", help="pass on stdin though it is a terminal")
    p.option("-e", "--env", metavar="K=V", repeat=True, help="set a variable for it (K alone: as it is here)")
    p.option("-w", "--workdir", metavar="DIR", help="the directory it starts in")


def run(_command: str, argv: list[str]) -> int:
    own, command = split_command(argv)
    options = parser().parse(own)
    if not command:
        raise UsageError(
            "Say which command to run in the machine.", hint=f"insula exec {options.name} -- uname -a"
        )
    arm()
    machine = connect().machine(options.name, options.project)
    return run_attached(machine, command, options, user=options.user, agent_timeout=options.agent_timeout)
