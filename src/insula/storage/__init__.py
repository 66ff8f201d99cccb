"""Images, volumes and seeds: what machines are made from and what they keep.

    recipe --build--> image in the making --publish--> blob, named --rebuilt--> blob, if claimed --> gone
                           └── killed: swept

* `recipe` says what goes into an image, `builder` makes it (`initramfs`, `disk_image` with `bootloader`) from
  a distribution's packages (`packages`), `images` keeps it.
* `volumes` makes the copy-on-write disks of machines, `seed` what cloud-init reads at first boot.

Programs run through `kit.run` only. Nothing here knows machines, the ledger or QEMU's command line; qcow2 is
known here and in `engine`.
"""
