"""Documents with revisions, compare-and-set and watch; on one host a SQLite file, the ledger.

Reads come from memory and never wait. A commit is atomic over all its changes, durable before it returns, and
visible to readers and watchers only then. Each document carries the revision of the commit that wrote it.

    RevisionConflict (conflict)     somebody else was faster: read again
    NameTaken        (conflict)     (kind, project, name) exists where names are unique
    LedgerCorrupt    (unavailable)  refused and kept; `insula daemon start --recover-ledger` makes a new one
    LedgerTooNew     (unavailable)  written by a later Insula
    LedgerFull       (unavailable)  no room on the disk; nothing was changed

This room knows documents only as `model.base.Document`: no machine, no operation.
"""
