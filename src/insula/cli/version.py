"""insula version: of the client, of the daemon if it runs, of the engine."""

from __future__ import annotations

import insula
from insula.cli.output import print_json
from insula.cli.parser import Parser
from insula.client.errors import DaemonUnreachable
from insula.client.transport import Transport
from insula.kit.errors import InsulaError


def parser() -> Parser:
    return Parser("version", "Print the versions of this program, the daemon (if it runs) and QEMU.")


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    versions: dict[str, str | None] = {"client": insula.__version__, "daemon": None, "engine": None}
    transport = Transport(start=False)
    try:
        versions["daemon"] = transport.call("GET", "/v1/version")["version"]
        versions["engine"] = transport.call("GET", "/v1/host")["engine_version"]
    except DaemonUnreachable:
        pass
    except InsulaError as error:
        if error.code != "daemon-version":  # that is just what is to be seen here
            raise
    if options.json:
        print_json(versions)
    else:
        print(f"insula {versions['client']}")
        print(f"daemon {versions['daemon'] or 'does not run (any command that needs it starts it)'}")
        if versions["engine"]:
            print(f"QEMU   {versions['engine']}")
    return 0
