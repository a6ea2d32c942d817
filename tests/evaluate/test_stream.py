"""A run that is shown one time step after another answers as to the whole window, or is refused by name."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spiketriton import plugins
from spiketriton.api import Run
from spiketriton.config import Recipe, replace
from spiketriton.config.parts import IN_HAND, handed
from spiketriton.data.facts import Facts
from spiketriton.models import build_model
from spiketriton.neurons import SpikingNeuron as EngineNeuron
from spiketriton.plugins.tasks import Task, task_of
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.training.placement import Placement
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels import nn as kernels
from tests.models.support import lively
from tests.small_runs import small_recipe

T, B, K = 5, 3, 4
CLASSES = tuple("abcd")
IMAGES = Facts(
    name="images", classes=CLASSES, channels=2, image_size=8, mean=(0.4, 0.5), std=(0.2, 0.3), move="crop"
)  # fmt: skip
FRAMES = Facts(
    name="frames", classes=CLASSES, channels=2, image_size=8, mean=(), std=(), move="events", frames=T,
    count="log",
)  # fmt: skip
SIGNALS = Facts(
    name="signals", classes=CLASSES, channels=6, image_size=1, mean=(*range(6),), std=(0.5,) * 6,
    move="sequence", frames=T, sequence="given",
)  # fmt: skip
ROWS = Facts(
    name="rows", classes=CLASSES, channels=2, image_size=T, mean=(0.4, 0.5), std=(0.2, 0.3), move="crop",
    frames=T, sequence="rows",
)  # fmt: skip


@plugins.neuron("adapting")
class Adapting(EngineNeuron):
    """One of one's own, with a second state and a learnt constant."""

    states = ("v", "a")

    def __init__(self, config) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.3))

    def step(self, x: Tensor, v: Tensor, a: Tensor):
        h = 0.7 * v + x
        s = self.fire(h - 1.0 - self.beta * a)
        return s, h - s, 0.9 * a + s


