"""The gate learns which budget is worth its layers, from the image alone."""

import pytest
import torch

from proscale.engine.gate_training import HELD_OUT, ExitQuality, train_gate

EXITS = [(1, 1, 1), (3, 3, 3)]


@pytest.fixture
def data():
    """Images of two kinds: on those with a positive first channel layers give 0.2 more PQ."""
    tokens = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    gain = torch.where(tokens[:, 0] > 0, 0.2, 0.0)
    return ExitQuality(tokens, torch.stack((torch.full((200,), 0.5), 0.5 + gain), dim=1))


def test_layers_go_where_they_pay(data):
    gate, report = train_gate(data, EXITS, beta=0.01)
    held_out = torch.arange(200) % HELD_OUT == HELD_OUT - 1
    needs_more = data.tokens[held_out, 0] > 0
    choice = gate.score(data.tokens[held_out]).argmax(dim=1).bool()
    assert (choice == needs_more).float().mean() > 0.9
    assert report.chosen[3, 3, 3] == pytest.approx(choice.float().mean().item())
    assert report.quality > max(report.of_exits.values()) - 0.01
    assert report.layers == pytest.approx(3 + 6 * report.chosen[3, 3, 3], rel=1e-5)


@pytest.mark.parametrize(("beta", "exit_"), [(0.0, (3, 3, 3)), (0.1, (1, 1, 1))])
def test_beta_is_what_a_layer_has_to_be_worth(data, beta, exit_):
    better = ExitQuality(data.tokens, data.quality + torch.tensor([0.0, 0.1]))
    _, report = train_gate(better, EXITS, beta=beta)
    assert report.chosen[exit_] == 1


def test_training_is_repeatable(data):
    first, second = (train_gate(data, EXITS, beta=0.01)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
