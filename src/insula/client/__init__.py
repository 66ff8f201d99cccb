"""The Python SDK: Insula's daemon spoken to over its unix socket, synchronously, with the standard library
only.

    sdk (run, connect, Client)  ─┬─ machine (Machine, ExecResult) ── session (exec, console)
                                 ├─ operation (waiting, progress, cancel)
                                 └─ events
    transport   a request and its answer or error; starts the daemon when nobody answers ── daemon
    wire        HTTP/1.1: request, head, Content-Length and chunked bodies
    websocket   RFC 6455: frames, and a duplex channel that never blocks while sending
    locate      where a home's socket is

The room knows the REST contract and `kit`, nothing else of Insula: it never imports `model`, so that a
command pays for no validation of what the daemon has validated already. What the daemon answers stays plain
dictionaries, typed by `types`.

`wire`, `transport` and `locate` are on the way of every command line. There `_socket` stands for `socket`
(8 ms less), and nothing imports typing, dataclasses, pathlib or asyncio at run time; `insula ls` would take
twice its time. tests/unit/cli/test_cli_import_diet.py holds that.
"""
