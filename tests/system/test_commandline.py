"""The arguments that commands share."""

import pytest

from spiketriton.system.commandline import Parser
from spiketriton.system.errors import UserError


def test_what_may_be_left_out_is_not_required():
    parser = Parser("evaluate", "")
    parser.add_run()
    with pytest.raises(UserError, match=r"are required: RUN; spiketriton evaluate --help"):
        parser.parse_intermixed_args([])
