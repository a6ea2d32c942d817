"""What a forked process finds: imports cost it nothing, and neither does its end."""

from tests.processes import done

SEEN = """
import gc, sys
print("spiketriton.training.trainer" in sys.modules, "spiketriton.api" in sys.modules, gc.get_freeze_count() > 100_000)
"""


def test_a_forked_process_has_imported_the_engine(tmp_path):
    """Or each of some hundred takes five seconds of a processor more."""
    ended = done("-c", SEEN, folder=tmp_path, pictures=True)
    assert (ended.stdout.split(), ended.stderr) == (["True"] * 3, "")
