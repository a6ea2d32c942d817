"""`train.graph`: what a CUDA graph of a step forbids, and how steps come to run by one.

There is no GPU here. `Tape` stands in for a CUDA graph: it records the operations of a step with their
tensors and numbers, and a replay calls exactly these again, on the same tensors. So it freezes what a
graph freezes, and refuses what a capture refuses. What it cannot show: memory, streams, kernels.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spiketriton.training.gpu import graphs
from spiketriton.training.gpu.graphs import Steps, obstacle_of, rates_in_tensors
from spiketriton.training.trainer import Trainer
from tests.small_runs import QUICK, assert_equal, small_trainer, untimed

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.lift_fresh.default,  # torch.tensor(...): a copy from the host
}
"""Operations that the host and the device do together: a capture ends with an error at them."""
READS = ("tolist", "cpu", "numpy", "pin_memory")
"""Methods that do so and are no operations where the device is the CPU."""


def waits(name: str) -> RuntimeError:
    """CUDA's words, and the reason."""
    return RuntimeError(f"operation not permitted when stream is capturing: {name}")


@contextmanager
def reads_refused() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in READS:

            def refuse(self: Tensor, *_: Any, name: str = name) -> None:
                raise waits(name)

            patch.setattr(Tensor, name, refuse)
        yield


@pytest.fixture(scope="module", autouse=True)
def as_on_a_gpu():
    """Without what only CPUs have: tiles, batch norm by itself, and a Muon that looks at what it is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spiketriton_kernels.convolutions.tiles.available", lambda: False)
        patch.setattr("spiketriton.neurons.norm.serves", lambda *_: False)
        patch.setattr("spiketriton.training.muon.LOOKS", ())
        yield


class Tape(TorchDispatchMode):
    """One recorded call: its operations with their tensors and numbers; refuses what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        masked = function is aten.index.Tensor and any(x.dtype == torch.bool for x in tensors)
        if function in WAITS or masked:
            raise waits(str(function))
        out = function(*args, **kwargs)
        if function.namespace == "profiler":
            return out
        # views, and what is changed in place, follow by themselves
        given = {x.untyped_storage().data_ptr() for x in tensors}
        fresh = [None if x.untyped_storage().data_ptr() in given else x for x in tensors_in(out)]
        self.calls.append((function, args, kwargs, fresh))
        return out

    def numbers(self) -> list[tuple[str, list[Any]]]:
        """Each operation and what in its arguments is no tensor: a graph would freeze it."""
        return [
            (str(function), [x for x in tree_leaves((args, kwargs)) if not isinstance(x, Tensor)])
            for function, args, kwargs, _ in self.calls
        ]

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, fresh in self.calls:
            for kept, new in zip(fresh, tensors_in(function(*args, **kwargs)), strict=True):
                if kept is not None:
                    kept.copy_(new)


def tensors_in(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class Tapes:
    """Stands in for `CudaGraphs`. captured, replayed: called with a graph's results after either."""

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self.state, self.warmed, self.captures, self.replays = state, 0, 0, 0
        self.asked, self.gains = 0, True
        self.captured = self.replayed = lambda numbers: None

    def warm_up(self, call):
        self.warmed += 1
        return call()

    def capture(self, call):
        self.captures += 1
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        with reads_refused(), Tape() as tape:
            numbers = call()
        with torch.no_grad():  # a capture runs nothing
            for tensor, kept in before:
                tensor.copy_(kept)
        self.captured(numbers)

        def replay() -> None:
            self.replays += 1
            tape.replay()
            self.replayed(numbers)

        return replay, numbers

    def seconds(self, call):
        """Each replay is worth it, unless `gains` says otherwise: it is asked about a replay, then a step."""
        self.asked += 1
        return call(), (1.0 if self.asked % 2 else 2.0) if self.gains else 1.0


def taped(trainer) -> Tapes:
    """Lets a trainer with `train.graph` set run by tapes, as if there were a GPU."""
    tapes = Tapes(trainer.update.tensors)
    trainer.display.stream.truncate(0)  # what the CPU stands in the way of
    trainer.display.stream.seek(0)
    trainer.run = Steps(
        trainer.work,
        trainer.update.optimizer,
        mode=trainer.recipe.train.graph,
        obstacle="",
        state=trainer.update.tensors,
        note=trainer.display.note,
        graphs=lambda: tapes,
    )
    return tapes


KINDS = {
    "adamw": [
        *("train.mixup=0.2", "train.ema=0.9", "loss.kind=tet", "loss.class_weights=balanced"),
        *("neuron.kind=plif", "model.norm=tebn"),
    ],
    "sgd": [
        *("train.optimizer=sgd", "train.weight_decay=0.01", "train.clip_grad_norm=0.5"),
        *("train.accumulate=2", "train.nonfinite=skip", "model.block=ms"),
        *("model.memory=packed", "model.checkpoint_blocks=true"),
    ],
    "twin": [*QUICK, "neuron.kind=relu"],
    "muon": [*QUICK, "train.optimizer=muon", "train.weight_decay=0.01"],
}
every_kind = pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)


