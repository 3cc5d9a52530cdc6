"""Which library large linear layers run in, as the settings and a measurement say.

Owns: that it is asked once, and what is said of it. Must not: rewrite a graph
(loader/linear.py).
"""

import structlog
import torch

from loader.onednn import OneDnn, compared, open_onednn, operator
from runtime.config import Settings

log = structlog.get_logger()


def chosen_kernels(
    settings: Settings, device: torch.device, inherited: int | None = None
) -> OneDnn | None:
    """oneDNN, if layers shall run there. `inherited`: from where on they did in an
    engine before this one, so that the same layers do in ours."""
    if device.type != "cpu" or settings.kernels == "torch":
        return None
    return open_onednn(_measured() if inherited is None else inherited)


def _measured() -> int:
    found = compared(operator())
    speedup = round(found.speedup, 2)
    if found.reason:
        log.info(
            "linear layers run as torch has them", reason=found.reason, speedup=speedup
        )
    else:
        log.info(
            "large linear layers run in oneDNN",
            from_multiplications=found.onednn_from,
            speedup=speedup,
        )
    return found.onednn_from
