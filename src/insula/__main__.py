"""`python -m insula` is the command `insula`."""

from insula.cli.main import main

if __name__ == "__main__":
    main()
