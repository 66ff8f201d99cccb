"""From a machine's document to the command line of its monitor: a pure function, told in golden files.

Every argument comes from a fragment (an immutable tuple): the base of the machine, its processor, its boot,
and one fragment a device from `device/<kind>.py`. Fragments are joined once, in `render`.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from insula.engine.device import Surroundings, escape, option, render_device
from insula.engine.device.disk import flat, launch_controllers, line, node_of
from insula.engine.errors import AcceleratorUnavailable, UnsupportedDevice
from insula.engine.protocol import OWN_MEMORY, BootFiles, EngineFacts, LaunchPlan, Memory, Saved
from insula.kit.paths import QMP_SOCKET
from insula.model.device.agent import AgentPort
from insula.model.device.base import DeviceBase
from insula.model.device.cdrom import Cdrom
from insula.model.device.disk import Disk
from insula.model.device.serial import Serial
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact

_UUIDS = uuid.UUID(
    "6f1a3f0e-5b0c-5d0e-9c56-1a9e7a3b1c11"
)  # the namespace of our machines' UUIDs (RFC 4122, v5)

# What the machine types bring along though nobody asked for it; each is left out where this QEMU can.
# i8042 only on q35: a pc has no other reset line (its FADT names none), and Linux then takes 3.3 s to reboot
# instead of 0.04 s (measured, QEMU 7.2, Debian's kernel 6.1).
_UNASKED = {
    "pc": ("usb", "vmport", "hpet", "smm"),
    "q35": ("usb", "vmport", "hpet", "smm", "sata", "smbus", "i8042"),
}
SWITCHES = frozenset(
    {"graphics"}.union(*_UNASKED.values())
)  # what is asked of each machine type's properties

STATE_FILES = "migrate.file"  # the feature of a monitor that takes a state's file by its path

# x86-64-v2 and RDRAND (with random.trust_cpu=on a guest never waits for entropy), only features that TCG
# itself emulates (each was tried with `enforce`). Boots as fast as qemu64: 3.1 s of CPU either way.
_TCG_CPU = "Nehalem,rdrand=on,rdtscp=on,aes=on,pclmulqdq=on,smep=on,smap=on,arat=on"
_KVM_CPU = "host"

# Where the supervisor opens the memory that a machine shares with others, for its monitor to inherit.
MEMORY_DESCRIPTOR = 8
MEMORY = "ram"  # what a machine's memory is called, also in its state

# QEMU takes its first client before it starts anything else (wait=on). Otherwise a client that comes while
# it starts is accepted by either of two threads, its main loop and the monitor's own, and at times by both:
# one of them then stands in accept(2) for good and answers nobody (QEMU 7.2: one of some 500 starts without a
# machine, four at a time on two processors).
MONITOR = (
    *("-chardev", option("socket", id="qmp", path=QMP_SOCKET, server="on", wait="on")),
    *("-mon", "chardev=qmp,mode=control"),
)

_CODE = "firmware"  # the node of a UEFI's code

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def choose_accelerator(machine: Machine, facts: EngineFacts) -> AcceleratorFact:
    """What this machine runs with here, and why. Raises AcceleratorUnavailable."""
    if machine.accelerator == "auto":
        return facts.auto
    if machine.accelerator == "kvm" and facts.kvm_refused:
        raise AcceleratorUnavailable(
            f"Machine '{machine.name}' asks for KVM, which does not work on this host: {facts.kvm_refused}.",
            hint=facts.kvm_mend or "Leave the accelerator on 'auto' to run without it, more slowly.",
        )
    return AcceleratorFact(name=machine.accelerator, reason="asked for")


def render(
    machine: Machine,
    files: BootFiles,
    directory: Path,
    facts: EngineFacts,
    accelerator: AcceleratorFact,
    memory: Memory = OWN_MEMORY,
) -> LaunchPlan:
    """The launch plan. The same values give the same plan. Raises UnsupportedDevice."""
    surroundings = Surroundings(
        machine.machine_type,
        facts.features,
        vessel=memory.vessel,
        forked=memory.forked,
        boots_from_cdrom=machine.boot == "cdrom",
        variables_bytes=files.uefi.variables.size_bytes if files.uefi is not None else 0,
    )
    agent = _only_one(machine, AgentPort)
    _only_one(machine, Cdrom)
    serial = _only_one(machine, Serial)
    fragments = [
        (str(facts.binary),),
        _base(machine, files, facts, memory),
        _processor(machine, accelerator),
        _memory(machine, memory),
        _boot(files),
        _code(files),
        MONITOR,
        launch_controllers(machine.devices),
        *(render_device(device, surroundings) for device in machine.devices),
    ]
    return LaunchPlan(
        uid=machine.uid,
        name=machine.name,
        directory=directory,
        argv=tuple(argument for fragment in fragments for argument in fragment),
        accelerator=accelerator,
        engine_version=facts.version,
        agent=agent.protocol if agent is not None else None,
        has_console=serial is not None,
        memory_bytes=machine.memory_bytes,
        memory=memory,
        shape=_shape(machine, files, facts, accelerator, memory),
        state_files=STATE_FILES in facts.features,
    )


def _only_one(machine: Machine, kind: type[Any]) -> Any:
    found: list[DeviceBase] = [device for device in machine.devices if isinstance(device, kind)]
    if len(found) > 1:
        raise UnsupportedDevice(
            f"Machine '{machine.name}' has {len(found)} devices of kind '{found[0].device}'; one may be.",
            hint="Keep one of them.",
        )
    return found[0] if found else None


def _shape(
    machine: Machine, files: BootFiles, facts: EngineFacts, accelerator: AcceleratorFact, memory: Memory
) -> dict[str, str]:
    """A monitor loads a state with another processor without a word, and its guest fails later."""
    sizes = (files.uefi.code.size_bytes, files.uefi.variables.size_bytes) if files.uefi is not None else ()
    firmware = {"firmware": f"UEFI of {' and '.join(map(str, sizes))} bytes"} if sizes else {}
    return {
        "machine type": _machine_type(machine, facts, memory),
        "accelerator": accelerator.name,
        "processor": _processor_model(machine, accelerator),
        "number of processors": str(machine.cpus),
        "memory": _size(machine.memory_bytes),
        **firmware,
    }


def _machine_type(machine: Machine, facts: EngineFacts, memory: Memory) -> str:
    """A saved machine keeps the version of its type, whatever is the newest by now."""
    if memory.saved is not None:
        return memory.saved.machine_type
    return facts.machine_types[machine.machine_type]


def _base(machine: Machine, files: BootFiles, facts: EngineFacts, memory: Memory) -> tuple[str, ...]:
    """-nodefaults leaves out floppy, VGA, parallel port and monitor; -S lets nothing run before `resume`."""
    kind = machine.machine_type
    switches: dict[str, object] = {"dump-guest-core": "off"}
    switches |= {name: "off" for name in _UNASKED[kind] if f"{kind}.{name}" in facts.features}
    if files.kernel is None and f"{kind}.graphics" in facts.features:
        switches["graphics"] = (
            "off"  # the firmware then speaks on the serial port: `logs` show why a disk won't boot
        )
    switches["memory-backend"] = MEMORY
    switches |= _flash(machine, files)
    typed = _machine_type(machine, facts, memory)
    sandbox = ("-sandbox", _SANDBOX) if "sandbox" in facts.features else ()
    return (
        "-nodefaults",
        "-no-user-config",
        "-S",
        *("-display", "none"),
        *sandbox,
        *("-name", option(f"guest={escape(machine.name)}", "debug-threads=on")),
        *("-uuid", str(uuid.uuid5(_UUIDS, machine.uid))),
        *("-machine", ",".join([typed, *(f"{k}={v}" for k, v in switches.items())])),
    )


def _processor(machine: Machine, accelerator: AcceleratorFact) -> tuple[str, ...]:
    return (
        *("-accel", accelerator.name),
        *("-cpu", _processor_model(machine, accelerator)),
        *("-smp", str(machine.cpus)),
        *("-m", _size(machine.memory_bytes)),
    )


def _processor_model(machine: Machine, accelerator: AcceleratorFact) -> str:
    return machine.cpu_model or (_KVM_CPU if accelerator.name == "kvm" else _TCG_CPU)


def _size(memory_bytes: int) -> str:
    whole, rest = divmod(memory_bytes, 2**20)
    return f"{whole}M" if not rest else f"{memory_bytes}B"


def _memory(machine: Machine, memory: Memory) -> tuple[str, ...]:
    """A file that all map: the template shared, so that its writes are in it; forks privately, copied on
    write.

    The file has no name; the monitor inherits it. A fork waits for the state of its devices (`launch` gives
    it). It keeps kernel and initrd although it does not boot: it will when its guest is reset.
    """
    waits = ("-incoming", "defer") if memory.vessel or memory.template or memory.saved else ()
    if not (memory.shareable or memory.vessel or memory.template):
        # By the same name, so that one which was booted can be captured, too.
        return ("-object", option("memory-backend-ram", id=MEMORY, size=_size(machine.memory_bytes)), *waits)
    backend = option(
        "memory-backend-file",
        id=MEMORY,
        size=_size(machine.memory_bytes),
        mem_path=f"/proc/self/fd/{MEMORY_DESCRIPTOR}",
        share="on" if memory.shareable else "off",
    )
    return ("-object", backend, *waits)


def _boot(files: BootFiles) -> tuple[str, ...]:
    if files.kernel is None:
        return ()
    initrd = ("-initrd", str(files.initrd)) if files.initrd is not None else ()
    arguments = ("-append", files.arguments) if files.arguments else ()
    return ("-kernel", str(files.kernel), *initrd, *arguments)


def _code(files: BootFiles) -> tuple[str, ...]:
    """The code of its UEFI; a monitor without one takes the BIOS that it knows by itself."""
    if files.uefi is None:
        return ()
    file = {"driver": "file", "filename": files.uefi.code.path}
    code = {"driver": "raw", "node-name": _CODE, "read-only": True, "file": file}
    return ("-blockdev", line(flat(code)))


def _flash(machine: Machine, files: BootFiles) -> dict[str, object]:
    """What is in the board's flash memory: the code at its end, the variables below. Raises
    UnsupportedDevice."""
    variables = [disk for disk in machine.devices if isinstance(disk, Disk) and disk.bus == "flash"]
    if files.uefi is None and not variables:
        return {}
    if files.uefi is None or len(variables) != 1:
        raise UnsupportedDevice(
            f"Machine '{machine.name}' has {len(variables)} disks in flash memory; a machine that boots by "
            "UEFI has one, any other none."
        )
    return {"pflash0": _CODE, "pflash1": node_of(variables[0].id)}


def launched_ids(plan: LaunchPlan) -> frozenset[str]:
    """The ids of the devices that a launch makes."""
    pairs = zip(plan.argv, plan.argv[1:], strict=False)
    lines = [line for option_name, line in pairs if option_name == "-device"]
    return frozenset(word[3:] for line in lines for word in line.split(",") if word.startswith("id="))


def plan_to_json(plan: LaunchPlan) -> str:
    """The plan as it is kept in the machine's directory (which it does not name, so that it can be moved)."""
    fields = dict(vars(plan))
    fields["accelerator"] = plan.accelerator.model_dump()
    fields["memory"] = _memory_to_json(plan.memory)
    fields["shape"] = dict(plan.shape)
    del fields["directory"]
    return json.dumps({"version": 1, **fields}, indent=1) + "\n"


def plan_from_json(text: str, directory: Path) -> LaunchPlan:
    """The plan that `plan_to_json` wrote. Raises ValueError if it cannot be read."""
    try:
        fields = json.loads(text)
        if fields.pop("version") != 1:
            raise ValueError("a plan of another version")
        fields["accelerator"] = AcceleratorFact(**fields["accelerator"])
        fields["argv"] = tuple(fields["argv"])
        fields["memory"] = _memory_from_json(fields.pop("memory", {}))
        return LaunchPlan(directory=directory, **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a launch plan") from error


def _memory_to_json(memory: Memory) -> dict[str, Any]:
    return {
        "shareable": memory.shareable,
        "vessel": memory.vessel,
        "template": str(memory.template) if memory.template is not None else None,
        "saved": None if memory.saved is None else {**vars(memory.saved), "path": str(memory.saved.path)},
    }


def _memory_from_json(fields: dict[str, Any]) -> Memory:
    template, saved = fields.get("template"), fields.get("saved")
    return Memory(
        shareable=bool(fields.get("shareable")),
        vessel=bool(fields.get("vessel")),
        template=Path(template) if template is not None else None,
        saved=None if saved is None else Saved(**{**saved, "path": Path(saved["path"])}),
    )
