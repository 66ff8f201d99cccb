"""insula fork NAME: siblings of a machine as it is now, memory and disks."""

from __future__ import annotations

from insula.cli.operate import ProgressLine, give_up, perform, tell_notes
from insula.cli.output import print_json, say
from insula.cli.parser import Parser, whole_number
from insula.client.fork import births
from insula.client.sdk import connect
from insula.kit.errors import InsulaError
from insula.kit.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.cli.parser import Options
    from insula.client.operation import Operation
    from insula.client.types import OperationInfo


def parser() -> Parser:
    p = Parser(
        "fork",
        "Make siblings of a machine as it is now, memory and disks, each with an identity of its own;\n"
        "it goes on after a blink. One that is stopped is forked by its disks. Prints their names.",
        examples="insula fork web\ninsula fork web --count 8 --name 'worker-{n}'",
    )
    p.option("--count", "-n", metavar="N", convert=whole_number, default=1, help="how many (default: 1)")
    p.option(
        "--name", metavar="NAME", help="its name, or with {n} for its number (default: the machine's-{n})"
    )
    p.flag("--paused", help="pause each once it is itself")
    p.argument("machine", "NAME", "name of the machine to fork")
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    client = connect()
    body = {"count": options.count, "paused": options.paused}
    if options.name is not None:
        body["names"] = options.name
    machine = client.machine(options.machine, options.project)
    info = perform(lambda: machine.submit("fork", body), quiet=options.quiet)
    made, status = _wait_births(options, births(client.transport, info))
    if options.json:
        print_json([client.machine(birth["name"], options.project).info for birth in made])
        return status
    for birth in made:
        print(birth["name"], flush=True)
    if not options.quiet:
        _report(options.machine, info, made)
    return status


def _wait_births(options: Options, operations: list[Operation]) -> tuple[list[OperationInfo], int]:
    """The siblings that were made, and the exit status: that of the first that was not."""
    from insula.cli.report import tell

    made: list[OperationInfo] = []
    status = 0
    try:
        for operation in operations:
            try:
                with ProgressLine(options.quiet) as line:
                    made.append(operation.wait(line.show))
            except InsulaError as error:
                status = status or tell(error, as_json=options.json, verbose=options.verbose)
                continue
            tell_notes(operation.info, options.quiet)
    except KeyboardInterrupt:
        give_up([operation for operation in operations if not operation.ended])
        raise
    return made, status


def _report(name: str, info: OperationInfo, made: list[OperationInfo]) -> None:
    """How long the machine stood, and what every sibling has renewed."""
    stood = float((info["outcome"] or {}).get("stood_seconds", 0.0))
    if stood:
        say(f"'{name}' stood for {format_duration(stood)}.")
    renewed = [set((birth["outcome"] or {}).get("renewed", {}).get("renewed", ())) for birth in made]
    everybody = set.intersection(*renewed) if renewed else set()
    if everybody:
        whom = "The sibling has" if len(made) == 1 else "Every sibling has"
        say(f"{whom} its own: {', '.join(sorted(everybody))}.")
