"""The command line: a file per command, imported only when its command was typed.

    main      finds the command, tells errors, ends with its status      report    how an error is told
    parser    argparse in our words                                       output    tables, colours, JSON
    operate   submit an operation, show its progress, cancel on Ctrl-C    interrupts, terminal, attach

A command's module has `parser()` and `run(argv) -> exit status`. Data goes to stdout, everything else to
stderr. Only this room prints and exits. It knows `client` and `kit`.
"""
