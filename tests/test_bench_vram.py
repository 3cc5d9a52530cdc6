"""What bench.vram makes of its rows, of a machine without a GPU, of lost workers."""

import asyncio
import sys
from pathlib import Path

import pytest
import torch

from bench import vram, vram_hands
from bench.load_results import LOCAL, Results
from bench.vram_hands import Hand, Lost
from bench.vram_peers import CEILING, WARM
from bench.vram_results import HOST, figures
from bench.vram_swaps import Swapped
from tests.test_bench import result_of

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def seen() -> Results:
    results = Results()
    rows = [
        (HOST, 200, CEILING, 0.0037),
        (HOST, 200, WARM, 0.0040),
        (HOST, 4, CEILING, 0.00008),
        (HOST, 4, WARM, 0.0004),
        (LOCAL, 4, "hotset", 0.002),
        (LOCAL, 4, "InstantTensor", 0.004),
        (LOCAL, 4, "fastsafetensors", 0.010),
    ]
    for source, size, name, seconds in rows:
        row = {"name": name, "size": size, "seconds": seconds, "cpu": seconds}
        assert results.told(source, row)
    return results


def test_goals_are_for_a_gpu_and_where_the_link_is_what_counts() -> None:
    swapped = Swapped("NvmlGauge", 1000, [(0, 5000), (500, 5400), (1003, 5030)])
    found = figures(seen(), swapped, GPU)
    share = found["host_200mb_to_ceiling"]
    assert (share.value, share.goal, share.holds) == (pytest.approx(0.925), 0.9, True)
    assert found["host_4mb_to_ceiling"].goal is None
    assert found["ceiling_200mb"].value == pytest.approx(54.05, rel=0.01)
    assert found["cold_4mb_time_to_best_peer"].value == pytest.approx(0.5)
    assert (found["drift"].value, found["drift"].holds) == (0.03, False)
    assert found["swaps"].value == 1003
    assert all(figure.goal is None for figure in figures(seen(), swapped, CPU).values())


def test_without_a_gpu_it_says_so_and_fails(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    with pytest.raises(SystemExit, match="sees no CUDA device here; --device cpu"):
        vram.main()


async def hand(folder: Path, code: str) -> Hand:
    heard = folder / "stderr"
    with heard.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )  # fmt: skip
    return Hand(process, heard)


async def test_a_worker_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('ROW {\"name\": \"a\"}'); sys.exit('boom')"
    worker = await hand(tmp_path, code)
    assert await worker.made(["a"]) == {}
    with pytest.raises(Lost, match="ended with status 1; last words: boom"):
        await worker.asked("run", "a", 4)
    await worker.end()


async def test_a_worker_that_hangs_is_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vram_hands, "ANSWERS_S", 0.05)
    worker = await hand(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(Lost, match=r"no answer in 0\.05 s; it said nothing"):
        await worker.asked("run", "a", 4)


@pytest.mark.process
@pytest.mark.timeout(120)
def test_the_same_code_runs_without_a_gpu(tmp_path) -> None:
    found = result_of(
        "bench.vram", "--quick", "--device", "cpu", "--sizes", "4", "--rounds", "0.25",
        "--swaps", "20", "--out", str(tmp_path), "--skip",
        "fastsafetensors,fastsafetensors (kept),InstantTensor,Run:ai model streamer",
    )  # fmt: skip
    for name in ("host_4mb_to_ceiling", "cold_4mb_time_to_best_peer", "swaps"):
        assert found[name]["value"] > 0
    assert (tmp_path / "vram.png").read_bytes().startswith(b"\x89PNG")
