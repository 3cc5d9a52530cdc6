"""Numbers as people read them.

Owns: how bytes, ages and shares are written in tables. Must not: be used where a
program reads the result.
"""


def size(nbytes: int) -> str:
    """1536 -> '1.5 KiB'."""
    amount = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(seconds: float) -> str:
    """93.4 -> '1m33s'."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, step, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= step:
            return f"{whole // step}{unit}{whole % step // part:02d}{smaller}"
    return f"{whole}s"


def share(part: float, whole: float) -> str:
    """A quarter -> '25.0 %'; '-' of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
