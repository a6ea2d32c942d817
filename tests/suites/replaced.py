"""A pytest plugin: neurons of SpikingJelly that a test makes are ours.

pytest -p replaced FILE, with SUITE_RESULTS=results.json: for each test its outcome, and whether it had one of ours.
"""

import json
import os
from importlib import import_module

import pytest

from spiketriton_kernels.nn import SpikingNeuron, peers

REPLACED = {
    "spikingjelly.activation_based.neuron": (
        *("IFNode", "LIFNode", "ParametricLIFNode", "ILIFNode", "ComplementaryLIFNode"),
    ),
}
_made: list[object] = []
_results: dict[str, dict[str, object]] = {}


def _maker(theirs):
    def make(*given, **options):
        node = theirs(*given, **options)
        try:
            ours = peers.translate(node)
        except peers.Left:  # swap leaves it, and names it
            return node
        _made.append(ours)
        return ours

    return make


for module_name, names in REPLACED.items():
    module = import_module(module_name)
    for name in names:
        setattr(module, name, _maker(getattr(module, name)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    _made.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        given = [*_made, *getattr(item, "callspec", item).__dict__.get("params", {}).values()]
        given += item.funcargs.values()
        ours = any(isinstance(one, SpikingNeuron) for one in given)
        why = "" if call.excinfo is None else call.excinfo.exconly().splitlines()[0]
        _results[item.name] = {"outcome": report.outcome, "ours": ours, "why": why}
    return report


def pytest_sessionfinish():
    with open(os.environ["SUITE_RESULTS"], "w") as file:
        json.dump(_results, file, indent=1)