def a_step(trainer, measured: bool = False) -> list[tuple[str, list[Any]]]:
    """Operations of the next step, with its learning rates in tensors as in a graph; it is done."""
    trainer.update.number.fill_(trainer.step + 1)
    batches = [trainer.next_batch() for _ in range(trainer.accumulate)]
    rates = [torch.tensor(float(group["lr"])) for group in trainer.update.optimizer.param_groups]
    with rates_in_tensors(trainer.update.optimizer, rates), reads_refused(), Tape() as tape:
        trainer.work(batches, measured)
    trainer.update.schedule.step()
    trainer.progress.step += 1
    return tape.numbers()


@every_kind
def test_a_step_waits_for_nothing_and_hands_kernels_no_number_that_changes(tmp_path, overrides):
    trainer = small_trainer(tmp_path, *overrides, "train.log_every=100")
    trainer.fit(until=2)
    with trainer.session():
        for measured in (False, bool(trainer.monitor.layers)):
            first, second = a_step(trainer, measured), a_step(trainer, measured)
            assert len(first) > 50
            assert [name for name, _ in first] == [name for name, _ in second]
            assert first == second


@every_kind
def test_no_node_of_a_step_outlives_it(tmp_path, overrides, monkeypatch):
    """One that does belongs to the stream of its step, draws that into the next capture, and ends it."""
    trainer = small_trainer(tmp_path, *overrides, "train.log_every=100")
    loss, kept = trainer.loss, []
    weights = [p for p in trainer.model.parameters() if p.requires_grad]

    def nodes() -> list[Any]:
        """Where autograd adds to each gradient: the node that lives, or a new one."""
        return [p.view_as(p).grad_fn.next_functions[0][0] for p in weights]

    def marked(*given):
        value = loss(*given)
        for node in nodes():
            node.metadata["of a step"] = True
        if keeps:
            kept.append(value)
        return value

    monkeypatch.setattr(trainer, "loss", marked)
    gc.disable()
    try:
        with trainer.session():
            for keeps in (False, True):  # as it is; and as it would be
                trainer.train_step()
                outlived = ["of a step" in node.metadata for node in nodes()]
                assert any(outlived) == keeps
    finally:
        gc.enable()


EXACT = (
    "train.lr=0.0078125",  # halves of it are exact in float32, in which a graph reads them
    *("train.schedule=step", "train.milestones=[0.2, 0.4]", "train.gamma=0.5", "train.warmup=0"),
    "train.log_every=2",
)
STEPS = 12  # the first and each second one are measured: the last one by a replay


def trained(path, *overrides: str, tape: bool = True) -> tuple[Any, Tapes | None]:
    trainer = small_trainer(path, *EXACT, *overrides)
    tapes = taped(trainer) if tape else None
    trainer.fit(until=STEPS)
    return trainer, tapes


@pytest.fixture(scope="module")
def eager_run(tmp_path_factory):
    """The small run, eagerly."""
    return trained(tmp_path_factory.mktemp("eager"), *QUICK, tape=False)[0]


def assert_same_run(ours, theirs) -> None:
    """Bit for bit, but for running statistics, which operators that are traced sum in another order."""
    a, b = (trainer.state_dict() for trainer in (ours, theirs))
    for state in (a, b):
        for name in ("seconds", "recipe", "random"):
            del state[name]
        for part in (state["model"], state.get("ema", {}).get("average", {})):
            for name in [name for name in part if "running" in name]:
                del part[name]
    assert_equal(a, b)
    for (name, x), y in zip(ours.model.named_buffers(), theirs.model.buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=name)
    rows = [trainer.folder.metrics.read() for trainer in (ours, theirs)]
    assert untimed(rows[0]) == untimed(rows[1])
    assert ours.folder.gradients.read() == theirs.folder.gradients.read()


