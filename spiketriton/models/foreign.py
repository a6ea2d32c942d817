"""Any network as one of ours: a module that knows nothing of recipes, called as it was written to be called.

Its neurons are swapped for ours (`spiketriton_kernels.nn.swap`). A first call on noise, in eval mode, shows how the
module wants to be called and how it calls its neurons; what cannot give right numbers is refused by name.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.config.parts import named_object
from spiketriton.config.recipe import Arguments
from spiketriton.config.words import some
from spiketriton.models.agreement import refuse_other_parts
from spiketriton.models.convolutions import Sound, keep_sound
from spiketriton.models.inspection import (
    constants_of,
    failing,
    hidden_modules,
    leaves_of,
    needs_nothing,
    noise,
    parameters_of,
    refuse_wrapped,
    saved_buffers,
    shared_membrane,
    states_of,
    take_windows,
    watched,
    wrong_answer,
)
from spiketriton.models.layers import Parts, over_time
from spiketriton.models.memory import mark_spikes
from spiketriton.models.network import Network, trial, undisturbed
from spiketriton.neurons import SpikingNeuron, adopt, told_of_spikes
from spiketriton.plugins.tasks import has_time
from spiketriton.system.errors import UserError, one_line
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.adopt.draws import seeded
from spiketriton_kernels.adopt.swap import Difference, compare, fuse_compared

# what a function is told without being asked to, where it has a parameter of this name
_CLASSES = ("num_classes", "n_classes", "classes")
_CHANNELS = ("in_channels", "in_chans")
_STEPS = ("T", "time_steps", "timesteps", "num_steps")
_SIZES = ("img_size", "image_size", "img_size_h", "img_size_w")
_RESETS = ("reset", "reset_mem")  # SpikingJelly's and norse's, snnTorch's


def make_foreign(
    name: str,
    make: Callable[..., Any],
    parts: Parts,
    *,
    averages: bool,
    answer: tuple[int, ...],
    classes: int,
    channels: int,
    image_size: int,
) -> Network:
    """The network that `model.name = "MODULE:NAME"` names. UserError: it cannot be trained, and why."""
    known: dict[str, int] = dict.fromkeys(_CLASSES, classes)
    known |= dict.fromkeys(_CHANNELS, channels) | dict.fromkeys(_STEPS, parts.time_steps)
    known |= dict.fromkeys(_SIZES, image_size)
    given = _plain(parts.model.arguments)
    told = {n: known[n] for n in known if n in parameters_of(make) and n not in given}
    words = ", ".join(f"{n}={value!r}" for n, value in (told | given).items())
    with failing(f"{name}({words})", make):
        net = make(**told, **given)
    if isinstance(net, Network):
        return net
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{name} made a {type(net).__name__}; accepted: a function or class that makes a torch.nn.Module"
        )
    shape = (channels,) if parts.sequence else (channels, image_size, image_size)
    return ForeignNetwork(name, net, parts, averages, shape, answer, told)


def _plain(arguments: Arguments) -> dict[str, Any]:
    """Keyword arguments; a text "package.module:NAME" is what it names."""

    def one(value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+:\w+", value):
            return named_object(value, "model.arguments")
        if isinstance(value, tuple):
            return tuple(map(one, value))
        return _plain(value) if isinstance(value, Arguments) else value

    return {name: one(value) for name, value in arguments.items()}


class ForeignNetwork(Network):
    """A module that was written for another program, called as it asks for.

    Membranes and other states are forgotten before every call, but after `set_stateful`. `net` is the module itself.
    Where its `forward` has a parameter `lengths` and takes windows, it is given the valid steps of each sequence, int64
    [B]; None where all are.

    Args:
        name: "MODULE:NAME", for messages.
        net: the module, whose neurons are replaced in place.
        averages: whether an answer without time, [B, ...], will do.
        shape, answer: of an image, [C, H, W]; of the answer to it.
        told: arguments that it was made with and did not ask for.

    Attributes:
        takes: "time_first" ([T, B, C, H, W]), "images" ([B, C, H, W]) or "steps" (the same, for each step).
        idle: its parameters on which no answer depends.
        uncompared: why its answers are not compared with those of its own neurons; else "".
        differs: why no norm is joined with its neuron, where a copy answered otherwise; else "".

    Raises:
        UserError: it does not answer, or not to each image, or keeps a state that nothing resets.
    """

    draws = True  # perhaps  # type: ignore[assignment]
    uses_all_weights = False  # perhaps
    chunked = False  # its time may be inside, and its state is not all in neurons

    def __init__(
        self,
        name: str,
        net: nn.Module,
        parts: Parts,
        averages: bool,
        shape: tuple[int, ...],
        answer: tuple[int, ...],
        told: Mapping[str, int],
    ) -> None:
        super().__init__(parts, shape[0])
        self.name, self.net, self.told = name, net, dict(told)
        self.is_spiking, self.differs = True, ""
        refuse_wrapped(name, net)
        if parts.model.input == "time_first":
            take_windows(net)
        original, self.uncompared = None, ""
        try:
            original = copy.deepcopy(net)
        except Exception as error:  # somebody else's code
            self.uncompared = f"it cannot be copied: {one_line(error)}"
        self._ours = {name for name, part in net.named_modules() if isinstance(part, SpikingNeuron)}
        try:
            self.swapped = kernels.swap(net)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {error}") from None
        keep_sound(net)
        self._shape = shape
        self._lengths: dict[str, Tensor | None] = {}  # that the call at hand hands on
        if "lengths" in parameters_of(net.forward):
            self._lengths = {"lengths": None}
        self._continued: list[
            SpikingNeuron | kernels.Delays
        ] = []  # those that `set_stateful` made stateful
        self._layers: list[tuple[str, SpikingNeuron]] = []
        self._replaced: list[tuple[nn.Module, str]] = []
        self.unmeasured: dict[str, str] = dict(self.swapped.left)
        for module in net.modules():
            if isinstance(module, kernels.SpikingNeuron):
                adopt(module)
        self._soundly = False
        with undisturbed(net):
            with Sound() as sound:
                self.takes = self._recognised(parts.model.input, shape, answer)
            self._soundly = sound.met  # in its own forward, at the size of the images
            self._leave_out_other_windows(shape, answer)
            self._forget_membranes(shape)
            self._refuse_states(shape)
        self._refuse_lengths(shape, answer)
        with undisturbed(net):  # buffers are those that it was made with again
            self.reset()
            images = noise(_batch(parts.time_steps), shape)
            if original is not None and self.swapped.swapped:
                self._refuse_other_answers(original, images)
            if parts.model.fused:
                self.differs = fuse_compared(net, self.swapped, (images,), self._asked)
        for module in net.modules() if self.packed else ():
            if isinstance(module, SpikingNeuron) and module.is_binary:
                module.register_forward_hook(_mark)
        if not averages and not self.answers_each_step:
            raise UserError(
                f"loss.kind or loss.read need the answer of each step, and {name} gives one for all; accepted with it: "
                'loss.kind = "cross_entropy" with loss.read = "mean", or a network that returns [T, B, K]'
            )

    # ---- calling it

    @property
    def _image(self) -> str:
        """What it may be called with, in words."""
        return "[B, C]" if self.sequence else "[B, C, H, W]"

    @property
    def _window(self) -> str:
        return "[T, B, C]" if self.sequence else "[T, B, C, H, W]"

    def forward(
        self, images: Tensor, time_steps: int | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        if not self._lengths:
            return super().forward(images, time_steps, lengths)
        self._lengths = {"lengths": lengths}
        try:
            return super().forward(images, time_steps, lengths)
        finally:
            self._lengths = {"lengths": None}

    def currents(self, images: Tensor, steps: int) -> Tensor:
        if not self.streaming:
            self.reset()
        with self._in_place(), Sound() if self._soundly else nullcontext():
            found = self._called(self.net, self.takes, images, steps)
        return found if self.answers_each_step else found.unsqueeze(0)

    def _called(self, net: nn.Module, takes: str, images: Tensor, steps: int) -> Any:
        if takes == "time_first":
            whole = images if has_time(images) else over_time(images.unsqueeze(0), steps)
            return net(whole.contiguous(), **self._lengths)
        if takes == "steps":
            shown = images if has_time(images) else [images] * steps
            return torch.stack([net(image) for image in shown])
        if has_time(images):
            raise UserError(
                f"{self.name} takes images {self._image} and loops over time by itself, and these data are "
                f"{self._window}; accepted: a network that takes those, or one step of them"
            )
        if steps != self.time_steps:
            raise UserError(
                f"{self.name} loops over {self.time_steps} time steps by itself; accepted: that number, not {steps}"
            )
        return net(images)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Buffers that forward replaces stay the tensors that they are, of which averages and other ranks know."""
        own = [module.get_buffer(key) for module, key in self._replaced]
        for (module, key), buffer in zip(self._replaced, own, strict=True):
            module._buffers[key] = buffer.clone()  # which autograd may keep
        yield
        for (module, key), buffer in zip(self._replaced, own, strict=True):
            with torch.no_grad():
                buffer.copy_(module.get_buffer(key))
            module._buffers[key] = buffer

    def reset(self) -> None:
        for module in self.net.modules():
            for word in _RESETS:
                method = getattr(module, word, None)
                if callable(method) and needs_nothing(method):
                    method()
        self._first_step()

    def set_stateful(self, stateful: bool = True) -> None:
        """Whether each call continues the window where the last one ended; starts a new window.

        Windows of noise are then shown as a whole and one step at a time. UserError: it cannot continue a window, or
        answers otherwise to one in parts; it is then as if `stateful` were false.
        """
        calls = self._calls_in_a_window() if stateful else {}
        if stateful and (why := self._only_whole(calls)):
            raise UserError(
                f"{self.name} is shown whole windows only: {why}; accepted: predict, which shows a whole one, or a "
                "network that takes one step a call, or whose neurons are the kernels', each called once for a window"
            )
        self._continue(False)
        if stateful:
            once = [self.get_submodule(name) for name, counts in calls.items() if len(counts) == 1]
            neurons = [m for m in once if isinstance(m, SpikingNeuron) and not m.keeps_state]
            delays = [m for m in self.net.modules() if isinstance(m, kernels.Delays)]
            self._continued = [*neurons, *(m for m in delays if not m.stateful)]
            try:
                refuse_other_parts(self, self._shape, self._continue)
            except BaseException:
                self._continue(False)
                raise

    def _continue(self, stateful: bool) -> None:
        """`set_stateful` without a look; the neurons and delays in question are known."""
        for module in self._continued:
            module.stateful = stateful
        self.streaming = stateful
        self.reset()

    @torch.no_grad()
    def _calls_in_a_window(self) -> dict[str, list[int]]:
        """By name, how many steps each call of a neuron shows it, also where it is called with its norm."""
        if self.takes != "time_first":
            return {}
        self._continue(False)
        calls: dict[str, list[int]] = {}
        window = noise(2 * self.time_steps, self._shape).unflatten(0, (self.time_steps, 2))

        def count(name: str, spikes: Tensor) -> None:
            calls.setdefault(name, []).append(len(spikes))

        with undisturbed(self), told_of_spikes(self._neurons(), count):
            self(window.to(next(self.parameters(), window).device))
        return calls

    def _only_whole(self, calls: Mapping[str, list[int]]) -> str:
        """Why no call can continue a window; "" where perhaps one can."""
        if self.takes == "steps":  # a window is such calls already
            return ""
        if self.takes == "images":
            return f"it takes images {self._image} and loops over {self.time_steps} time steps by itself"
        if self.swapped.left:
            name, why = next(iter(self.swapped.left.items()))
            return f"{name} is not the kernels' ({why})"
        if parallel := self.parallel_neurons():
            return f"{parallel[0]} is a parallel neuron, which reads all steps at once"
        for name, counts in calls.items():
            if counts not in ([self.time_steps], [1] * self.time_steps):
                return f"{name} is called {len(counts)} times for a window, with {sum(counts)} steps in all"
        return ""

    def spiking_layers(self) -> list[tuple[str, SpikingNeuron]]:
        """Those that can be measured, in the order in which they are called."""
        return [layer for layer in self._layers if layer[0] not in self.unmeasured]

    def to(
        self, *args: Any, memory_format: torch.memory_format | None = None, **options: Any
    ) -> Any:
        """Memory stays as the module's own code, which may view it, was written for."""
        return super().to(*args, **options)

    def notes(self) -> list[str]:
        """What is said of it at the start of a run."""
        how = {
            "time_first": f"called with {self._window}",
            "images": f"called with {self._image}, loops over time by itself",
            "steps": f"called once for each time step, which takes longer than a call with {self._window}",
        }[self.takes]
        if self._lengths and self.takes == "time_first":
            how += " and lengths"
        answer = "" if self.answers_each_step else "; it answers with the mean over time"
        told = "".join(f", {name} = {value}" for name, value in self.told.items())
        kept = f", {len(self.swapped.left)} kept as they are" if self.swapped.left else ""
        ours = sum(isinstance(m, SpikingNeuron) for m in self.net.modules())
        before = ours - len(self.swapped.swapped)
        own = f"; {before} were the kernels' already" if before > 0 else ""
        lines = [
            f"called: {how}{answer}" + (f"; made with{told[1:]}" if told else ""),
            f"swapped: {len(self.swapped.swapped)} neurons to the kernels, {len(self.swapped.fused)} with the batch "
            f"norm in front{kept}{own}; network.txt lists each",
        ]
        if self.differs:
            lines.append(f"not fused: {self.differs}")
        if self.uncompared:
            lines.append(f"not compared with its own neurons: {self.uncompared}")
        if self.unmeasured:
            why = [f"{name} ({why})" for name, why in self.unmeasured.items()]
            lines.append(f"not measured: {some(why, 3)}")
        if self.idle:
            lines.append(f"not trained: {some(self.idle, 3)}, on which no answer depends")
        lines.append("operations and energy: not counted, there is no graph of this network")
        return lines

    def report(self) -> str:
        """The text of network.txt."""
        left = [f"  {name}: not measured, {why}" for name, why in self.unmeasured.items()]
        lines = [self.name, *self.notes(), "", str(self.swapped), *left, "", str(self.net), ""]
        return "\n".join(lines)

    # ---- finding out how it is called

    def _asked(self, net: nn.Module, images: Tensor) -> Any:
        """The answer of a copy to a first window."""
        return self._called(net, self.takes, images, self.time_steps)

    def _watched(self, takes: str, images: Tensor) -> tuple[Any, dict[str, list[int]]]:
        """Its answer to a new window, and by name how many steps each call of a neuron shows it."""
        self.reset()
        with watched(self.net) as calls:
            return self._called(self.net, takes, images, self.time_steps), calls

    def _recognised(self, takes: str, shape: tuple[int, ...], answer: tuple[int, ...]) -> str:
        """ "time_first", "images" or "steps"; sets what it answers and which neurons are measured."""
        steps, batch = self.time_steps, _batch(self.time_steps)
        images = noise(batch, shape)
        failed: dict[str, str] = {}
        refused = ""  # what was wrong with an answer to [T, B, C, H, W]
        for kind in ("time_first", "images") if takes == "auto" else (takes,):
            try:
                found, calls = self._watched(kind, images)
            except Exception as error:  # somebody else's code
                failed[kind] = f"{type(error).__name__}: {one_line(error)}"
                continue
            if kind == "images" and steps > 1 and calls and all(c == [1] for c in calls.values()):
                kind = "steps"
                found, calls = self._watched(kind, images)
            if not torch.equal(images, noise(batch, shape)):
                raise UserError(
                    f"{self.name} changes its images in place, which others read after it; accepted: a forward that "
                    "makes new tensors of them, such as 0.5 * x in place of x.mul_(0.5)"
                )
            wrong = shared_membrane(kind, calls, self._ours) or wrong_answer(
                kind, found, batch, steps, answer, calls
            )
            if wrong and kind == "time_first" and takes == "auto":
                refused = wrong
                continue
            if wrong:
                raise UserError(f"{self.name} {refused or wrong}")
            self.answers_each_step = found.ndim == 2 + len(answer)
            self._calls = calls
            self._measured(calls)
            self._learning(found, kind, images)
            return kind
        if refused:
            raise UserError(f"{self.name} {refused}")
        shapes = {"time_first": self._window, "images": self._image}
        sizes = {"time_first": [steps, batch, *shape], "images": [batch, *shape]}
        words = "; of ".join(f"{shapes[k]} = {sizes[k]}: {why}" for k, why in failed.items())
        kinds = {type(m).__name__ for m in self.net.modules() if isinstance(m, SpikingNeuron)}
        missing = re.search(rf"'({'|'.join(kinds)})' object has no attribute '(\w+)'", words)
        perhaps = ""
        if kinds and missing:
            perhaps = f". A swapped neuron is called as a module, and has no {missing[2]}"
        raise UserError(
            f"{self.name} answers to no images of this recipe. Of {words}. Accepted: a module that takes one "
            f"of the two; [model.arguments] are its arguments{perhaps}"
        )

    def _measured(self, calls: Mapping[str, list[int]]) -> None:
        """Which neurons are measured."""
        steps = self.time_steps
        neurons = {n: m for n, m in self.net.named_modules() if isinstance(m, SpikingNeuron)}
        for name, neuron in neurons.items():
            counts = calls.get(name, [])
            neuron.window = sum(counts)
            if not counts:
                self.unmeasured[f"net.{name}"] = "it is not called"
            elif neuron.window % steps or not {*counts} <= {1, steps}:
                self.unmeasured[f"net.{name}"] = f"it is called for {neuron.window} steps"
        self._layers = [(f"net.{name}", neurons[name]) for name in calls if name in neurons]

    def _refuse_other_answers(self, original: nn.Module, images: Tensor) -> None:
        """UserError: the module answered otherwise with its own neurons, as code does that asks for their class."""
        try:
            compare(original.eval(), self.net, (images,), self._asked, backward=False)
        except Difference as error:
            raise UserError(
                f"{self.name} answers otherwise with the kernels' neurons than with its own: {error}. Accepted: a "
                "forward that finds and sets its neurons by their names, not by their class"
            ) from None
        except Exception as error:  # its own, with its own neurons
            self.uncompared = f"{type(error).__name__}: {one_line(error)}"

    def _learning(self, found: Tensor, kind: str, images: Tensor) -> None:
        """Sets which parameters an answer does not depend on. UserError: it depends on others than the network's.

        What each call makes anew is a state to begin with, and no weight, although norse marks it as learning.
        """
        own = {id(p): name for name, p in self.net.named_parameters() if p.requires_grad}
        reached = {id(p): p for p in leaves_of(found)}
        strange = [p for key, p in reached.items() if key not in own]
        if strange:
            again = {id(p) for p in leaves_of(self._watched(kind, images)[0])}
            constants = constants_of(self.net)
            strange = [p for p in strange if id(p) in again and id(p) not in constants]
        if strange:
            raise UserError(
                f"{self.name} depends on a weight of {list(strange[0].shape)} that is none of its parameters and would "
                f"not be trained{hidden_modules(self.net)}; accepted: modules that are attributes or in a ModuleList, "
                "and functions that refer to no other copy of the network"
            )
        self.idle = [name for key, name in own.items() if key not in reached]

    def _leave_out_other_windows(self, shape: tuple[int, ...], answer: tuple[int, ...]) -> None:
        """A neuron that is shown more time steps of some images than of others has no rows to measure it in."""
        drawn = noise(2, shape)
        self._compare_windows(torch.zeros(1, *shape), "a blank image")
        for images in (drawn, drawn.abs(), -drawn.abs()):  # other ones may be drawn, or chosen
            before = saved_buffers(self.net)
            with trial(self.net):
                with failing(f"{self.name} in training mode", type(self.net).forward):
                    found = self._compare_windows(images, "training")
                self.reset()
            now = saved_buffers(self.net)
            self._replaced = [
                place for place, one in before.items() if now.get(place, one) is not one
            ]
            dims = 1 + len(answer) + self.answers_each_step
            if not isinstance(found, Tensor) or found.ndim != dims:
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(
                    f"{self.name} answers with another thing in training mode, {what}; accepted: one tensor of {dims} "
                    "dimensions, as in a test. Name a function that makes a module around it, whose forward "
                    "returns the one to train"
                )

    def _refuse_lengths(self, shape: tuple[int, ...], answer: tuple[int, ...]) -> None:
        """UserError: with lengths it fails, or gives an answer of another shape."""
        if not self._lengths or self.takes != "time_first":
            return
        steps, batch = self.time_steps, _batch(self.time_steps)
        window = noise(steps * batch, shape).unflatten(0, (steps, batch))
        known = 1 + torch.arange(batch) % steps
        for mode in (undisturbed, trial):
            with mode(self.net), seeded(devices=[]):
                with failing(f"{self.name} with lengths", type(self.net).forward):
                    found = self(window, lengths=known)
                self.reset()
            wanted = [*[steps] * self.answers_each_step, batch, *answer]
            if [*found.shape[-len(wanted) :]] != wanted:
                raise UserError(
                    f"{self.name} with lengths answers {list(found.shape)}; accepted: {wanted}, as without"
                )

    def _compare_windows(self, images: Tensor, what: str) -> Any:
        """Calls the network, whose neurons of other windows than at first are not measured."""
        found, calls = self._watched(self.takes, images)
        for name, neuron in self._layers:
            shown = sum(calls.get(name.removeprefix("net."), []))
            if shown != neuron.window:
                self.unmeasured[name] = (
                    f"{what} shows it {shown} time steps, and a test {neuron.window}"
                )
        return found

    def _forget_membranes(self, shape: tuple[int, ...]) -> None:
        """What is called once for a window keeps no membrane, where the network answers as before without one."""
        named = [(n, m) for n, m in self.net.named_modules() if isinstance(m, SpikingNeuron)]
        once = [m for name, m in named if self._calls.get(name) == [self.time_steps]]
        once = [m for m in once if m.step_mode == "m" and m.stateful]
        if not once:
            return
        before = self._both_answers(shape)
        for neuron in once:
            neuron.stateful = False
        try:
            alike = all(map(torch.equal, before, self._both_answers(shape)))
        except Exception:  # somebody else's code, which found none
            alike = False
        for neuron in () if alike else once:
            neuron.stateful = True
        self.reset()

    def _both_answers(self, shape: tuple[int, ...]) -> list[Tensor]:
        """In eval and in training mode, of the same draws."""
        images = noise(_batch(self.time_steps), shape)
        with seeded(devices=[]):
            answers = [self.currents(images, self.time_steps)]
        with trial(self.net), seeded(devices=[]):
            return [*answers, self.currents(images, self.time_steps)]

    def _refuse_states(self, shape: tuple[int, ...]) -> None:
        """A second window must begin where the first began. UserError, with the module that remembers."""
        images = noise(2, shape)
        weights = [p.detach().clone() for p in self.net.parameters()]
        self.reset()
        if not all(map(torch.equal, self.net.parameters(), weights)):
            raise UserError(
                f"{self.name}: reset() of one of its modules changes parameters, and it is called before every batch; "
                "accepted: a reset() that forgets membranes and other states alone"
            )
        before = states_of(self.net)
        with seeded(devices=[]):
            first = self.currents(images, self.time_steps)
        self.reset()
        kept = [
            name
            for name, value in states_of(self.net).items()
            if name not in before or not torch.equal(before[name].detach(), value.detach())
        ]
        with seeded(devices=[]):
            second = self.currents(images, self.time_steps)
        if not torch.equal(first, second):
            where = f": {', '.join(kept[:3])} is kept" if kept else hidden_modules(self.net)
            raise UserError(
                f"{self.name} answers differently to the same images a second time{where}; accepted: a state that the "
                "reset() method of its module forgets, as SpikingJelly's neurons do, or one that forward begins anew"
            )


def _batch(steps: int) -> int:
    """Of the images that it is shown at first: another number than that of the steps."""
    return 2 + (steps == 2)


def _mark(module: nn.Module, given: object, out: Tensor) -> Tensor:
    return mark_spikes(out)
