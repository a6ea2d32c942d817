"""SpikingJelly's own tests of neurons, with ours wherever a test makes one that we replace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.child import environment
from tests.suites.run import fetched

MEMORIES = "SpikingJelly 2's states as arguments: _memories, functional_forward"
CLASS = "asks whether the node is an instance of SpikingJelly's class"
KNOWN = {
    "spikingjelly/test/activation_based/test_functional_neuron.py": {
        "test_ilif_step_matches_module": "surrogate_function",
        "test_materialize_states_is_pure": MEMORIES,
        "test_neuron_functional_forward_is_pure_and_backs_regular_forward": MEMORIES,
        "test_store_v_seq_does_not_change_functional_state_layout": MEMORIES,
    },
    "spikingjelly/test/activation_based/test_ilif_node.py": {
        "test_ilif_reuses_lif_dynamics_and_limits_triton_to_multi_step": CLASS,
        "test_ilif_uses_spike_count_surrogate": "surrogate_function",
        "test_ilif_functional_forward_is_pure_and_backs_regular_forward": MEMORIES,
    },
    "spikingjelly/test/activation_based/test_memory.py": {
        "test_named_memories": MEMORIES,
        "test_named_memories_nested": MEMORIES,
        "test_memories": MEMORIES,
        "test_extract_memories": MEMORIES,
        "test_load_memories_length_mismatch": MEMORIES,
        "test_memory_module_functional_forward_is_pure_and_backs_regular_forward": MEMORIES,
    },
}
"""Tests that fail with ours in place, and what each needs that ours do not have."""

PASSED = {
    "test_functional_neuron.py": 7,
    "test_ilif_node.py": 6,
    "test_memory.py": 6,
}


@pytest.mark.parametrize("file", KNOWN)
def test_their_tests_pass_with_our_neurons(file, tmp_path):
    path = fetched(file)
    pytest.importorskip("spikingjelly")
    variables = environment(SUITE_RESULTS=str(tmp_path / "results.json"))
    variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "replaced"]
    ini = tmp_path / "pytest.ini"  # or this project's would be found above build/suites
    ini.write_text("[pytest]\n")
    command = [*words, "-c", str(ini), "--rootdir", str(tmp_path), str(path)]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    ours = {name: found for name, found in results.items() if found["ours"]}
    failed = {name for name, found in ours.items() if found["outcome"] == "failed"}
    print(f"\n{file}: {len(ours)} tests make one of ours, {len(ours) - len(failed)} pass")
    assert {name.partition("[")[0] for name in failed} == {*KNOWN[file]}, failed
    assert sum(found["outcome"] == "passed" for found in ours.values()) == PASSED[path.name]
