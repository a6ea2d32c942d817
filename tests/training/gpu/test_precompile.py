"""A training compiles few kernels, and before its first step, which changes nothing else.

In a process of its own, where Triton compiles and nothing is interpreted: a driver stands in for a GPU's and a compiler
that only takes notes for Triton's; what the kernels compute comes from the compiled C++.
"""

import json
from types import SimpleNamespace

import pytest
import torch

from spiketriton.system.ranks import Ranks
from spiketriton.training import session
from spiketriton.training.gpu import precompile
from tests.conftest import need_native
from tests.processes import said_by, start_ranks

BEGIN = """
import copy, json, sys
from pathlib import Path
import numpy as np
import torch
from profiling.harness.launcher import Driver, without_gpu
from spiketriton.gradients import prober
from spiketriton.gradients.through_time import Shares
from spiketriton.training import session
from spiketriton.training.gpu import precompile
from spiketriton.training.randomness import random_state
from spiketriton_kernels.window import passes
from spiketriton_kernels.backends import native, triton_neuron, triton_norm
from tests.small_runs import Lines, assert_equal, small_trainer
from tests.child import Compiled, stub_compiler

compiled, when = [], ["before the first step"]

class Noted(Compiled):
    def __init__(self, source):
        compiled.append((when[0], source.fn.__name__))

class Both:
    "Of two modules the same function, called one after the other; the second one's result counts."

    def __init__(self, *modules):
        self.modules = modules

    def __getattr__(self, name):
        def call(*args):
            return [getattr(module, name)(*args) for module in self.modules][-1]
        return call

passes._NEURON["triton"] = Both(triton_neuron, native)
passes._STATISTICS["triton"] = Both(triton_norm, native)
torch.set_num_threads(1)
precompile.compiles = session.compiles = lambda device: True
# which runs in eager PyTorch where Triton would compile: tests/gradients/test_through_time.py
prober.through_time = lambda model, layers, steps, loss: Shares(*np.zeros((3, len(layers), steps)))
"""

TRAINING = """
changes = ["model.name=resnet20", "model.width=16", "data.test_images=16", "train.max_steps=2", "train.log_every=2"]
changes += ["data.train_images=16", "train.batch_size=8"]
trainer = small_trainer(Path(sys.argv[1]), *changes, display=Lines())
with without_gpu(Driver()):
    stub_compiler(Noted)
    before = copy.deepcopy((trainer.state_dict(), random_state()))
    session.compile_kernels(trainer)
    assert_equal((trainer.state_dict(), random_state()), before)
    assert all(weight.grad is None for weight in trainer.model.parameters())
    when[0] = "later"
    trainer.fit()
print(json.dumps([compiled, trainer.display.text]))
"""


SHARED = """
from spiketriton.system.torchrun import ranks_of_torchrun

with ranks_of_torchrun() as ranks, without_gpu(Driver()):
    changes = ["model.block=" + sys.argv[2], "train.sync_bn=true", "data.test_images=16", "train.max_steps=2"]
    changes += ["train.log_every=2", "data.train_images=32"]
    trainer = small_trainer(Path(sys.argv[1]), *changes, display=Lines(), ranks=ranks)
    stub_compiler(Noted)
    before = copy.deepcopy(trainer.state_dict())
    session.compile_kernels(trainer)
    assert_equal(trainer.state_dict(), before)
    when[0] = "later"
    trainer.fit()
    print(json.dumps([compiled, trainer.display.text]))
"""


@pytest.mark.parametrize("block", ["ms", pytest.param("plain", marks=pytest.mark.slow)])
def test_what_norms_launch_that_ranks_share_is_compiled_before_the_first_step_too(tmp_path, block):
    """Each rank by itself: meanwhile the others wait for it, and could exchange nothing."""
    need_native()
    ranks = start_ranks("-c", BEGIN + SHARED, str(tmp_path / "run"), block, folder=tmp_path)
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    for output in outputs:
        (answer,) = [line for line in output.splitlines() if line.startswith("[[")]
        compiled, said = json.loads(answer)
        assert not [name for when, name in compiled if when == "later"]
        assert {"walk_kernel", "statistics_kernel"} <= {name for _, name in compiled}
        assert "kernels are compiled when" not in said


def test_a_training_compiles_at_most_30_kernels_all_of_them_before_its_first_step(tmp_path):
    need_native()
    compiled, said = said_by(BEGIN + TRAINING, str(tmp_path / "run"))
    assert not [name for when, name in compiled if when == "later"]
    assert {"fire_kernel", "walk_kernel", "statistics_kernel"} <= {name for _, name in compiled}
    assert sum(when == "before the first step" for when, _ in compiled) <= 30
    assert "kernels are compiled when" not in said


@pytest.mark.parametrize(
    ("rank", "here", "compiles", "expected"),
    [
        (0, 1, True, ["compiled", "met"]),
        (0, 4, True, ["compiled", "met"]),
        (3, 4, True, ["met", "compiled"]),
        (4, 4, True, ["compiled", "met"]),  # on the second machine
        (5, 4, True, ["met", "compiled"]),
        (0, 4, False, []),
        (1, 4, False, []),
    ],
)
def test_a_machines_first_rank_compiles_for_its_others(monkeypatch, rank, here, compiles, expected):
    """They would compile the same at once, on the same processors; all meet equally often."""
    did = []

    class Some(Ranks):
        def meet(self):
            did.append("met")

    ranks = Some()
    ranks.rank, ranks.ranks_here = rank, here
    monkeypatch.setattr(session, "compiles", lambda device: compiles)
    monkeypatch.setattr(precompile, "precompile", lambda *given: did.append("compiled"))
    train = SimpleNamespace(batch_size=8, accumulate=1, world_size=8)
    data = SimpleNamespace(train=train, facts=SimpleNamespace(image_shape=(1, 8, 8)), frames=0)
    trainer = SimpleNamespace(
        data=data,
        ranks=ranks,
        shares_statistics=False,
        device=torch.device("cpu"),
        monitor=SimpleNamespace(layers=["one"], probes=SimpleNamespace(probes=[]), watch=None),
        display=SimpleNamespace(note=None),
        model=SimpleNamespace(set_synchronised=lambda wanted: None),
        placement=None,
    )
    session.compile_kernels(trainer)
    assert did == expected
