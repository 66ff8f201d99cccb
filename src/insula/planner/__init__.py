"""Pure decisions: whether a verb fits a machine's phase, whether a host can take a machine, what repair does.

No I/O, no clock of its own, no randomness: the same values give the same answer, so every rule is a table in
the tests. `lifecycle` judges verbs (control asks it before it records an operation, the machine's actor asks
it again when it picks the operation up), `admission` compares a machine with its host, `repair` looks at what
is wanted and what is.
"""