@every_kind
def test_a_replayed_run_is_the_eager_run(tmp_path, overrides):
    """Learning rates, step numbers, counts of the guard, averages and rows included."""
    replayed, tapes = trained(tmp_path / "auto", *overrides, "train.graph=auto")
    eager, _ = trained(tmp_path / "eager", *overrides, tape=False)
    # of steps: measured ones have a graph of their own
    kinds = 1 if "neuron.kind=relu" in overrides else 2
    assert (tapes.warmed, tapes.captures) == (kinds * graphs.WARM_UP, kinds)
    assert tapes.replays == STEPS - tapes.warmed + kinds  # each graph's second replay is timed
    said = "train.graph = auto: steps of this shape are replayed as a CUDA graph"
    assert said in replayed.display.text
    assert_same_run(replayed, eager)


def test_without_proof_if_the_recipe_says_true(tmp_path, eager_run):
    replayed, tapes = trained(tmp_path, *QUICK, "train.graph=true")
    assert (tapes.captures, tapes.replays) == (2, STEPS - 2 * graphs.WARM_UP)
    said = "train.graph = true: from here on steps of this shape are replayed"
    assert said in replayed.display.text
    assert_same_run(replayed, eager_run)


def test_with_true_an_error_is_an_error(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "train.graph=true")
    tapes = taped(trainer)
    tapes.capture = lambda call: (_ for _ in ()).throw(RuntimeError("no capture today"))
    with pytest.raises(RuntimeError, match="no capture today"):
        trainer.fit(until=STEPS)


def reads_back(trainer: Trainer) -> None:
    loss = trainer.loss
    trainer.loss = lambda currents, labels: loss(currents, labels) * float(currents.sum() < 1e30)


def has_no_memory_for_both(trainer: Trainer) -> None:
    work = trainer.run.work

    def no_memory(parts, measured):
        trainer.run.work = work
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    trainer.run.work = no_memory


def spoils(change: Callable[[Trainer, Any], object]) -> Callable[[Trainer, Tapes], None]:
    """Each replay does something more: `change` of the trainer and the results, loss and norm."""
    return lambda trainer, tapes: setattr(tapes, "replayed", lambda found: change(trainer, found))


AMISS = {
    "a replay takes 1e+03 ms, and an eager step": lambda _, tapes: setattr(tapes, "gains", False),
    "operation not permitted when stream is capturing": lambda trainer, _: reads_back(trainer),
    "the loss of its first replay is": spoils(lambda _, found: found[0].mul_(1.1)),
    "the norm of the gradient of its first replay is": spoils(lambda _, found: found[1].mul_(1.1)),
    "its first replay leaves weights": spoils(lambda t, _: t.model.fc.weight.data.add_(0.01)),
    "its first replay counts otherwise": spoils(lambda t, _: t.update.guard._skipped.add_(1)),
    "CUDA out of memory. Tried to allocate 2 GiB": lambda trainer, tapes: setattr(
        tapes, "captured", lambda _: has_no_memory_for_both(trainer)
    ),
}


@pytest.mark.parametrize("reason", AMISS)
def test_auto_falls_back_in_one_line_and_the_run_is_the_eager_run(tmp_path, reason, eager_run):
    trainer = small_trainer(tmp_path, *EXACT, *QUICK, "train.graph=auto")
    AMISS[reason](trainer, taped(trainer))
    trainer.fit(until=STEPS)
    (line,) = [line for line in trainer.display.text.splitlines() if "train.graph" in line]
    assert f"train.graph = auto: steps run eagerly, because {reason}" in line
    assert not trainer.run.captured
    assert_same_run(trainer, eager_run)


def test_a_step_that_is_not_finite_proves_nothing_and_the_next_one_does(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path, *EXACT, *QUICK, "train.graph=auto", "train.nonfinite=skip")
    tapes = taped(trainer)
    draw, drawn = trainer.next_batch, []

    def batch():
        images, labels = draw()
        drawn.append(len(drawn))
        return (images * float("nan") if len(drawn) in (6, 10) else images), labels

    monkeypatch.setattr(trainer, "next_batch", batch)
    trainer.fit(until=STEPS)
    assert (
        tapes.captures == 3
    )  # in step 6, which proves nothing, in step 7, and the measured one in 12
    assert len(trainer.run.captured) == 2
    counts = trainer.update.guard.read()
    assert (counts.skipped, counts.last) == (2, 10)  # the second by a replay


