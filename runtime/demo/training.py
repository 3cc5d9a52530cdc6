"""Training: all models of one architecture at once, each on its own.

Owns: the loop. Must not: pack, or know what an order is for.

The weights of M models are stacked along a new first dimension, and one vmapped call
runs M batches through them. The sum of M losses has, by the weights of one model, the
gradient of that model's loss alone; AdamW works element by element. So nothing passes
between the models: this is M trainings, each with its own initial weights, shuffling
and targets, at a fraction of the cost of M loops over small tensors.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from loader.quota import cores
from runtime.demo.digits import Digits
from runtime.demo.fleet import Member

BATCH = 64
DECAY = 0.01
TOGETHER = 8
"""Models trained in one group: enough to spread the cost of a step, and few enough that
the activations stay in the cache (52 transformers in one group: 1.6 times as long)."""

DICE = threading.Lock()
"""torch's default generator, which the modules draw from, is one for all threads."""

Stacked = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Trained:
    """One model after training; `accuracy` is measured on the test images only."""

    member: Member
    weights: Mapping[str, torch.Tensor]
    accuracy: float


def groups(members: Sequence[Member]) -> list[Sequence[Member]]:
    """The members in groups that can be trained at once, each of one architecture."""
    alike = (
        [each for each in members if each.architecture is architecture]
        for architecture in dict.fromkeys(each.architecture for each in members)
    )
    return [
        family[start : start + TOGETHER]
        for family in alike
        for start in range(0, len(family), TOGETHER)
    ]


def steps(members: Sequence[Member], digits: Digits) -> int:
    """How often `train` will call `advance`."""
    return members[0].architecture.epochs * (len(digits.train_images) // BATCH)


def train_side_by_side(
    members: Sequence[Member], digits: Digits, advance: Callable[[], None]
) -> Generator[Trained]:
    """Train them all, a group a core; each comes when its group is done.

    Leaving the iterator early ends the groups under way at their next step.
    """
    left = threading.Event()

    def step() -> None:
        if left.is_set():
            raise Abandoned
        advance()

    # The dearest first: no long group is left over at the end.
    ordered = sorted(groups(members), key=lambda group: -group[0].architecture.cost)
    with ThreadPoolExecutor(cores()) as threads:
        try:
            coming = [threads.submit(train, group, digits, step) for group in ordered]
            for done in as_completed(coming):
                yield from done.result()
        finally:
            left.set()
            threads.shutdown(cancel_futures=True)


class Abandoned(Exception):
    """Raised inside a training that nobody waits for any more."""


def train(
    members: Sequence[Member],
    digits: Digits,
    advance: Callable[[], None] = lambda: None,
) -> list[Trained]:
    """Train these members, all of one architecture; `advance` is called every step."""
    architecture = members[0].architecture
    with _one_thread():
        weights, forward = _stack(members)
        optimizer = torch.optim.AdamW(
            weights.values(), lr=architecture.rate, weight_decay=DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, architecture.rate, total_steps=steps(members, digits)
        )
        targets = _positions(members)[:, digits.train_labels]
        images = torch.unflatten(digits.train_images, -1, architecture.shape)
        for chosen in _batches(members, len(images)):
            scores = forward(weights, images[chosen])
            loss = functional.cross_entropy(
                scores.flatten(0, 1), targets.gather(1, chosen).flatten()
            )
            # the mean over all models, times their number: the sum of their means
            torch.autograd.backward(loss * len(members))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance()
        accuracies = _accuracies(members, weights, forward, digits)
    return [
        Trained(
            member,
            {name: stack[place].detach().clone() for name, stack in weights.items()},
            accuracies[place],
        )
        for place, member in enumerate(members)
    ]


def _stack(
    members: Sequence[Member],
) -> tuple[Stacked, Callable[[Stacked, torch.Tensor], torch.Tensor]]:
    modules = []
    with DICE, torch.random.fork_rng(devices=[]):
        for member in members:
            torch.manual_seed(member.seed)
            modules.append(member.architecture.build())
    parameters, _ = stack_module_state(modules)
    weights = {
        name: stack.detach().requires_grad_() for name, stack in parameters.items()
    }
    skeleton = modules[0].to("meta")

    def one(own: Stacked, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = functional_call(skeleton, own, (images,))
        return scores

    return weights, vmap(one)


def _positions(members: Sequence[Member]) -> torch.Tensor:
    """[model, digit] -> which output of that model stands for that digit."""
    return torch.tensor([each.order for each in members]).argsort(1)


def _batches(members: Sequence[Member], images: int) -> Iterator[torch.Tensor]:
    """Indices [model, BATCH]; every model shuffles every epoch for itself."""
    dice = [torch.Generator().manual_seed(member.seed) for member in members]
    full = images // BATCH * BATCH
    for _ in range(members[0].architecture.epochs):
        shuffled = torch.stack(
            [torch.randperm(images, generator=die)[:full] for die in dice]
        )
        yield from torch.split(shuffled, BATCH, dim=1)


@torch.no_grad()
def _accuracies(
    members: Sequence[Member],
    weights: Stacked,
    forward: Callable[[Stacked, torch.Tensor], torch.Tensor],
    digits: Digits,
) -> list[float]:
    images = torch.unflatten(digits.test_images, -1, members[0].architecture.shape)
    scores = forward(weights, images.expand(len(members), *images.shape))
    right = scores.argmax(-1) == _positions(members)[:, digits.test_labels]
    accuracies: list[float] = right.float().mean(1).tolist()
    return accuracies


@contextmanager
def _one_thread() -> Iterator[None]:
    # Groups side by side use the cores better than threads inside a group: those meet
    # after every small operation, and on a busy machine they only wait for each other
    # (measured beside one other busy process: 16 times as long).
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
