"""For every test: a process in which Ctrl-C can be tested."""

from __future__ import annotations

import signal

# A shell without job control starts background jobs with SIGINT ignored, and so may CI have started us; every
# `insula` that a test starts would inherit that, and a test that sends it Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
