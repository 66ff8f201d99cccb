"""A peer: libvirt, with a session daemon and a directory of its own, gone without a trace at the end.

The guest is the same kernel and initramfs as Insula's, without KVM where Insula has none, on a small disk;
Insula's agent in it says when it answers, so what is asked of both is the same. As root the daemon is run by
somebody who owns nothing: a system daemon would write to the host's own directories.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from bench.bare import Agent, connect
from bench.bed import DISK_SIZE, IMAGE, Bed
from bench.figure import Skipped
from insula.model.device.agent import AGENT_PORTS

_PROGRAMS = ("libvirtd", "virsh", "virt-clone")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
# Short, for a socket's path may have 107 characters.
_PLACES = {
    **{"HOME": "home", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "c"},
    **{"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data"},
}
_NOBODY = 65534
_DOMAIN = """
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{files}/vmlinuz</kernel>
    <initrd>{files}/initrd</initrd>
    <cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='{cpu}'>{model}</cpu>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{files}/{name}.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{files}/{name}.log'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='{port}'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Libvirt:
    """libvirt's command line, and the domains of one daemon. files: where all of it is."""

    def __init__(self, bed: Bed, files: Path) -> None:
        self.files = files
        self._bed = bed
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("LIBVIRT")},
            **{variable: str(files / place) for variable, place in _PLACES.items()},
            **{"LIBVIRT_DEFAULT_URI": "qemu:///session", "LIBVIRT_AUTOSTART": "0"},
        }
        for place in _PLACES.values():
            (files / place).mkdir()
        settings = files / _PLACES["XDG_CONFIG_HOME"] / "libvirt"
        settings.mkdir()
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n')  # spares a second daemon
        self._own(files, *files.rglob("*"))

    def run(self, *command: str) -> str:
        """Run a command line to its end, as whoever the daemon is; its stdout."""
        done = subprocess.run(
            [*self._becoming(), *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return done.stdout

    def serve(self) -> subprocess.Popen[bytes]:
        """Start the daemon; it answers."""
        with (self.files / "libvirtd.log").open("wb") as log:
            daemon = subprocess.Popen(
                [*self._becoming(), shutil.which("libvirtd", path=_PATH) or ""],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        connect(str(self.files / _PLACES["XDG_RUNTIME_DIR"] / "libvirt" / "libvirt-sock"), daemon).close()
        self.run("virsh", "version")  # it looks at QEMU now, for seconds
        return daemon

    def define(self, name: str) -> None:
        """A domain that does not run, with what Insula's machines of the image have, and a disk."""
        image = self._bed.client.image(IMAGE)
        kernel = image["kernel"] or {}
        for part, target in (("file", "vmlinuz"), ("initrd", "initrd")):
            shutil.copyfile(self._bed.images / IMAGE / kernel[part], self.files / target)
        disk = self.files / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(DISK_SIZE)], check=True)
        kvm = self._bed.client.host()["accelerator"]["name"] == "kvm"
        document = self.files / f"{name}.xml"
        document.write_text(
            _DOMAIN.format(
                name=name,
                type="kvm" if kvm else "qemu",
                memory=image["defaults"]["memory_bytes"],
                files=escape(str(self.files)),
                arguments=escape(kernel["arguments"].format(hostname=name)),
                cpu="host-passthrough" if kvm else "custom",
                model="" if kvm else "<model>Nehalem</model>",
                emulator=escape(self._bed.argv[0]),
                port=AGENT_PORTS["insula"],
            )
        )
        self._own(self.files / "vmlinuz", self.files / "initrd", disk, document)
        self.run("virsh", "define", str(document))

    def start(self, name: str) -> Agent:
        """Start the domain, to where its agent has answered."""
        self.run("virsh", "start", name)
        return self.wait_agent(name)

    def wait_agent(self, name: str) -> Agent:
        """To where the agent of a running domain has answered and run a command."""
        channels = self.files / _PLACES["XDG_CONFIG_HOME"] / "libvirt" / "qemu" / "channel" / "target"
        (path,) = channels.glob(f"domain-*-{name}/{AGENT_PORTS['insula']}")
        agent = Agent(connect(str(path)))
        agent.greet()
        if agent.ask(["true"]) != 0:
            raise RuntimeError(f"the guest of domain '{name}' cannot run a command")
        return agent

    def remove(self, name: str) -> None:
        """Pull the plug if it runs, and forget the domain with its disk and snapshots."""
        if self.run("virsh", "domstate", name).strip() != "shut off":
            self.run("virsh", "destroy", name)
        self.run("virsh", "undefine", name, "--snapshots-metadata", "--remove-all-storage")

    def close(self) -> None:
        for name in self.run("virsh", "list", "--all", "--name").split():
            self.remove(name)

    def _becoming(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"]

    def _own(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                os.chown(path, _NOBODY, _NOBODY)


@contextmanager
def libvirt(bed: Bed) -> Iterator[Libvirt]:
    """Meanwhile there is a libvirt. Raises Skipped where it is not installed."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        packages = "libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients virtinst"
        raise Skipped(f"the peer is libvirt, and there is no {missing[0]} here (Debian's {packages})")
    files = Path(tempfile.mkdtemp(prefix="insula-lv."))
    try:
        peer = Libvirt(bed, files)
        daemon = peer.serve()
        try:
            yield peer
        finally:
            try:
                peer.close()
            finally:
                daemon.terminate()
                daemon.wait()
    finally:
        shutil.rmtree(files, ignore_errors=True)
