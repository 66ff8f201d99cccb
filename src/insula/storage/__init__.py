"""Images, volumes and seeds: what machines are made from and what they keep.

    recipe --build--> image in the making --publish--> blob, named --rebuilt--> blob, if claimed --> gone
                           └── killed: swept
    catalogue --pull--> file, verified ─┐
    somebody's file ────────────────────┴─ header read ── converted, confined ── published likewise
                                                └── refused, with the reason

* `recipe` says what goes into an image, `builder` makes it (`initramfs`, `disk_image` with `bootloader`) from
  a distribution's packages (`packages`), `images` keeps it.
* `formats` says what a disk image is and refuses what it names, `source` holds its file open, `conversion`
runs the
  tool in `confinement` and `content` digests what comes out; `importing` and `exporting` put that together.
* `catalogue` says what can be pulled, `checksums` who vouches for it, `download` and `unpacking` fetch it,
`pulling` puts
  that together.
* `volumes` makes the copy-on-write disks of machines, `seed` what cloud-init reads at first boot.

Programs run through `kit.run` only. Nothing here knows machines, the ledger or QEMU's command line; qcow2 is
known here and in `engine`.
"""
