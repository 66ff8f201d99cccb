"""The node: one actor per machine, adoption, the work behind each verb. It composes the host's rooms.

    operation queued --nudge--> mailbox of the machine's actor --judge--> procedure: steps with undo
    engine event (pause, reset, exit, agent) ---------^             |
                                                      observation + operation `performed`, in the ledger

The node writes observations and the progress of operations, and nothing else; it never changes a document.
What must be done for a verb is a list of steps in `procedures/VERB.py`. When the daemon dies in the middle,
the next one finds the operation in the ledger, the process by its run directory, and goes on.

It may not know HTTP, the terminal, or what a user may ask (control has checked that).
"""
