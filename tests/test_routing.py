import pytest
import torch

from eelib.routing import exit_shares, route


def test_first_exit_that_reaches_its_threshold():
    confidences = torch.tensor([[0.6, 0.1, 0], [0.5, 0.9, 0], [0.1, 0.2, 0]])
    assert route(confidences, (0.6, 0.5)).tolist() == [0, 1, 2]


def test_extreme_thresholds_are_first_and_last_exit():
    confidences = torch.rand(20, 3)
    assert (route(confidences, (0.0, 0.0)) == 0).all()
    assert (route(confidences, (1.1, 1.1)) == 2).all()


def test_a_batch_mean_decides_for_all_of_it():
    confidences = torch.tensor([[0.9, 0], [0.0, 0], [0.9, 0], [0.9, 0], [0.1, 0]])
    assert route(confidences, (0.5,), group=4).tolist() == [0, 0, 0, 0, 1]
    assert route(confidences, (0.5,)).tolist() == [0, 1, 0, 0, 1]


def test_bad_input():
    with pytest.raises(ValueError, match="image 1 at exit 1 is NaN"):
        route(torch.tensor([[0.1, 0.2], [float("nan"), 0.1]]), (0.5,))
    with pytest.raises(ValueError, match="group: 0"):
        route(torch.rand(2, 2), (0.5,), group=0)


def test_shares():
    assert exit_shares(torch.tensor([0, 0, 2, 0])) == [0.75, 0, 0.25]
