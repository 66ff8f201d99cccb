"""The NoCloud seed: a small ISO image from which cloud-init in the guest learns who it is.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from insula.kit.errors import Invalid
from insula.model.base import check_name
from insula.model.cloudinit import CloudInit
from insula.storage.errors import disk_full

VOLUME_ID = "CIDATA"
SEED_BYTES = 2**20

# https://cloudinit.readthedocs.io/en/latest/explanation/format.html
_USER_DATA_BEGINNINGS = (
    "#cloud-config",  # also -archive and -jsonp
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)
_SSH_KEY = re.compile(r"(?:ssh-|ecdsa-sha2-|sk-)[A-Za-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,3}(?: .*)?")


class BadCloudInit(Invalid):
    """Something that cloud-init in the guest would not understand."""

    code = "bad-cloud-init"


def check_cloud_init(cloud_init: CloudInit) -> None:
    """Raises BadCloudInit where the guest would only fail later, and silently."""
    if cloud_init.hostname is not None:
        try:
            for label in cloud_init.hostname.split("."):
                check_name(label)
        except ValueError:
            raise BadCloudInit(
                f"'{cloud_init.hostname}' is not a host name.", hint="Use a-z, 0-9, '-' and '.'."
            ) from None
    if cloud_init.user is not None and _USER.fullmatch(cloud_init.user) is None:
        raise BadCloudInit(
            f"'{cloud_init.user}' cannot be a user's name.",
            hint="Use a-z, 0-9, '_' and '-', at most 32 characters, beginning with a letter or '_'.",
        )
    for key in cloud_init.ssh_keys:
        if _SSH_KEY.fullmatch(key.strip()) is None:
            raise BadCloudInit(
                f"'{key.strip()[:40]}' is not a public SSH key.",
                hint="Give the content of a file such as ~/.ssh/id_ed25519.pub.",
            )
    _check_user_data(cloud_init.user_data)


def _check_user_data(text: str | None) -> None:
    if text is None or text.startswith(_USER_DATA_BEGINNINGS):
        return
    first = text.lstrip("\ufeff").splitlines()[0] if text.strip("\ufeff \n") else ""
    if text != text.lstrip() and text.lstrip().startswith(_USER_DATA_BEGINNINGS):
        raise BadCloudInit("The user-data begins with white space.", hint="Remove what is before '#'.")
    raise BadCloudInit(
        f"The user-data begins with '{first[:40]}', which cloud-init does not understand.",
        hint="Its first line says what it is: '#cloud-config' for YAML, '#!/bin/sh' for a script, "
        "'Content-Type: multipart/mixed; ...' for several parts.",
    )


def render_meta_data(cloud_init: CloudInit, *, hostname: str, instance_id: str) -> str:
    """meta-data: who the machine is. JSON, which is YAML. Here the keys reach user-data of one's own too."""
    data: dict[str, Any] = {"instance-id": instance_id, "local-hostname": cloud_init.hostname or hostname}
    if cloud_init.ssh_keys:
        data["public-keys"] = [key.strip() for key in cloud_init.ssh_keys]
    return json.dumps(data, indent=1) + "\n"


def render_user_data(cloud_init: CloudInit, *, default_user: str) -> str:
    """The user's own user-data, else one that makes a user who may use sudo and has the keys."""
    if cloud_init.user_data is not None:
        return cloud_init.user_data
    user = {
        "name": cloud_init.user or default_user,
        "groups": ["adm", "sudo"],
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "lock_passwd": True,
        "ssh_authorized_keys": [key.strip() for key in cloud_init.ssh_keys],
    }
    return "#cloud-config\n" + json.dumps({"users": [user]}, indent=1) + "\n"


def write_seed(
    path: Path, cloud_init: CloudInit, *, hostname: str, instance_id: str, default_user: str
) -> None:
    """Write the ISO. hostname: where cloud_init gives none. instance_id: cloud-init acts once for each.

    Raises BadCloudInit before anything is written, and DiskFull; nothing is left behind.
    """
    check_cloud_init(cloud_init)
    files = {
        "meta-data": render_meta_data(cloud_init, hostname=hostname, instance_id=instance_id),
        "user-data": render_user_data(cloud_init, default_user=default_user),
    }
    image = _render_iso(files)
    temporary = path.with_name(f".{path.name}.new")
    try:
        # Keys and passwords may be inside: nobody else's to read.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(image)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path, SEED_BYTES, f"the seed '{path.name}'") from error
        raise


def _render_iso(files: dict[str, str]) -> bytes:
    import pycdlib  # here, as it costs the daemon time and memory

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=VOLUME_ID)
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    rendered = io.BytesIO()
    iso.write_fp(rendered)
    iso.close()
    return rendered.getvalue()
