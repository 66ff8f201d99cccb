"""For every test: a process in which Ctrl-C and a closed terminal can be tested."""

from __future__ import annotations

import signal

# A shell without job control starts background jobs with SIGINT ignored, nohup ignores SIGHUP, and so may CI
# have started us; every `insula` that a test starts would inherit that, and a test that sends it one would
# wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
