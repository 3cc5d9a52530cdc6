"""One timer, on either event loop."""

import asyncio

import pytest
import uvloop

from runtime.alarm import Alarm


@pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])
def test_the_earliest_moment_wins_on_every_loop(factory) -> None:
    async def story() -> list[float]:
        loop, rung, done = asyncio.get_running_loop(), [], asyncio.Event()

        def ring() -> None:
            rung.append(loop.time())
            done.set()

        alarm, now = Alarm(ring), loop.time()
        alarm.by(now + 1000)
        alarm.by(now - 1)  # has come already
        alarm.by(now - 0.5)
        alarm.by(now + 2000)
        await done.wait()
        assert len(rung) == 1
        alarm.by(loop.time() + 1000)
        alarm.off()
        return rung

    with asyncio.Runner(loop_factory=factory) as runner:
        assert len(runner.run(story())) == 1
