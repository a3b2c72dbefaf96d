"""`python -m ramify`, and `ramify`."""

import sys

from ramify.run.stop import listening


def main() -> None:
    """Runs the command line; signals are heeded before it is even loaded."""
    with listening(sys.argv[1:]):
        from ramify.cli import main as command_line

        command_line()


if __name__ == "__main__":  # workers of `prepare` import this module, too
    main()
