"""The policies by name, as `--policy` and the simulator know them.

Owns: the names. Must not: hold parameters (each policy's own file says which, and why).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from eviction.gdsf import Gdsf
from eviction.lru import Lru
from eviction.policy import Policy

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {"lru": Lru, "gdsf": Gdsf}
)
