"""The command line. A verb is a function in the file of its group: it parses, calls into the package, and prints.

`entry.py` puts the groups together; `options.py` holds what verbs share.
"""

from ramify.cli.entry import app, main

__all__ = ["app", "main"]
