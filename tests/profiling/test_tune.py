"""Which launches are fastest, by a clock that is made up, into the file that they are read from."""

import json

import pytest
import torch

from profiling import run
from profiling.harness import session
from profiling.harness.contenders import OURS, Options
from profiling.harness.timing import Timing
from profiling.sections import tune
from spiketriton_kernels import use_backend
from spiketriton_kernels.backends import tuning
from spiketriton_kernels.backends.triton_launch import telling
from spiketriton_kernels.backends.tuning import KERNELS, Tuning

SECONDS = {
    "": 1.0,
    "width=4": 0.9,
    "ahead=4": 0.8,
    "warps=8": 0.99,
    "ahead=2": 1.1,
    "ahead=1": 0.5,  # of the norm's fire, where it is wrong
}


@pytest.fixture
def clock(monkeypatch):
    def race(works, effort):
        taken = {name: SECONDS[name.removeprefix(OURS).strip()] for name in works}
        # what disturbs a round disturbs all of them
        return {name: Timing((one, 3 * one, 5 * one)) for name, one in taken.items()}

    monkeypatch.setattr(session, "race", race)
    few = {name: tune.SETTINGS[name] for name in ("norm fire", "norm backward")}
    monkeypatch.setattr(tune, "SETTINGS", few)


def test_the_fastest_right_setting_is_kept_beside_what_other_cards_have(
    tmp_path, monkeypatch, clock
):
    results = tune.Set.results

    def mistaken(self, inputs):
        spikes, rest = results(self, inputs)
        return (1 - spikes, rest) if self.setting == Tuning(ahead=1) else (spikes, rest)

    monkeypatch.setattr(tune.Set, "results", mistaken)
    old = {("norm fire", 3, torch.float32): Tuning(warps=2)}
    kept = {("walk", 3, torch.float32): Tuning(width=8)}
    tuning.write(tmp_path / "tuning.json", {"9.0": old, "cpu": old | kept})
    words = ["tune", "--quick", "--device", "cpu", "--peers", "none", "--out", str(tmp_path)]
    assert run.main(words) == 1  # as a wrong result of ours always
    found = tuning.read(tmp_path / "tuning.json")
    ahead = Tuning(ahead=4)
    cases = {("norm fire", 3, torch.float32): ahead, ("norm backward", 3, torch.float32): ahead}
    assert found == {"9.0": old, "cpu": kept | cases}
    (file,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["tuned"] for row in rows} == {"norm fire", "norm backward"}


def test_what_gains_too_little_leaves_the_reasoned_choice(tmp_path, monkeypatch, clock, capsys):
    monkeypatch.setitem(SECONDS, "ahead=4", 0.981)
    monkeypatch.setitem(SECONDS, "width=4", 0.985)
    monkeypatch.setattr(tune, "SETTINGS", {"norm backward": tune.SETTINGS["norm backward"]})
    file = tmp_path / "tuning.json"
    tuning.write(file, {"cpu": {("norm backward", 3, torch.float32): Tuning(ahead=4)}})
    words = ["tune", "--quick", "--device", "cpu", "--peers", "none", "--out", str(tmp_path)]
    assert run.main(words) == 0
    assert tuning.read(file) == {"cpu": {}}
    shown = capsys.readouterr()
    assert "0 of 1 kernels are faster by another setting" in shown.err
    assert "norm backward, within bn_lif_residual" in shown.out
    assert f"{OURS} ahead=4" in shown.out


def test_every_kernel_is_tried_by_settings_that_it_has():
    assert tune.SETTINGS.keys() == tune.OPERATION.keys() == KERNELS.keys()
    for name, settings in tune.SETTINGS.items():
        assert 4 <= len(settings) <= 6
        for setting in settings:
            ((field, _),) = [(f, v) for f, v in setting._asdict().items() if v is not None]
            assert field in KERNELS[name]
    cases = tune.cases(Options(torch.device("cpu")))
    assert {(case.T, case.dtype) for case in cases} == {(4, "bf16"), (10, "bf16")}
    assert len(cases) == 2 * len(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_raced_is_the_kernel_launched_otherwise(triton_backend, monkeypatch, kernel):
    """And no other one, within an operation that launches it."""
    options = Options(torch.device("cpu"), quick=True)
    monkeypatch.setattr(tune, "SETTINGS", {kernel: [Tuning(warps=8)]})
    (case,) = tune.cases(options)
    usual, other = [], []
    with use_backend("triton"):
        for one, seen in zip(case.contenders(options), (usual, other), strict=True):
            work = one.build()

            def told(kernel, programs, args, named, seen=seen):
                seen.append((kernel.__name__, named["num_warps"]))
                return False

            with telling(told):
                work()
    assert [name for name, _ in usual] == [name for name, _ in other]
    assert {warps for _, warps in usual} == {4}
    (changed,) = [name for name, warps in other if warps == 8]
    assert changed.removesuffix("_kernel").split("_")[-1] in (kernel.split()[0], kernel.split()[-1])


def test_the_fastest_is_kept_that_did_not_fail_after_it_was_timed():
    row = {"tuned": "fire", "T": 4, "dtype": "bf16", "status": "ok", "times_ours": 1.0}
    fast = row | {"contender": f"{OURS} width=4", "setting": {"width": 4}, "times_ours": 0.5}
    rows = [row | {"contender": OURS}, fast | {"status": "failed"}]
    case = "fire", 4, torch.bfloat16
    assert tune.fastest(rows) == {case: Tuning()}
    slower = fast | {"setting": {"ahead": 4}, "times_ours": 0.7}
    assert tune.fastest([*rows, fast, slower]) == {case: Tuning(width=4)}
