"""The command line. A command is a function in the file of its group: it parses, calls the package and prints.

`entry.py` combines the groups; `options.py` has the shared arguments and options.
"""

from ramify.cli.entry import app, main

__all__ = ["app", "main"]
