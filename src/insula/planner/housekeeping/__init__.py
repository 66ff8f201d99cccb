"""Whom each part of a home belongs to, what that takes, and what is missing: judged from values alone.

    Sight (what was seen: entries, files) ─┬─ belonging: each entry's state and owner ─┬─ usage: the sums
    Ledger (what is remembered) ───────────┘                                           └─ wholeness: what is
                                                                                          wrong, what mends it

The order of looking is the reader's duty, and all that is said here rests on it: directories first, then the
ledger, then whether what seems to be nobody's is still there. What is made has its operation in the ledger
before its directory; what is removed loses its directory before its document. So an entry that was seen, is
named by nothing in the later ledger and is still there is nobody's.
"""
