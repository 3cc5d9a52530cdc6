"""Blend: the geometric mean of what `rate` and `lhd` answer.

J. M. Bates, C. W. J. Granger, "The Combination of Forecasts", Operational Research
Quarterly 20(4), 1969: two forecasts that err differently are together better than
either. These do: `rate` knows a steady model exactly and trusts a burst too long; `lhd`
sees a burst end, and lumps a steady model together with its class. Both are in expected
requests per request, so they average; the geometric mean lets either one say no.

Owns: the averaging. Must not: learn anything of its own.
"""

from collections.abc import Sequence
from itertools import repeat
from math import sqrt

from eviction.lhd import AGE_BIN, Lhd
from eviction.rate import Rate


class Blend:
    """`rate` and `lhd` over one set of records; the tournament asks them alone too."""

    def __init__(self, rate: Rate | None = None, lhd: Lhd | None = None) -> None:
        self.rate = rate or Rate()
        self._known = self.rate.known()
        self.lhd = lhd or Lhd(self._known)

    def __repr__(self) -> str:
        return f"<Blend of {self.rate!r} and {self.lhd!r}>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Told to both."""
        self.rate.on_request(model, now, resident)
        self.lhd.on_request(model, now, resident)

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """Told to both."""
        self.rate.on_load(model, nbytes, seconds, now)
        self.lhd.on_load(model, nbytes, seconds, now)

    def on_evict(self, model: str, now: float) -> None:
        """Told to both: one record."""
        self.rate.on_evict(model, now)

    def forget(self, model: str) -> None:
        """By both: one record."""
        self.rate.forget(model)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The root of (rate's answer x lhd's answer), in one walk over the records."""
        short, middle, long = self.rate.weights()
        clock, bins = self.lhd.clock, AGE_BIN
        known = map(self._known.get, models, repeat(self.lhd.stranger))
        return [
            sqrt(
                (k.short * short + k.middle * middle + k.long * long)
                * k.row[bins[clock - k.last]]
            )
            * c
            / k.nbytes
            for k, c in zip(known, reload_s, strict=True)
        ]
