"""NIR's equations in numpy, step by step: reads a graph and nothing of spiketriton.

An independent check of an exported file. Explicit Euler with the metadata's dt, in float64.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
Step: TypeAlias = Callable[[Array], Array]  # the sum of a node's inputs [B, ...] -> its output


def replay(graph: Any, images: Array, steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Shows images [B, C, H, W] to a `nir.NIRGraph` at each of `steps` time steps, or frames [steps, B, C, H, W].

    Returns what each node gives at each step, [T, B, ...], and of neurons the membrane before the reset, in float64.
    ValueError: an unknown kind of node, a cycle, or no dt in the metadata.
    """
    if "dt" not in graph.metadata:
        raise ValueError("the graph's metadata lacks dt, the length of a time step")
    dt = float(graph.metadata["dt"])
    inclusive = graph.metadata.get("spike_at", ">") == ">="
    soft = graph.metadata.get("reset", "hard") == "soft"
    membranes: dict[str, list[Array]] = {}
    run = {
        name: _step(node, dt, inclusive, soft, membranes.setdefault(name, []))
        for name, node in graph.nodes.items()
    }
    sources = in_order(graph)
    given: dict[str, list[Array]] = {name: [] for name in sources}
    for step in range(steps):
        shown = images[step] if images.ndim == 5 else images
        now: dict[str, Array] = {}
        for name, feeding in sources.items():
            arrives = [now[source] for source in feeding] or [shown.astype(np.float64)]
            now[name] = run[name](sum(arrives[1:], arrives[0]))
            given[name].append(now[name])
    stacked = {name: np.stack(values) for name, values in given.items()}
    return stacked, {name: np.stack(v) for name, v in membranes.items() if v}


def in_order(graph: Any) -> dict[str, list[str]]:
    """The nodes that feed each node, every node after all of its own. ValueError: there is a cycle."""
    found: dict[str, list[str]] = {}
    waiting: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        waiting[target].append(source)
    while waiting:
        ready = [name for name, needs in waiting.items() if all(need in found for need in needs)]
        if not ready:
            raise ValueError(f"the graph has a cycle through {', '.join(waiting)}")
        for name in ready:
            found[name] = waiting.pop(name)
    return found


def _step(node: Any, dt: float, inclusive: bool, soft: bool, membranes: list[Array]) -> Step:
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return lambda x: x
    if kind == "Flatten":
        first, last = int(node.start_dim), int(node.end_dim)
        if (first, last) != (0, -1):
            raise ValueError(f"Flatten of dimensions {first} to {last}; known: 0 to -1")
        return lambda x: x.reshape(len(x), -1)
    if kind in ("Affine", "Linear"):
        weight = node.weight.astype(np.float64)
        bias = node.bias.astype(np.float64) if kind == "Affine" else 0.0
        return lambda x: x @ weight.T + bias
    if kind == "Scale":
        return lambda x: x * node.scale
    if kind == "Conv2d":
        return _conv(node)
    if kind in ("AvgPool2d", "SumPool2d"):
        return _pool(node, np.mean if kind == "AvgPool2d" else np.sum)
    if kind in ("IF", "LIF", "CubaLIF"):
        return _Neuron(node, dt, inclusive, soft, membranes)
    raise ValueError(f"node {kind} is unknown to this interpreter")


def _conv(node: Any) -> Step:
    weight = node.weight.astype(np.float64)
    bias = node.bias.astype(np.float64)[:, None, None]
    (up, left), (down, right), (dy, dx) = node.stride, node.padding, node.dilation
    if int(node.groups) != 1:
        raise ValueError(f"Conv2d with {int(node.groups)} groups; known: 1")

    def step(x: Array) -> Array:
        x = np.pad(x, ((0, 0), (0, 0), (down, down), (right, right)))
        height, width = (weight.shape[2] - 1) * dy + 1, (weight.shape[3] - 1) * dx + 1
        windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
        windows = windows[:, :, ::up, ::left, ::dy, ::dx]
        product = np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3]))  # [B, H, W, C]
        return np.moveaxis(product, -1, 1) + bias

    return step


def _pool(node: Any, reduce: Callable[..., Array]) -> Step:
    kernel, stride = tuple(map(int, node.kernel_size)), tuple(map(int, node.stride))
    if any(int(p) for p in node.padding):
        raise ValueError(f"{type(node).__name__} with padding; known: none")

    def step(x: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
        return reduce(windows[:, :, :: stride[0], :: stride[1]], axis=(4, 5))

    return step


class _Neuron:
    """LIF: tau dv/dt = v_leak - v + r I; IF: dv/dt = r I; a spike sets v to v_reset.

    CubaLIF is a LIF (tau_mem) of I with tau_syn dI/dt = w_in x - I, which steps first.
    With a soft reset, which NIR does not know, it subtracts v_threshold, and v begins at 0.
    """

    def __init__(
        self, node: Any, dt: float, inclusive: bool, soft: bool, membranes: list[Array]
    ) -> None:
        self.node, self.dt, self.inclusive, self.membranes = node, dt, inclusive, membranes
        self.soft = soft
        self.v: Array | None = None
        self.current: Any = 0.0  # of a synapse

    def __call__(self, current: Array) -> Array:
        node = self.node
        start = np.zeros_like(node.v_threshold) if self.soft else node.v_reset
        v = np.broadcast_to(start, current.shape).astype(np.float64)
        v = v if self.v is None else self.v
        if hasattr(node, "tau_syn"):
            tau_syn = node.tau_syn.astype(np.float64)
            self.current = self.current + self.dt / tau_syn * (node.w_in * current - self.current)
            current = self.current
        tau = getattr(node, "tau_mem", getattr(node, "tau", None))
        if tau is not None:
            tau = tau.astype(np.float64)
            h = v + self.dt / tau * (node.v_leak - v + node.r * current)
        else:
            h = v + self.dt * node.r * current
        fires = h >= node.v_threshold if self.inclusive else h > node.v_threshold
        self.v = np.where(fires, h - node.v_threshold if self.soft else node.v_reset, h)
        self.membranes.append(h)
        return fires.astype(np.float64)
