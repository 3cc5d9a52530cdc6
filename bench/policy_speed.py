"""What a decision costs: microseconds of bench/test_policy_speed.py, policy by policy.

Owns: the names of the figures. Must not: say what is good.
"""

from pathlib import Path

from bench.micro import measure

SUITE = Path(__file__).parent / "test_policy_speed.py"
STEPS = ("on_request", "plan", "decision")


def speed(seconds: float = 0.5, only: str = "") -> dict[str, float]:
    """`plan_us.lru` and so on: the fastest round, the rest is the machine's; and what
    the default takes relative to LRU in the same run."""
    found = {}
    for step in measure(seconds, only, SUITE):
        name, _, policy = step.name.rpartition("_")
        found[f"{name}_us.{policy}"] = step.least * 1e6
    for name in STEPS:
        ratio = found[f"{name}_us.tournament"] / found[f"{name}_us.lru"]
        found[f"{name}_us.tournament_over_lru"] = ratio
    return found
