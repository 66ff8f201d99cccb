"""The cloud-init seed, read back from the ISO."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import pytest

from insula.model.cloudinit import CloudInit
from insula.storage.seed import BadCloudInit, check_cloud_init, render_user_data, write_seed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3v5oVqPq6Yt0Hcd4dYV0dJ0z7v me@laptop"


def read(path: Path) -> tuple[str, dict[str, str]]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    files = {}
    for child in iso.list_children(rr_path="/"):
        if not child.is_dir():
            data = io.BytesIO()
            name = child.rock_ridge.name().decode()
            iso.get_file_from_iso_fp(data, rr_path=f"/{name}")
            files[name] = data.getvalue().decode()
    volume = iso.pvd.volume_identifier.decode().strip()
    iso.close()
    return volume, files


def write(path: Path, cloud_init: CloudInit) -> tuple[str, dict[str, str]]:
    write_seed(path, cloud_init, hostname="web", instance_id="i-1", default_user="debian")
    return read(path)


def test_a_seed_names_the_machine_and_its_user(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    volume, files = write(path, CloudInit(ssh_keys=(KEY + "\n",)))
    assert volume == "CIDATA"
    assert sorted(files) == ["meta-data", "user-data"]
    assert json.loads(files["meta-data"]) == {
        "instance-id": "i-1",
        "local-hostname": "web",
        "public-keys": [KEY],
    }
    first, _, rest = files["user-data"].partition("\n")
    assert first == "#cloud-config"
    user = json.loads(rest)["users"][0]
    assert (user["name"], user["ssh_authorized_keys"]) == ("debian", [KEY])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["seed.iso"]


def test_a_user_s_own_user_data_replaces_ours_but_not_the_host_name(tmp_path: Path) -> None:
    own = "#!/bin/sh\necho grüße\n"
    _, files = write(tmp_path / "seed.iso", CloudInit(user_data=own, hostname="db.example"))
    assert files["user-data"] == own
    assert json.loads(files["meta-data"])["local-hostname"] == "db.example"


def test_a_named_user_is_made_instead_of_the_image_s() -> None:
    text = render_user_data(CloudInit(user="ada"), default_user="debian")
    assert json.loads(text.partition("\n")[2])["users"][0]["name"] == "ada"


@pytest.mark.parametrize(
    "text",
    ["#cloud-config\n{}", "#!/bin/sh", "Content-Type: multipart/mixed; boundary=x\n", "## template: jinja\n"],
)
def test_what_cloud_init_understands_is_accepted(text: str) -> None:
    check_cloud_init(CloudInit(user_data=text))


@pytest.mark.parametrize(
    ("cloud_init", "message"),
    [
        (CloudInit(user_data="packages: [vim]"), "The user-data begins with 'packages: [vim]', which"),
        (CloudInit(user_data=""), "The user-data begins with ''"),
        (CloudInit(user_data="\n#cloud-config\n"), "The user-data begins with white space."),
        (CloudInit(ssh_keys=("-----BEGIN OPENSSH PRIVATE KEY-----",)), "is not a public SSH key."),
        (CloudInit(hostname="under_score"), "'under_score' is not a host name."),
        (CloudInit(user="Ada Lovelace"), "'Ada Lovelace' cannot be a user's name."),
    ],
)
def test_what_it_would_not_understand_is_refused_and_nothing_is_written(
    tmp_path: Path, cloud_init: CloudInit, message: str
) -> None:
    with pytest.raises(BadCloudInit) as caught:
        write(tmp_path / "seed.iso", cloud_init)
    assert message in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []
