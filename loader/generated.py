"""A forward that fx writes: Python made of a graph, the hot path of every model.

Owns: what a forward is, and the way from a graph to one and back. Must not: know files,
or what a graph may call (loader/graph.py sees to that).
"""

import linecache
from collections.abc import Callable
from types import MethodType
from typing import cast

import torch
from torch import fx
from torch.fx import graph_module

Forward = Callable[..., tuple[torch.Tensor, ...]]
"""`forward(*weights, *inputs)` gives the outputs."""


def generate(graph: fx.Graph) -> Forward:
    """fx writes and compiles `forward`; nothing of the text is kept.

    fx files each source it compiles for tracebacks, for ever: a server that reads
    graphs for months would grow by each.
    """
    module = fx.GraphModule(torch.nn.Module(), graph, class_name="Forward")
    method = cast(MethodType, module.forward)
    source = method.__code__.co_filename
    linecache.cache.pop(source, None)
    graph_module._loader.eval_cache.pop(source, None)
    return method


def nodes_of(forward: Forward) -> fx.Graph:
    """The graph that it was generated from."""
    return cast(fx.GraphModule, cast(MethodType, forward).__self__).graph
