"""The last model of a run is announced as such, and to nobody else."""

import torch
from flwr.app import ConfigRecord, RecordDict

from nufed.common.wire import EvaluateRequest, TrainRequest

PARAMS = {"w": torch.ones(2)}


def test_a_final_evaluation_says_so():
    """What is written is read back."""
    for final in (False, True):
        request = EvaluateRequest(PARAMS, 3, final)

        read = EvaluateRequest.from_records(request.to_records())

        assert (read.round, read.final) == (3, final)


def test_servers_that_know_no_final_evaluation_are_understood():
    """Flower's own strategies send the round alone."""
    assert not EvaluateRequest.from_records(TrainRequest(PARAMS, 3).to_records()).final


def test_final_means_one():
    """A server's other use of the word is not taken for ours."""
    records = EvaluateRequest(PARAMS, 3).to_records()

    other = RecordDict({**records, "config": ConfigRecord({"server-round": 3, "final": "no"})})

    assert not EvaluateRequest.from_records(other).final
