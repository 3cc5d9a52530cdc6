"""The commands: one file each, imported when called.

Owns: how a command says that it failed. Must not: import anything heavy here.
"""


class Failed(Exception):
    """A command could not do what it was asked; each line is a sentence for the user.

    Shown without a stack trace; the exit code is 1.
    """
