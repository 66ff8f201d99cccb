"""Looking after a home: what is there, what is wrong, and removing what nobody needs.

    reading   directories, then the ledger, then whether it is still so
    keeper    what control and the server ask at once (`control.housekeeping.Housekeeping`)
    disks     `qemu-img check` of disks that nobody has open
    pruning   each thing judged once more in the moment before it goes

Whom things belong to is judged by `planner.housekeeping`. Nothing here follows a link out of the home, and
nothing is removed that the ledger, a lock or the memory of this daemon says is needed or in the making.
"""
