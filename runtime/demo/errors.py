"""What can keep the demo from running at all.

Owns: the one exception whose text is shown to whoever typed `hotset demo`. Must not:
carry a failed check; those belong to the summary (report.py), where all of them are
named and not only the first.
"""

from runtime.commands import Failed


class DemoFailed(Failed):
    """The demo cannot go on; the message says why and what to do. Exit code 1."""
