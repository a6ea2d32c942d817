"""What is measured compiles its kernels before its check, at once. A driver stands in for a GPU's, a stub compiles."""

from tests.processes import said_by

PROGRAM = """
import json
import torch
from profiling.harness.contenders import OURS, Options
from profiling.harness.launcher import Driver, without_gpu
from profiling.sections import kernels
from profiling.sections.recipes import find_recipe
from profiling.sections.step import TWIN, TrainingStep
from spiketriton.training.gpu import precompile
from tests.child import Compiled, stub_compiler

compiled, when = [], [""]

class Noted(Compiled):
    def __init__(self, source):
        compiled.append((when[0], source.fn.__name__))

torch.set_num_threads(1)
options = Options(torch.device("cpu"), quick=True)
small = ("model.width=4", "train.batch_size=4", "data.image_size=8")
cases = [TrainingStep(find_recipe("quickstart", small), options)]
cases += [kernels.KernelCase(op="bn_lif_current", mode="training", T=3, shape=(2, 8, 4, 4))]
with without_gpu(Driver()):
    stub_compiler(Noted)
    precompile.compiles = kernels.compiles = lambda device: True
    for case in cases:
        ours = {one.name: one for one in case.contenders(options)}
        work = ours[OURS].build()
        when[0] = "ahead"
        work.compile_ahead()
        when[0] = "later"
        work()
    for other in (TWIN, "torch.compile"):  # no launches of ours
        {one.name: one for one in cases[0].contenders(options)}[other].build().compile_ahead()
    ours["eager"].build().compile_ahead()
print(json.dumps(compiled))
"""


def test_kernels_of_a_step_and_of_an_operation_are_compiled_before_their_check():
    compiled = said_by(PROGRAM)
    assert {when for when, _ in compiled} == {"ahead"}
    names = [name for _, name in compiled]
    assert {"fire_kernel", "walk_kernel", "statistics_kernel"} <= set(names)
    assert names.count("norm_backward_kernel") > 1