def test_on_a_cpu_why_there_is_none_is_said_to_who_asked(tmp_path):
    """Of "auto", the default, nobody on a CPU need be told."""
    said = {}
    for graph in ("auto", "true", "false"):
        text = small_trainer(tmp_path / graph, *QUICK, f"train.graph={graph}").display.text
        said[graph] = [line.strip() for line in text.splitlines() if "train.graph" in line]
    words = "train.graph = true: steps run eagerly, because a CUDA graph needs a GPU"
    assert said == {"auto": [], "true": [words], "false": []}


def test_what_stands_in_the_way_is_said():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert obstacle_of(gpu, ranks=1, scaled=False) == ""
    assert "needs a GPU" in obstacle_of(cpu, ranks=1, scaled=False)
    assert "the Python of plugins" in obstacle_of(gpu, ranks=1, scaled=False, own=True)
    assert "2 ranks exchange gradients" in obstacle_of(gpu, ranks=2, scaled=False)
    assert 'precision = "fp16"' in obstacle_of(gpu, ranks=1, scaled=True)


def test_adamw_is_told_that_it_is_captured():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.25, fused=True)
    (group,) = optimizer.param_groups
    rate = torch.zeros(())
    with rates_in_tensors(optimizer, [rate]):
        assert group["lr"] is rate
        assert group["capturable"] is True
    assert (group["lr"], group["capturable"]) == (0.25, False)


@pytest.fixture
def cuda() -> Iterator[SimpleNamespace]:
    """What a capture calls of CUDA: there is no GPU to answer."""
    names = ("Stream", "current_stream", "set_stream", "stream", "CUDAGraph", "graph_pool_handle")
    with mock.patch.multiple(
        torch.cuda, graph=mock.DEFAULT, **dict.fromkeys(names, mock.DEFAULT)
    ) as fake:
        yield SimpleNamespace(**fake)


def test_cuda_is_asked_to_capture_on_one_stream_with_errors_of_this_thread_alone(cuda):
    ours = graphs.CudaGraphs(torch.device("cuda", 0))
    stream, current = cuda.Stream.return_value, cuda.current_stream.return_value
    numbers = mock.MagicMock(), mock.MagicMock()
    assert ours.warm_up(lambda: numbers) is numbers
    cuda.stream.assert_called_once_with(stream)
    stream.wait_stream.assert_called_once_with(current)
    current.wait_stream.assert_called_once_with(stream)
    for number in numbers:
        number.record_stream.assert_called_once_with(current)
    graph, pool = cuda.CUDAGraph.return_value, cuda.graph_pool_handle.return_value
    assert ours.capture(lambda: numbers) == (graph.replay, numbers)
    cuda.graph.assert_called_once_with(graph, pool, stream, capture_error_mode="thread_local")


@pytest.mark.parametrize(
    ("version", "given_back"),
    [("2.11.0+cu130", ["ended", "released"]), ("2.12.1", ["released"]), ("2.13.1", [])],
)
def test_a_capture_that_fails_gives_back_its_stream_and_pool(
    cuda, monkeypatch, version, given_back
):
    """torch 2.11 leaves the pool open, and up to 2.13.0 unreleased; to release it twice would be an error."""
    pool: list[str] = []

    def end(device, of):
        if not version.startswith("2.11"):
            raise RuntimeError("not currently recording to this pool")
        pool.append("ended")

    release = lambda device, of: pool.append("released")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    monkeypatch.setattr(torch, "__version__", version)
    ours = graphs.CudaGraphs(torch.device("cuda", 0))
    with pytest.raises(ZeroDivisionError):
        ours.capture(
            lambda: 1 / 0
        )  # in a capture that ends well: the graph gives its own pool back
    assert pool == []
    cuda.CUDAGraph.return_value.pool.side_effect = RuntimeError("no preceding successful capture")
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("capture was invalidated")
    with pytest.raises(RuntimeError, match="capture was invalidated"):
        ours.capture(lambda: None)
    assert pool == given_back
    assert cuda.set_stream.mock_calls == [mock.call(cuda.current_stream.return_value)] * 2
