"""The policies by name, as `--policy` and the simulator know them.

Owns: the names. Must not: hold parameters (each policy's own file says which, and why).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from eviction.blend import Blend
from eviction.gds import Gds
from eviction.gdsf import Gdsf
from eviction.lhd import Lhd
from eviction.lru import Lru
from eviction.policy import Policy
from eviction.rate import Rate
from eviction.tournament import Tournament

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {
        "lru": Lru,
        "gds": Gds,
        "gdsf": Gdsf,
        "rate": Rate,
        "lhd": Lhd,
        "blend": Blend,
        "tournament": Tournament,
    }
)

DEFAULT = "tournament"
