"""A client that stayed for one run ends as the run did, and says what it was asked for and has not left."""

from pathlib import Path

import pytest

from nufed.common.errors import DivergedError, NothingTrainedError, RunError
from nufed.deploy.commands.client_ending import check_ending

FILE = Path("mine.safetensors")


@pytest.mark.parametrize("ending", ["complete", "1"])
def test_a_run_that_came_to_its_end_is_well_unless_the_personal_model_is_missing(ending):
    check_ending(ending, server="here:1", unwritten=None)
    with pytest.raises(RunError, match=r"is over; the personal model mine\.safetensors was not written"):
        check_ending(ending, server="here:1", unwritten=FILE)


def test_a_search_ends_well_and_leaves_no_model():
    check_ending("tuned", server="here:1", unwritten=FILE)


@pytest.mark.parametrize(
    ("ending", "error"),
    [("interrupted", RunError), ("nothing-trained", NothingTrainedError), ("diverged", DivergedError)],
)
@pytest.mark.parametrize("unwritten", [None, FILE])
def test_any_other_ending_is_an_error_of_its_own(ending, error, unwritten):
    with pytest.raises(error) as raised:
        check_ending(ending, server="here:1", unwritten=unwritten)

    assert type(raised.value) is error
    assert ("was not written" in str(raised.value)) == bool(unwritten)
