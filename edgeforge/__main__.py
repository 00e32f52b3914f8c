"""`python -m edgeforge` is the `edgeforge` command."""

from edgeforge.cli import main

if __name__ == "__main__":
    main()
