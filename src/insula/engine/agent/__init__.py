"""Talking to the agent inside a guest: commands with their input and output, facts, an orderly end.

Two agents, one protocol for callers (`protocol.Agent`, `protocol.ExecSession`):

    insula.connect   Insula's own agent (src/insula/storage/agent/insula-agent.c): streams, terminals, many
                     commands at once over one port; the wire format is docs/reference/guest-agent.md
    qga.connect      the QEMU guest agent, which every distribution and Windows have: one request at a time,
                     output fetched by polling, no terminals

The life of a session, on either agent:

    exec() ──> running ──EXIT──> ended          output() ends, wait() returns
                  ├─────close()──> closed       the command is hung up and forgotten
                  └──connection──> lost         output() and wait() raise AgentLost

Nothing here knows machines, documents or QMP: it is given the path of a socket.
"""
