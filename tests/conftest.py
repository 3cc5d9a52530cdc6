"""What every test has: quiet logs, one thread a torch call, and no GPU by accident."""

import os

import pytest
import structlog
import torch
from hypothesis import settings

from runtime import poller
from tests.object_store import azure, azurite_server, s3, seaweed_server  # noqa: F401

torch.set_num_threads(1)

# Servers in the tests' own process read their sockets as `hotset serve` does.
poller.spare_a_hop(os.environ)

# Nor a deadline an example: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def quiet_logs():
    """Log lines go nowhere, unless a test configures structlog for itself."""
    structlog.configure(
        processors=[structlog.testing.LogCapture()],
        cache_logger_on_first_use=False,
    )
    yield
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write transcripts anew, as they happen"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`gpu` tests skip, saying so, where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
