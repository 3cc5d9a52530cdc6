"""The course of the demo: make the store, serve it, ask it, judge it, say so.

Owns: the order of the steps. Must not: know how any of them is done.
"""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console

from runtime.demo.bars import bars
from runtime.demo.digits import Digits, read_digits
from runtime.demo.fleet import Member, muster
from runtime.demo.making import prepare
from runtime.demo.options import WORK, Options
from runtime.demo.oracle import Oracle, tolerance
from runtime.demo.references import References, read_references
from runtime.demo.report import (
    LEAST_RATIO,
    Served,
    Summary,
    latencies,
    mib,
    rate,
    show_checks,
    show_numbers,
)
from runtime.demo.sender import Sent, Sight, sending
from runtime.demo.server import (
    PEAK_METRIC,
    Server,
    Status,
    free_ports,
    serve_command,
    serving,
)
from runtime.demo.stream import Answers, Stream, Target, draw

ALONE = 1000
"""Requests sent one at a time, at most a tenth: about 400 of them are cold."""


@dataclass(frozen=True, slots=True)
class Material:
    """What there is before the server starts."""

    members: Sequence[Member]
    digits: Digits
    known: References
    stream: Stream


def run(options: Options, console: Console) -> bool:
    """The whole demo; True if every check holds. Raises DemoFailed if it cannot run."""
    with _ended_by_signals():
        digits = read_digits()
        members = muster(options.seed, options.models)
        prepare(options, members, digits, console)
        with bars(console) as shown:
            bar = shown.add_task("references", total=len(members), said="")
            known = read_references(
                options.folder, members, digits, lambda: shown.advance(bar)
            )
        stream = draw(
            [Target(member.name, member.architecture.input, member.architecture.shape)
             for member in members],
            digits.test_images.numpy(),
            options.requests,
            options.seed,
            alone=min(ALONE, options.requests // 10),
        )  # fmt: skip
        material = Material(members, digits, known, stream)
        return perform(options, material, console).holds


def perform(options: Options, material: Material, console: Console) -> Summary:
    """Serve the store, send the stream, judge the answers, show the summary."""
    directory = WORK / "run"
    directory.mkdir(parents=True, exist_ok=True)
    material.stream.write(directory)
    budget = options.budget or str(int(material.known.nbytes / LEAST_RATIO))
    ports = free_ports()
    command = serve_command(options.store, options.device, budget, ports)
    with serving(command, ports, directory / "server.log") as server:
        sent = ask(options, directory, server, console)
        status = server.status()
        sent.most_held = max(sent.most_held, int(server.metric(PEAK_METRIC)))
        answers = Answers.read(directory)
        summary = summarise(options, material, answers, sent, status)
        show_numbers(summary, console)
        if options.keep:
            linger(server, console)
    served = replace(summary.served, exit_code=server.exit_code)
    summary = replace(summary, served=served)
    show_checks(summary, console)
    (directory / "summary.json").write_text(json.dumps(asdict(summary), indent=2))
    return summary


def ask(options: Options, directory: Path, server: Server, console: Console) -> Sent:
    """Have the stream sent by its own process, and show how that goes."""
    with bars(console) as shown:
        bar = shown.add_task("serving", total=options.requests, said="")

        def seen(sight: Sight) -> None:
            said = f"{mib(sight.held)} of {mib(sight.capacity)} in use"
            if sight.failed:
                said += f", {sight.failed} failed"
            shown.update(bar, completed=sight.done, said=said)

        sent = sending(directory, server, options.concurrency, seen)
    for failure in sent.failures:
        console.print(f"a request failed: {failure}", style="red", markup=False)
    return sent


def summarise(
    options: Options, material: Material, answers: Answers, sent: Sent, status: Status
) -> Summary:
    """Judge the answers and put the numbers together."""
    oracle = Oracle(
        material.known.scores,
        np.array([member.order for member in material.members]),
        material.digits.test_labels.numpy(),
        tolerance(status.device),
    )
    stream = material.stream
    verdicts = oracle.judge(stream, answers)
    return Summary(
        models=len(material.members),
        asked_models=len(np.unique(stream.model)),
        total_bytes=material.known.nbytes,
        requests=len(stream),
        concurrency=options.concurrency,
        answered=int(verdicts.answered.sum()),
        wrong_model=verdicts.wrong_model,
        accuracy=verdicts.accuracy,
        separation=oracle.separation(),
        tolerance=oracle.tolerance,
        rate=rate(stream, answers, verdicts),
        crowded=latencies(answers, verdicts, slice(None, stream.crowded)),
        alone=latencies(answers, verdicts, slice(stream.crowded, None)),
        served=Served(
            device=status.device,
            policy=status.policy,
            capacity=status.capacity,
            peak=status.peak_held,
            most_seen=sent.most_held,
            loads=status.loads,
            evictions=status.evictions,
            exit_code=None,
        ),
    )


def linger(server: Server, console: Console) -> None:
    """Leave the server up until Ctrl-C (or its own end)."""
    console.print(
        f"still serving: gRPC {server.grpc}, HTTP http://{server.http}/hotset/status; "
        "Ctrl-C ends it"
    )
    try:
        server.process.wait()
    except KeyboardInterrupt:
        console.print("ending the server")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    # SIGTERM's and SIGHUP's own action would end us without ending our children.
    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in wanted}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