def made(facts: Facts, *overrides: str, net: nn.Module | None = None) -> Run:
    """A run that nobody trained, whose neurons fire."""
    if net is not None:
        overrides = (f"model.name={IN_HAND}:Net", *overrides)
    recipe: Recipe = replace(
        small_recipe(f'plugins.modules=["{__name__}"]', *overrides), f"time_steps={T}"
    )
    torch.manual_seed(0)
    with handed(net):
        model = lively(build_model(recipe, **facts.sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("step_gain"):
            parameter.data.copy_(torch.linspace(0.5, 1.5, T))
        if name.endswith("neuron.bias"):  # of a parallel neuron, which fires above -bias
            parameter.data.fill_(-1.0)
    return Run(
        TrainedRun(
            folder=RunFolder(Path("run")), recipe=recipe, facts=facts, model=model,
            placement=Placement.of(recipe.train), step=0, checkpoint="last", conversion=None,
        )
    )  # fmt: skip


def window(facts: Facts) -> np.ndarray:
    """What somebody hands over, [B, T, ...]; of constant images [B, ...]."""
    rng = np.random.default_rng(0)
    if facts.move == "events":
        return rng.integers(0, 6, (B, T, 2, 8, 8)).astype(np.uint8)
    if facts.move == "sequence":
        return rng.normal(3, 2, (B, T, 6)).astype(np.float32)
    side = facts.image_size
    return rng.integers(0, 256, (B, 2, side, side)).astype(np.uint8)


def steps_of(facts: Facts, given: np.ndarray) -> list[np.ndarray]:
    if facts is ROWS:
        return [given[:, :, row].reshape(B, -1) for row in range(T)]
    return [given[:, t] if facts.frames else given for t in range(T)]


def so_far(run: Run, given: np.ndarray) -> list[Tensor]:
    """Answers after each step, by the currents of the whole window."""
    currents = []
    handle = run.model.register_forward_hook(lambda model, given, out: currents.append(out))
    last = run.predict(given)
    handle.remove()
    task = task_of(run.recipe.loss)
    found = [task.predict(currents[0][: t + 1]) for t in range(T)]
    torch.testing.assert_close(found[-1], last)
    return found


SHOWN = {"images": IMAGES, "frames": FRAMES, "signals": SIGNALS, "rows": ROWS}


@pytest.mark.parametrize(
    ("shown", "kind", "more"),
    [
        *(("images", kind, ()) for kind in ("lif", "ilif", "clif", "adapting")),
        *(("signals", kind, ("loss.read=last",)) for kind in ("if", "plif", "alif", "cuba")),
        ("signals", "masked_psn", ("loss.read=last", "neuron.order=3", "model.norm_gain=4.0")),
        ("signals", "sliding_psn", ("loss.read=last", "neuron.order=3")),
        ("rows", "sliding_psn", ("model.norm=tebn", "neuron.order=9")),
        ("frames", "lif", ("model.norm=tebn",)),
        ("images", "ilif", ("model.norm=tebn",)),
        ("frames", "adapting", ("model.norm=none",)),
        ("rows", "lif", ()),
        ("frames", "relu", ()),
    ],
)
def test_one_step_after_another_answers_as_the_whole_window(shown, kind, more):
    facts = SHOWN[shown]
    net = ("model.name=sequence", "model.width=12", "model.depth=2") if facts.sequence else ()
    run = made(facts, f"neuron.kind={kind}", *net, *more)
    given = window(facts)
    expected = so_far(run, given)
    assert not torch.allclose(expected[0], expected[-1], atol=1e-4) or kind == "relu"
    stream = run.stream()
    for _ in range(2):
        for frame, answer in zip(steps_of(facts, given), expected, strict=True):
            torch.testing.assert_close(stream.step(frame), answer, rtol=1e-4, atol=1e-5)
        assert stream.steps == T
        stream.reset()
    alone = [stream.step(frame[1]) for frame in steps_of(facts, given)]
    torch.testing.assert_close(alone[-1], expected[-1][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.predict(given), expected[-1])  # the run's network is as it was


def test_neurons_that_read_later_steps_are_refused_by_name():
    run = made(IMAGES, "neuron.kind=psn")
    with pytest.raises(UserError, match=r"is a PSN, which reads all steps.*accepted: neurons"):
        run.stream()


def test_streams_leave_the_run_alone_and_each_other():
    run = made(FRAMES)
    given = window(FRAMES)
    expected = so_far(run, given)
    run.model.train()
    before = copy.deepcopy(run.model.state_dict())
    one, other = run.stream(), run.stream()
    for t, frame in enumerate(steps_of(FRAMES, given)):
        torch.testing.assert_close(one.step(frame), expected[t], rtol=1e-4, atol=1e-5)
        other.step(frame[:1] + 1)
        torch.testing.assert_close(run.predict(given), expected[-1])
    assert run.model.training
    assert not run.model.streaming
    for _, neuron in run.model.spiking_layers():
        assert neuron.v is None
        assert not neuron.stateful
    assert all(p.requires_grad for p in run.model.parameters())
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_is_no_next_step_is_refused_and_nothing_was_shown():
    run = made(FRAMES, "model.norm=tebn")
    given = window(FRAMES)
    frames, expected = steps_of(FRAMES, given), so_far(run, given)
    stream = run.stream()
    stream.step(frames[0])
    for wrong, words in (
        (frames[1][:2], r"of shape \[2, 2, 8, 8\] does not continue the 1 steps before, of \[3, 2"),
        (frames[1][0], "does not continue"),
        (frames[1].astype(np.float32), r"a step of torch.float32; accepted: uint8 counts, \[2, 8, 8\]"),
        (frames[1][:, :1], r"of shape \[3, 1, 8, 8\]; accepted: \[2, 8, 8\], or \[B, 2, 8, 8\]"),
        (given, r"of shape \[3, 5, 2, 8, 8\]; accepted"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            stream.step(wrong)
    for frame, answer in zip(frames[1:], expected[1:], strict=True):
        torch.testing.assert_close(stream.step(frame), answer, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="tebn has gains for 5 time steps, but 6 are needed"):
        stream.step(frames[0])
    assert stream.steps == T  # it is still at the end of the window
    stream.reset()
    assert stream.step(frames[0][:2]).shape == (2, K)  # of any number again
    with pytest.raises(UserError, match=r"of shape \[5\]; accepted: \[6\], or \[B, 6\] of B"):
        made(SIGNALS, "model.name=sequence").stream().step(np.zeros(5))


def test_numbers_of_a_step_are_finite_ones():
    stream = made(SIGNALS, "model.name=sequence").stream()
    for wrong, words in (
        (
            [0, 1, 2, 3, np.nan, 5],
            r"a step with .* not finite, the first at \[0, 4\]; accepted: finite",
        ),
        ([0, 1, -np.inf, np.inf, 4, 5], "not finite"),
        ([True] * 6, r"a step of torch.bool \[1, 6\]; accepted: numbers \[6\], or \[B, 6\]"),
    ):
        with pytest.raises(UserError, match=words):
            stream.step(np.array(wrong))
    assert stream.step(np.full(6, 3e38, np.float32)).shape == (K,)  # of which the sum is not finite
    assert stream.steps == 1


@pytest.mark.parametrize("shown", SHOWN)
def test_a_step_looks_for_no_modules_and_makes_no_transform(shown, monkeypatch):
    """What all steps share is found once: at batch 1 such walks took as long as the network."""
    facts = SHOWN[shown]
    run = made(facts, *(("model.name=sequence",) if facts.sequence else ("model.norm=tebn",)))
    stream, walks = run.stream(), []
    own, walk = set(stream._model.modules()), nn.Module.named_modules

    def seen(module: nn.Module, *given, **options):
        walks.extend([module] if module in own else [])
        return walk(module, *given, **options)

    monkeypatch.setattr(nn.Module, "named_modules", seen)
    monkeypatch.setattr("spiketriton.data.given.transform_of", lambda *a: walks.append(a))
    for frame in steps_of(facts, window(facts)):
        stream.step(frame)
    assert not walks
    stream.reset()
    assert walks  # by which they would be seen


@plugins.loss("loudest_step")
class Loudest(Task):
    """Its prediction reads each step."""

    score = "loudness"

    def loss(self, currents: Tensor, targets: Tensor) -> Tensor:
        return (currents.amax(0) - targets).square().mean()

    def measure(self, currents: Tensor, targets: Tensor) -> Tensor:
        return currents.amax(0).sum()

    def predict(self, currents: Tensor, lengths: Tensor | None = None) -> Tensor:
        return currents.amax(0)


def test_a_task_of_ones_own_is_given_all_steps_so_far():
    run = made(FRAMES, "loss.kind=loudest_step")
    given = window(FRAMES)
    stream = run.stream()
    for frame, answer in zip(steps_of(FRAMES, given), so_far(run, given), strict=True):
        torch.testing.assert_close(stream.step(frame), answer, rtol=1e-4, atol=1e-5)


# ---- networks that were handed over


class Window(nn.Module):
    """Takes [T, B, C, H, W]: two layers, of neurons that are given."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.enter, self.more, self.head = nn.Linear(128, 16), nn.Linear(16, 16), nn.Linear(16, K)
        self.first, self.second = first, copy.deepcopy(first) if second is None else second

    def spikes(self, x: Tensor) -> Tensor:
        return self.second(self.more(self.first(2 * self.enter(x.flatten(2)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spikes(x))


class Delayed(Window):
    """With delays between its layers."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__(first)
        self.more = kernels.Delays(16, 16, 3)


class Mean(Window):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spikes(x).mean(0))


class Squared(Window):
    """Its mean over time is not that of its steps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spikes(x).mean(0) ** 2)


class Attends(Window):
    """Over time."""

    def forward(self, x: Tensor) -> Tensor:
        s = self.spikes(x)
        share = torch.einsum("tbf,ubf->btu", s, s).softmax(2)
        return self.head(torch.einsum("btu,ubf->tbf", share, s))


class Twice(Window):
    """One neuron in two places."""

    def spikes(self, x: Tensor) -> Tensor:
        return self.first(self.more(self.first(2 * self.enter(x.flatten(2)))))


class OwnState(Window):
    """A trace that begins at zero in each call."""

    def forward(self, x: Tensor) -> Tensor:
        trace, out = 0.0, []
        for s in self.spikes(x):
            trace = 0.5 * trace + s
            out.append(self.head(trace))
        return torch.stack(out)


class Loop(Window):
    """Over time by itself, its neurons one step a call."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.spikes(frame[None])[0]) for frame in x])


class Step(nn.Module):
    """One step a call, [B, C, H, W]."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.enter, self.neuron, self.head = nn.Linear(128, 16), neuron, nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(2 * self.enter(x.flatten(1))))


class Images(Step):
    """Loops over time by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Images, self).forward(x) for _ in range(T)])


class Own(kernels.SpikingNeuron):
    states = ("v",)

    def step(self, x: Tensor, v: Tensor):
        h = 0.8 * v + x
        s = self.fire(h - 1.0)
        return s, h - s


def of_spikingjelly(mode: str) -> nn.Module:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    return neuron.LIFNode(step_mode=mode)


def of_snntorch() -> nn.Module:
    return pytest.importorskip("snntorch").Leaky(beta=0.8, init_hidden=True)


CONTINUED = {
    "lif": lambda: Window(kernels.LIF()),
    "ilif and alif": lambda: Window(kernels.ILIF(), kernels.ALIF()),
    "own": lambda: Window(Own(), kernels.CLIF()),
    "eager": lambda: Window(Own(backend="eager")),
    "stateful already": lambda: Window(kernels.LIF(stateful=True), kernels.PLIF()),
    "delays": lambda: Delayed(kernels.LIF()),
    "sliding PSN": lambda: Window(kernels.SlidingPSN(2)),
    "mean over time": lambda: Mean(kernels.CuBaLIF()),
    "norm and neuron": lambda: Window(kernels.BatchNormLIF(16), kernels.IF()),
    "loop within": lambda: Loop(kernels.LIF(stateful=True)),
    "spikingjelly, windows": lambda: Window(of_spikingjelly("m")),
    "steps": lambda: Step(kernels.LIF(step_mode="s")),
    "spikingjelly, steps": lambda: Step(of_spikingjelly("s")),
    "snntorch, steps": lambda: Step(of_snntorch()),
}


@pytest.mark.parametrize("name", CONTINUED)
@pytest.mark.parametrize("shown", ["images", "frames"])
def test_a_handed_network_continues_its_window(name, shown):
    facts = SHOWN[shown]
    run = made(facts, net=CONTINUED[name]())
    net, given = run.model, window(facts)
    stream, frames = run.stream(), steps_of(facts, given)
    last = run.predict(given)
    for _ in range(2):
        answers = [stream.step(frame) for frame in frames]
        torch.testing.assert_close(answers[-1], last, rtol=1e-4, atol=1e-5)
        stream.reset()
    kept = {n: m.stateful for n, m in net.named_modules() if isinstance(m, kernels.SpikingNeuron)}
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(T, B, 2, 8, 8, generator=generator)
    with torch.no_grad():
        whole = net(x)
        net.set_stateful()  # by hand
        for cuts in ([1] * T, [2, 3]):
            parts = torch.cat([net(chunk) for chunk in x.split(cuts)])
            if net.answers_each_step:
                torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
            elif len(set(cuts)) == 1:
                torch.testing.assert_close(parts.mean(0), whole[0], rtol=1e-4, atol=1e-5)
            net.reset()
        net(x[:2])
        net.set_stateful(False)
        for _ in range(2):
            assert torch.equal(net(x), whole)
    assert kept == {
        n: m.stateful for n, m in net.named_modules() if isinstance(m, kernels.SpikingNeuron)
    }


REFUSED = {
    "attention": (lambda: Attends(kernels.LIF()), "Net answers otherwise to a window one step"),
    "own state": (lambda: OwnState(kernels.LIF()), "begins anew in each call; accepted: predict"),
    "square": (lambda: Squared(kernels.LIF()), "something in it reads other time steps"),
    "twice": (lambda: Twice(kernels.LIF(stateful=True)), "first is called 2 times for a window, with 10"),
    "images": (lambda: Images(kernels.LIF(step_mode="s")), "loops over 5 time steps by itself"),
    "parallel": (lambda: Window(kernels.PSN(T)), "net.first is a .*PSN, which reads all"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_handed_network_that_needs_whole_windows_is_refused_by_name(name):
    make, words = REFUSED[name]
    run = made(IMAGES, net=make())
    whole = run.predict(window(IMAGES))
    with pytest.raises(UserError, match=words):
        run.stream()
    if name != "parallel":
        with pytest.raises(UserError, match=words):
            run.model.set_stateful()
    assert not run.model.streaming
    assert torch.equal(run.predict(window(IMAGES)), whole)
