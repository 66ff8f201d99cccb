"""REST, events and websockets: how everybody but the node's own tasks speaks to `control`.

    socket --peer: uid?--> uvicorn --gate: version, size--> route --> Control / NodePort
       closed at once          │                               │
                               │                               ├── answer: JSON of views
                               └── problems: every exception   ├── live: streams until done, gone or closing
                                   becomes problem+json        └── bridges: console and exec websockets

`create_app` (module app) makes the application, `UnixServer` (module peer) serves it on a socket that is
already bound. One module per resource: daemon, host, events, operations, images, machines, verbs, console,
exec. This is the only room with a web framework, and nothing is imported here, so that the daemon can bind
its socket first and pay for the framework afterwards. It knows documents and verbs; it may not know the
store, the engine's workings or the terminal.

Errors of its own:

    Conflict ── DaemonVersion
    Unavailable ── WaitTimeout, DaemonStopping
    Invalid ── NoSuchRoute, MethodNotAllowed, BodyTooLarge
"""
