"""How values of settings are written, and read: sizes, shares, devices, names.

Owns: the types of settings, each with the words in which it refuses what it cannot
read. Must not: know a setting (runtime/config.py).
"""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from eviction.policies import POLICIES
from runtime.budget import Budget, BudgetRefused, parse_budget
from runtime.tenants import FORM, Tenants, parse_tenants


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.strip() == "0":
        return 0  # no budget, but a size: of a tier that is off
    wrong = ValueError("write bytes, like '64MiB', '1.5GB' or '1048576'")
    try:
        nbytes = parse_budget(value).nbytes
    except BudgetRefused as error:
        raise wrong from error
    if nbytes is None:
        raise wrong
    return nbytes


def _budget(value: object) -> object:
    if not isinstance(value, (str, int, float)):
        return value
    if re.fullmatch(r"[1-9]\d?|100", str(value).strip()):
        # No model fits into 80 bytes; a share without its sign is what was meant.
        raise BudgetRefused(str(value), f"is {value} bytes: did you mean '{value}%'?")
    return parse_budget(str(value))


def _bytes_or_auto(value: object) -> object:
    return None if value == "auto" else _bytes(value)


def _device(value: object) -> object:
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(value)) is None:
        raise ValueError("write auto, cpu, cuda or cuda:N")
    return value


def _policy(value: object) -> object:
    if value not in POLICIES:
        raise ValueError(f"choose one of {', '.join(POLICIES)}")
    return value


def _tenants(value: object) -> object:
    if isinstance(value, Tenants):
        return value
    if isinstance(value, (str, dict)):
        return Tenants(parse_tenants(value))
    raise ValueError(FORM)


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
"""A size in bytes, written '64MiB', '1.5GB' or '1048576'."""
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[Budget, BeforeValidator(_budget)]
"""A share of the device or a size, written '80%' or '4GiB'."""
BytesOrAuto = Annotated[int | None, BeforeValidator(_bytes_or_auto)]
"""None for 'auto'."""
Device = Annotated[str, BeforeValidator(_device)]
PolicyName = Annotated[str, BeforeValidator(_policy)]
Shares = Annotated[Tenants, BeforeValidator(_tenants)]
"""What each tenant has of the budget."""
