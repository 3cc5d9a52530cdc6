"""The policy, as the settings say.

Owns: which one decides, what it is reminded of, and who listens to what it is told.
Must not: decide (eviction/).
"""

import contextlib
from collections.abc import AsyncIterator

from eviction.costs import Costs
from eviction.history import Remembering
from eviction.ledger import Ledger
from eviction.policies import POLICIES
from eviction.policy import Policy
from runtime import access_log, journal
from runtime.config import Settings


@contextlib.asynccontextmanager
async def chosen(
    settings: Settings, costs: Costs, ledger: Ledger
) -> AsyncIterator[Policy]:
    """The policy, with what it knew in its last life, and what listens to it."""
    policy: Policy = POLICIES[settings.policy]()
    async with contextlib.AsyncExitStack() as stack:
        if settings.history:
            policy = remembering = Remembering(policy)
            journal.recall(settings.history, remembering, costs, ledger.capacity)
            kept = journal.kept(settings.history, remembering, costs)
            await stack.enter_async_context(kept)
        if settings.access_log:
            policy = await stack.enter_async_context(
                access_log.kept(settings.access_log, settings.access_log_size, policy)
            )
        yield policy
