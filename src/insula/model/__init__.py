"""What is remembered and said: documents, operations, observations. Frozen data, no I/O.

    as written (MachineSpec)  --resolve-->  document (Machine)  --change-->  next generation
                                            one writer: control

    operation:   queued -> running -> performed -> done | failed | cancelled
    observation: one writer: the node

One kind a module, one device kind a module under `device/`. Unknown fields are errors. Nothing here may know
QEMU, SQLite, HTTP or the terminal.
"""
