"""Which library large linear layers run in, as the settings and a measurement say.

Owns: that it is asked once, when the cores are shared out, and what is said of it. Must
not: rewrite a graph (loader/linear.py).
"""

import structlog
import torch

from loader.linear import compared, onednn
from runtime.config import Settings

log = structlog.get_logger()


def chosen_kernels(
    settings: Settings, device: torch.device, inherited: int | None = None
) -> int:
    """`onednn_from` (loader/linear.py). `inherited`: what an engine before this one
    found; its answers and ours are then the same to the last bit."""
    if device.type != "cpu" or settings.kernels == "torch":
        return 0
    if inherited is not None:
        return inherited
    found = compared(onednn())
    speedup = round(found.speedup, 2)
    if found.reason:
        log.info(
            "linear layers run in torch's own way", reason=found.reason, speedup=speedup
        )
    else:
        log.info(
            "large linear layers run in oneDNN",
            from_multiplications=found.onednn_from,
            speedup=speedup,
        )
    return found.onednn_from
