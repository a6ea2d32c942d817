"""`train.graph`: a training step as one CUDA graph, replayed without Python between its kernels.

The work of a step (forward, loss, backward, clipping, guard, optimizer, average of the weights) is
captured once for each shape of the batch, and once more for steps that are measured, which call other
kernels. What changes from step to step lies in tensors that the graph reads: the batch, the learning
rates and the step's number.

With "auto" a graph proves itself: it is captured around a batch of zeros, a learning rate of 0 and no
step's number, then its first replay is compared with the same step run eagerly from the same state. A
number that was frozen into it shows. On any difference or error, and where a replay is no faster,
training goes on eagerly.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves, tree_map

from spiketriton.plugins.tasks import Batch
from spiketriton.system.errors import one_line

Numbers = tuple[Tensor, Tensor]  # loss and norm of the gradient of a step, scalars on the device
Work = Callable[[Iterable[Batch], bool], Numbers]
Replay = Callable[[Sequence[Batch]], Numbers]

# eager steps of a shape before it is captured: kernels are compiled, convolutions tuned
WARM_UP = 3
# of an eager step's time, at most, with "auto": a graph's memory must be worth it
GAIN = 0.95
# relative differences that "auto" allows. The forward pass is the same kernels in the same order; sums in cuDNN's
# backward come in any order, and Adam's first steps follow the sign of small gradients
LOSS, NORM, UPDATE = 1e-4, 1e-2, 0.05


class CudaGraphs:
    """How work is captured: on a stream of its own. One graph runs at a time, so all have one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, call: Callable[[], Numbers]) -> Numbers:
        """Runs a call where it will be captured later."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            numbers = call()
        current.wait_stream(self.stream)
        for tensor in numbers:
            tensor.record_stream(current)
        return numbers

    def capture(self, call: Callable[[], Numbers]) -> tuple[Callable[[], object], Numbers]:
        """The call's graph as a function that runs it, and the tensors in which it leaves its results."""
        return capture(call, self.stream, self.device, self.pool)

    def seconds(self, call: Callable[[], Numbers]) -> tuple[Numbers, float]:
        """What a call returns, and how long host and device take for it."""
        torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        numbers = call()
        torch.cuda.synchronize(self.device)
        return numbers, time.perf_counter() - begun


R = TypeVar("R")


def capture(
    call: Callable[[], R],
    stream: torch.cuda.Stream,
    device: torch.device,
    pool: Any = None,
) -> tuple[Callable[[], object], R]:
    """A CUDA graph of what `call` does, as a function that replays it, and what the call returns.

    Where it fails the process goes on as before: torch would leave its stream current, and its pool of
    memory open, for which the allocator keeps every block that another stream has used.
    """
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    before = torch.cuda.current_stream(device)
    try:
        # thread_local: threads that load data may go on calling CUDA
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            returned = call()
    except BaseException:
        torch.cuda.set_stream(before)
        try:
            graph.pool()  # a capture that ended gives its pool back with the graph
        except RuntimeError:
            _give_back(device, pool)
        raise
    return graph.replay, returned


def _give_back(device: torch.device, pool: Any) -> None:
    """What torch itself does after a failed capture: end (from 2.12 on) and release (from 2.13.1 on) its pool."""
    with contextlib.suppress(RuntimeError):  # "not currently recording": it has been ended
        torch._C._cuda_endAllocateToPool(device.index, pool)
    if torch.version.hip is None and TorchVersion(torch.__version__) < "2.13.1":
        torch._C._cuda_releasePool(device.index, pool)


def captured(
    work: Work, batches: Sequence[Batch], watched: bool, optimizer: Optimizer, graphs: CudaGraphs
) -> Replay:
    """The graph of the work on batches of one shape, as a function of these."""
    device, groups = tree_leaves(batches)[0].device, optimizer.param_groups
    own = tree_map(torch.zeros_like, list(batches))
    rates = [torch.zeros((), device=device) for _ in groups]
    with rates_in_tensors(optimizer, rates):
        replay, (loss, norm) = graphs.capture(lambda: work(own, watched))

    def replayed(batches: Sequence[Batch]) -> Numbers:
        for kept, given in zip(tree_leaves(own), tree_leaves(batches), strict=True):
            kept.copy_(given, non_blocking=True)
        for rate, group in zip(rates, groups, strict=True):
            rate.fill_(group["lr"])
        replay()
        return loss.clone(), norm.clone()  # the next replay overwrites them

    return replayed


