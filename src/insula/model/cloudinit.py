"""What a machine tells cloud-init at first boot (NoCloud: meta-data, user-data, network-config)."""

from __future__ import annotations

from insula.model.base import Value


class CloudInit(Value):
    """user: login name to create (None: the image's default user). ssh_keys: public keys it accepts.

    user_data: a complete user-data file of the user's own, which replaces what Insula would write but for the
    host name. hostname: None means the machine's name.
    """

    hostname: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None
