"""Who holds how many bytes.

Owns: the promise that what is held never exceeds the capacity by booking. Must not:
decide who leaves (eviction/plan.py) or know what is measured (runtime/vram.py): the
ledger plans, the gauge corrects through `resize`.
"""


class Overbooked(RuntimeError):
    """Somebody booked what was not there, or gave back what was not booked."""


class Ledger:
    """Bytes by key. A shrunken capacity may leave `free` negative, a booking never."""

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise Overbooked(f"A capacity of {capacity} bytes. This is a bug.")
        self._capacity = capacity
        self._sizes: dict[str, int] = {}
        self._held = 0
        self._peak = 0

    def __repr__(self) -> str:
        return (
            f"<Ledger: {len(self._sizes)} keys hold {self._held}"
            f" of {self._capacity} bytes, peak {self._peak}>"
        )

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def capacity(self) -> int:
        """What may be held."""
        return self._capacity

    @property
    def held(self) -> int:
        """What is held."""
        return self._held

    @property
    def free(self) -> int:
        """What may still be booked; negative after the capacity shrank below `held`."""
        return self._capacity - self._held

    @property
    def peak(self) -> int:
        """The most that was ever held."""
        return self._peak

    def hold(self, key: str, nbytes: int) -> None:
        """Book `nbytes` for `key`; a key that holds already is re-booked (settled).

        Giving some back is always possible, even while `free` is negative.
        """
        if nbytes < 0:
            raise Overbooked(f"{key} wants {nbytes} bytes. This is a bug.")
        more = nbytes - self._sizes.get(key, 0)
        if more > 0 and more > self.free:
            raise Overbooked(
                f"{key} wants {more} bytes more, {self.free} are free. This is a bug."
            )
        self._sizes[key] = nbytes
        self._held += more
        self._peak = max(self._peak, self._held)

    def release(self, key: str) -> None:
        """All bytes of `key` are free again."""
        if key not in self._sizes:
            raise Overbooked(f"{key} holds nothing to release. This is a bug.")
        self._held -= self._sizes.pop(key)

    def resize(self, capacity: int) -> None:
        """The gauge found more or less room. Nobody loses what is booked."""
        if capacity < 0:
            raise Overbooked(f"A capacity of {capacity} bytes. This is a bug.")
        self._capacity = capacity

    def size(self, key: str) -> int:
        """What `key` holds; 0 when it holds nothing."""
        return self._sizes.get(key, 0)