@contextlib.contextmanager
def rates_in_tensors(optimizer: Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the optimizer reads its learning rates from tensors, one of each group."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    were = [group.copy() for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, own in zip(groups, were, strict=True):
            group.update(own)


class Steps:
    """Runs the work of steps, eagerly or by graphs.

    Args:
        work: of one step, on its micro-batches, and whether it is measured: everything that the device
            does. It waits for nothing, and no number of Python's that changes from step to step reaches a kernel.
        optimizer: whose learning rates the schedule sets between steps.
        mode: `train.graph`. With True a graph is used unproven, and an error in its capture is raised.
        obstacle: why there can be no graph here; empty if there can.
        state: every tensor that the work changes, as soon as the first step is done; the weights are
            parameters, counters have no dimension.
        note: called with one line, whenever the way in which steps run is decided.
        graphs: how work is captured.
    """

    def __init__(
        self,
        work: Work,
        optimizer: Optimizer,
        *,
        mode: bool | str,
        obstacle: str,
        state: Callable[[], list[Tensor]],
        note: Callable[[str], object],
        graphs: Callable[[], CudaGraphs],
    ) -> None:
        self.work, self.optimizer, self.mode = work, optimizer, mode
        self.state, self.note = state, note
        self.captured: dict[tuple, Replay] = {}
        self.seen: dict[tuple, int] = {}
        self.graphs = None if mode is False or obstacle else graphs()
        # "auto", the default, says nothing of a missing GPU
        if obstacle and mode is not False and not (mode == "auto" and obstacle == NO_GPU):
            self._run_eagerly(obstacle)

    def __call__(self, parts: Iterable[Batch], watched: bool) -> Numbers:
        """One step on its micro-batches, which are drawn one by one if it runs eagerly.

        watched: whether other kernels than usual are called, which measure.
        """
        if self.graphs is None:
            return self.work(parts, watched)
        batches = list(parts)
        shape = (watched, *((x.shape, x.stride(), x.dtype) for x in tree_leaves(batches)))
        if shape in self.captured:
            return self.captured[shape](batches)
        seen = self.seen[shape] = self.seen.get(shape, 0) + 1
        if seen <= WARM_UP:
            return self.graphs.warm_up(lambda: self.work(batches, watched))
        return self._first(shape, batches, watched, self.graphs)

    def _first(
        self, shape: tuple, batches: list[Batch], watched: bool, graphs: CudaGraphs
    ) -> Numbers:
        """The step in which a shape is captured."""
        these = "measured steps" if watched else "steps of this shape"
        if self.mode is True:
            self.captured[shape] = captured(self.work, batches, watched, self.optimizer, graphs)
            self.note(f"{self._key}: from here on {these} are replayed, unproven")
            return self.captured[shape](batches)
        state = self.state()
        before = [tensor.clone() for tensor in state]
        try:
            graph, eager, differs = self._compared(batches, watched, graphs, state, before)
        # whatever it is: if the graph is not to blame, the eager step below raises it
        except Exception as caught:
            error = one_line(caught)[:300] or type(caught).__name__
        else:
            if differs is None:
                self.captured[shape] = graph
                self.note(
                    f"{self._key}: {these} are replayed as a CUDA graph, whose first step "
                    "had the loss, norm and weights of the eager one"
                )
            elif differs:
                self._run_eagerly(differs)
            return eager
        # no traceback holds the graph's memory any more, which the eager step needs
        _restore(state, before)
        self.optimizer.zero_grad()
        self._run_eagerly(error)
        return self.work(batches, watched)

    def _compared(
        self,
        batches: list[Batch],
        watched: bool,
        graphs: CudaGraphs,
        state: Sequence[Tensor],
        before: Sequence[Tensor],
    ) -> tuple[Replay, Numbers, str | None]:
        """The graph, the eager step, after which the state is, and why not to replay: `_difference`, or no gain."""
        graph = captured(self.work, batches, watched, self.optimizer, graphs)
        replayed = graph(batches)
        by_graph = [tensor.clone() for tensor in state]
        _restore(state, before)
        _, fast = graphs.seconds(lambda: graph(batches))  # the first one was loaded, too
        _restore(state, before)
        eager, slow = graphs.seconds(lambda: self.work(batches, watched))
        differs = _difference(replayed, eager, before, by_graph, state)
        if differs is None and fast > GAIN * slow:
            differs = f"a replay takes {1e3 * fast:.3g} ms, and an eager step {1e3 * slow:.3g} ms"
        return graph, eager, differs

    @property
    def _key(self) -> str:
        return f"train.graph = {'true' if self.mode is True else self.mode}"

    def _run_eagerly(self, reason: str) -> None:
        self.graphs = None
        self.captured.clear()
        self.note(f"{self._key}: steps run eagerly, because {reason}")


@torch.no_grad()
def _restore(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, kept in zip(state, before, strict=True):
        tensor.copy_(kept)


@torch.no_grad()
def _difference(
    replayed: Numbers,
    eager: Numbers,
    before: Sequence[Tensor],
    by_graph: Sequence[Tensor],
    by_eager: Sequence[Tensor],
) -> str | None:
    """None: the same. Else in what the replay differs; empty when the eager step proves nothing."""
    found = zip(("loss", "norm of the gradient"), replayed, eager, (LOSS, NORM), strict=True)
    for name, ours, theirs, allowed in found:
        mine, true = float(ours), float(theirs)
        if not math.isfinite(true):
            return ""  # a step that the guard leaves out: the next one is compared
        if not abs(mine - true) <= allowed * abs(true):
            return f"the {name} of its first replay is {mine:.7g} instead of {true:.7g}"
    weights = [i for i, tensor in enumerate(by_eager) if isinstance(tensor, nn.Parameter)]
    moved, apart = (
        float(
            torch.stack([(by_eager[i].double() - other[i].double()).norm() for i in weights]).norm()
        )
        for other in (before, by_graph)
    )
    if not apart <= UPDATE * moved:
        return f"its first replay leaves weights {apart:.3g} off, where the step moves them by {moved:.3g}"
    counts = [i for i, tensor in enumerate(by_eager) if tensor.ndim == 0 and i not in weights]
    if not all(torch.equal(by_graph[i], by_eager[i]) for i in counts):
        return "its first replay counts otherwise"
    return None


NO_GPU = "a CUDA graph needs a GPU"


def obstacle_of(device: torch.device, ranks: int, scaled: bool, own: bool = False) -> str:
    """Why there can be no graph of a step; empty if there can. own: parts that the user has written."""
    if device.type != "cuda":
        return NO_GPU
    if own:
        return "it would leave out what the Python of plugins does; train.graph = true replays them"
    if ranks > 1:
        return f"{ranks} ranks exchange gradients, which no graph here captures"
    if scaled:
        return 'the loss scaler of train.precision = "fp16" keeps what it does on the host'
    return ""
