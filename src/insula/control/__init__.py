"""Control: the verbs, durable operations, repair. The only writer of machines' documents.

    submit:    check every precondition -> one commit {intent, generation + 1, operation} -> nudge the node
    conclude:  `performed` by the node -> one commit {documents, operation done} -> who waits returns
    repair:    looks at what is wanted and what is seen; may start, never removes

Control and the node meet only by documents and `port.NodePort`. Each verb is a file in `verbs/`. Control may
not know QEMU, files of machines, or HTTP.
"""
