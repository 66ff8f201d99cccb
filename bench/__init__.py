"""How fast and how big Insula is, as ratios to its peers measured in the same run: `./scripts/bench`.

The peer of a machine is the very same monitor command line started by hand (`bare`), that of `insula ls` is
the interpreter doing nothing, that of clones and snapshots is libvirt, where it is installed. Both are
measured in turn, A B B A, because a host's speed changes under one's feet. Nothing here is a test: a slow
host makes slow figures, not failures. What there is stands in CONTRIBUTING.md.
"""
