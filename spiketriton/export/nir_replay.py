"""NIR's equations in PyTorch, step by step: reads a graph and nothing of spiketriton.

An independent check of an exported file. Explicit Euler with the metadata's dt, in float64.
"""

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Step: TypeAlias = Callable[[Tensor], Tensor]  # the sum of a node's inputs [B, ...] -> its output
Stacked: TypeAlias = dict[str, np.ndarray]


def replay(graph: Any, images: np.ndarray, steps: int) -> tuple[Stacked, Stacked]:
    """Shows images [B, C, H, W] to a `nir.NIRGraph` at each of `steps` time steps, or frames or sequences [steps, ...].

    Returns what each node gives at each step, [T, B, ...], and of neurons the membrane before the reset, in float64.
    Of a cycle, an edge back into a membrane is read a step later.
    ValueError: an unknown kind of node, another cycle, or no dt in the metadata.
    """
    if "dt" not in graph.metadata:
        raise ValueError("the graph's metadata lacks dt, the length of a time step")
    membranes: dict[str, list[Tensor]] = {name: [] for name in graph.nodes}
    run = {n: _step(node, graph.metadata, membranes[n]) for n, node in graph.nodes.items()}
    back = {
        (a, b) for a, b in graph.edges if _kind(graph, a) == "Scale" and _kind(graph, b) in _OPEN
    }
    sources = in_order(graph, back)
    given: dict[str, list[Tensor]] = {name: [] for name in sources}
    for step in range(steps):
        shown = torch.from_numpy(images[step] if images.ndim in (3, 5) else images).double()
        for name, feeding in sources.items():
            arrives = [given[source][-1] for source in feeding] or [shown]
            arrives += [given[a][-1] for a, b in back if b == name and step]
            given[name].append(run[name](sum(arrives[1:], arrives[0])))
    return _stacked(given), _stacked(membranes)


def _stacked(values: dict[str, list[Tensor]]) -> Stacked:
    return {name: torch.stack(kept).numpy() for name, kept in values.items() if kept}


_OPEN = ("LI", "I")  # membranes, which do not reset by themselves


def _kind(graph: Any, name: str) -> str:
    return type(graph.nodes[name]).__name__


def in_order(graph: Any, later: Collection[tuple[str, str]] = ()) -> dict[str, list[str]]:
    """The nodes that feed each node, every node after all of its own. ValueError: there is a cycle.

    later: edges that count for neither.
    """
    found: dict[str, list[str]] = {}
    waiting: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        if (source, target) not in later:
            waiting[target].append(source)
    while waiting:
        ready = [name for name, needs in waiting.items() if all(need in found for need in needs)]
        if not ready:
            raise ValueError(f"the graph has a cycle through {', '.join(waiting)}")
        for name in ready:
            found[name] = waiting.pop(name)
    return found


def _step(node: Any, metadata: dict[str, Any], membranes: list[Tensor]) -> Step:
    kind = type(node).__name__
    constants = {
        name: torch.from_numpy(np.asarray(value, np.float64))
        for name, value in vars(node).items()
        if isinstance(value, np.ndarray | float | int)
    }
    if kind in ("Input", "Output"):
        return lambda x: x
    if kind == "Flatten":
        if (ends := (int(node.start_dim), int(node.end_dim))) != (0, -1):
            raise ValueError(f"Flatten of dimensions {ends[0]} to {ends[1]}; known: 0 to -1")
        return lambda x: x.flatten(1)
    if kind in ("Affine", "Linear"):
        return lambda x: F.linear(x, constants["weight"], constants.get("bias"))
    if kind == "Scale":
        return lambda x: x * constants["scale"]
    if kind == "Conv2d":
        ways = (pair(node.stride), pair(node.padding), pair(node.dilation), int(node.groups))
        return lambda x: F.conv2d(x, constants["weight"], constants["bias"], *ways)
    if kind == "Delay":
        return _delay(constants["delay"], float(metadata["dt"]))
    if kind in ("AvgPool2d", "SumPool2d"):
        if np.any(node.padding):
            raise ValueError(f"{kind} with padding; known: none")
        sides, stride = pair(node.kernel_size), pair(node.stride)
        divisor = 1 if kind == "SumPool2d" else None
        return lambda x: F.avg_pool2d(x, sides, stride, divisor_override=divisor)
    if kind in ("IF", "LIF", "CubaLIF"):
        return _neuron(constants, metadata, membranes)
    if kind in _OPEN:
        return _membrane(constants, metadata, membranes)
    if kind == "Threshold":
        crosses = _crosses(metadata)
        return lambda x: crosses(x, constants["threshold"]).double()
    raise ValueError(f"node {kind} is unknown to this interpreter")


def pair(value: Any) -> Any:
    """Rows and columns of what NIR gives as one number for both, too; a word stays one."""
    return value if isinstance(value, str) else tuple(int(n) for n in np.broadcast_to(value, 2))


def _delay(delay: Tensor, dt: float) -> Step:
    """y(t) = x(t - delay), of each element its own; x is 0 before the first step."""
    steps = (delay / dt).round()
    if bool(((steps * dt - delay).abs() > 1e-6 * dt).any()) or bool((steps < 0).any()):
        raise ValueError(f"Delay of {delay.max():g} with dt {dt:g}; known: whole time steps")
    longest = int(steps.max())
    kept: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        kept.append(x)
        y = torch.zeros_like(x)
        for ago, value in enumerate(reversed(kept)):
            y = torch.where(steps == ago, value, y)
        del kept[: max(0, len(kept) - longest)]
        return y

    return step


def _neuron(c: dict[str, Tensor], metadata: dict[str, Any], membranes: list[Tensor]) -> Step:
    """LIF: tau dv/dt = v_leak - v + r I; IF: dv/dt = r I; a spike sets v to v_reset.

    CubaLIF is a LIF (tau_mem) of I with tau_syn dI/dt = w_in x - I, which steps first.
    With a soft reset, which NIR does not know, it subtracts v_threshold, and v begins at 0.
    """
    dt, threshold = float(metadata["dt"]), c["v_threshold"]
    soft = metadata.get("reset", "hard") == "soft"
    crosses = _crosses(metadata)
    tau = c.get("tau_mem", c.get("tau"))
    v = torch.zeros_like(threshold) if soft else c["v_reset"]
    current = torch.zeros(())  # of a synapse

    def step(x: Tensor) -> Tensor:
        nonlocal v, current
        if "tau_syn" in c:
            current = current + dt / c["tau_syn"] * (c["w_in"] * x - current)
            x = current
        if tau is not None:
            h = v + dt / tau * (c["v_leak"] - v + c["r"] * x)
        else:
            h = v + dt * c["r"] * x
        fires = crosses(h, threshold)
        v = torch.where(fires, h - threshold if soft else c["v_reset"], h)
        membranes.append(h)
        return fires.double()

    return step


def _membrane(c: dict[str, Tensor], metadata: dict[str, Any], membranes: list[Tensor]) -> Step:
    """LI: tau dv/dt = v_leak - v + r I; I: dv/dt = r I; both begin at 0 and give v."""
    dt, v = float(metadata["dt"]), torch.zeros_like(c["r"])

    def step(x: Tensor) -> Tensor:
        nonlocal v
        pulled = c["r"] * x
        v = v + (dt / c["tau"] * (c["v_leak"] - v + pulled) if "tau" in c else dt * pulled)
        membranes.append(v)
        return v

    return step


def _crosses(metadata: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.ge if metadata.get("spike_at", ">") == ">=" else torch.gt
