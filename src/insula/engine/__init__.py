"""Machines on QEMU: plan, launch, adopt, talk, explain how they ended.

        plan (pure)            launch                    resume
    Machine ---> LaunchPlan ---------> prepared ---------------------> running <--pause/resume--> paused
                                          |                              |                          |
                                          +------------- exited, with evidence ---------------------+
    daemon gone ... adopt(directory) ---> the same machine again, whatever state it is in

One QEMU process a machine, in a session of its own with a supervisor that is a ten-line shell script. What
the process is known by (pid, start time, boot id), how it is spoken to and how it ended lies in the
machine's directory (docs/reference/run-directory.md), so whoever comes later finds everything there and
needs no memory.

    plan.py, device/   document -> argv, as a pure function; one module a device kind
    process.py         the supervisor, identity by pidfd, exit seen at once
    qmp.py             the monitor's protocol        agent/      the guest agents
    instance.py        a live machine                console.py  serial console and log
    accelerator.py     does KVM run here?            probe.py    what this QEMU has
    qemu.py            QemuEngine                    fake.py     the engine for tests without QEMU

The engine may know the kit and the model. It is given plain values and never sees the store, images or
networks.
"""
