"""What a packer says when it will not pack.

Owns: the one exception of the pack modules. It is read by the model's owner, on the
owner's machine, so unlike `loader.errors` it may quote another library.
"""


class PackRefused(Exception):
    """This cannot be packed; the message names what, and what to do."""
