"""What a starting server says of its store."""

from pathlib import Path

import pytest
from obstore.store import MemoryStore
from structlog.testing import capture_logs

from loader.store import Store
from runtime import census
from tests import tiny_models


async def said(store: Store) -> dict:
    with capture_logs() as logs:
        await census.tell(store)
    (record,) = logs
    return record


async def test_the_models_are_counted(tmp_path: Path) -> None:
    for index in range(3):
        tiny_models.linear(tmp_path, f"m{index}")
    record = await said(Store.open(str(tmp_path)))
    assert (record["models"], record["at_least"]) == (3, False)


async def test_an_empty_store_is_a_warning(tmp_path: Path) -> None:
    record = await said(Store.open(str(tmp_path)))
    assert record["log_level"] == "warning"
    assert "looks empty" in record["event"]


@pytest.mark.parametrize("level", ["above", "below"])
async def test_a_store_one_level_off_is_a_warning(tmp_path: Path, level) -> None:
    tiny_models.linear(tmp_path / "prod", "m")
    folder = tmp_path if level == "above" else tmp_path / "prod" / "m"
    record = await said(Store.open(str(folder)))
    assert record["log_level"] == "warning"
    assert "NAME/VERSION/model.json" in record["event"]


async def test_a_large_store_is_not_listed_to_its_end(monkeypatch) -> None:
    monkeypatch.setattr(census, "LOOK_AT", 2)
    store = Store(MemoryStore(), "memory")
    for index in range(5):
        await store.put(f"m{index}/1/model.json", b"{}")
    record = await said(store)
    assert (record["models"], record["at_least"]) == (2, True)


async def test_a_store_that_cannot_be_listed_is_told_and_no_more() -> None:
    store = Store.open("s3://nowhere", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    record = await said(store)
    assert record["log_level"] == "warning"
    assert "could not be listed" in record["event"]
