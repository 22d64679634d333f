"""Queries from tokens, and masks that know their distances."""

import pytest
import torch

from proscale.modeling import HungarianMatcher
from proscale.modeling.pixel_decoders.deformable_encoder import cell_centres
from proscale.modeling.transformer_decoder.query_selection import (
    CELLS_PER_UNIT,
    INITIAL_LOGIT,
    INITIAL_RADIUS,
    QuerySelection,
    RelativeCoordinates,
)
from proscale.ops import reference_operators

SIZES = [(2, 3), (4, 6)]


@pytest.fixture
def build(build):
    """As the one of all decoders, with queries from tokens."""
    keys = ("MODEL.MASK_FORMER.SELECTED_QUERIES", 7, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 2)
    return lambda *overrides: build(*keys, *overrides)


def test_cells_are_counted_row_by_row():
    centres = cell_centres(((2, 4),), torch.device("cpu"))
    assert centres[0].tolist() == [0.125, 0.25]
    assert centres[1].tolist() == [0.375, 0.25]
    assert centres[-1].tolist() == [0.875, 0.75]


def test_the_likeliest_tokens_become_queries():
    torch.manual_seed(0)
    selection = QuerySelection(8, count=2, test_count=5)
    tokens = [torch.randn(1, h * w, 8) for h, w in SIZES]
    positions = [torch.randn(h * w, 8) for h, w in SIZES]
    # Two classes and “no object”; token 4 of the first level and 10 of the second are objects.
    logits = torch.zeros(1, 30, 3)
    logits[0, 4, 0], logits[0, 6 + 10, 1] = 3.0, 5.0
    chosen = selection(tokens, positions, SIZES, lambda _: logits)
    assert chosen.content.shape == (1, 2, 8)
    # The second level's row 1, column 4; the first level's row 1, column 1.
    torch.testing.assert_close(
        chosen.places[0], torch.tensor([[4.5 / 6, 1.5 / 4], [1.5 / 3, 1.5 / 2]])
    )
    torch.testing.assert_close(chosen.position[0], torch.stack((positions[1][10], positions[0][4])))
    assert selection.eval()(tokens, positions, SIZES, lambda _: logits).places.shape == (1, 5, 2)


def test_few_tokens_are_all_chosen():
    selection = QuerySelection(8, count=50, test_count=50)
    tokens, positions = [torch.randn(3, 6, 8)], [torch.randn(6, 8)]
    chosen = selection(tokens, positions, [(2, 3)], lambda x: x[..., :3])
    assert chosen.places.shape == (3, 6, 2)
    # An exported file's number of queries is constant.
    with reference_operators():
        exported = selection(tokens, positions, [(2, 3)], lambda x: x[..., :3])
    assert exported.places.shape == (3, 50, 2)
    torch.testing.assert_close(exported.content[:, :6], chosen.content)


def test_masks_are_polynomials_of_the_distance():
    torch.manual_seed(0)
    coordinates, size = RelativeCoordinates(8), (5, 7)
    torch.nn.init.normal_(coordinates.ellipse.weight, std=0.2)
    queries, places = torch.randn(2, 4, 8), torch.rand(2, 3, 2)
    features = coordinates.extend_features(torch.zeros(2, 6, *size))
    embeddings = coordinates.extend_embeddings(torch.zeros(2, 4, 6), queries, places, size)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    # A learned query has no place.
    assert not masks[:, 0].any()
    dx, dy, width_x, width_y, logit = coordinates.ellipse(queries[:, 1:]).unbind(-1)
    x = (torch.arange(7) + 0.5) / CELLS_PER_UNIT
    y = (torch.arange(5) + 0.5)[:, None] / CELLS_PER_UNIT
    centre_x = (places[..., 0] * 7 / CELLS_PER_UNIT + dx)[..., None, None]
    centre_y = (places[..., 1] * 5 / CELLS_PER_UNIT + dy)[..., None, None]
    expected = logit[..., None, None] - (
        width_x.exp()[..., None, None] * (x - centre_x) ** 2
        + width_y.exp()[..., None, None] * (y - centre_y) ** 2
    )
    torch.testing.assert_close(masks[:, 1:], expected, rtol=1e-4, atol=1e-4)


def test_a_new_mask_is_a_circle_around_its_token():
    coordinates, size = RelativeCoordinates(8), (32, 32)
    features = coordinates.extend_features(torch.zeros(1, 1, *size))
    place = cell_centres((size,), torch.device("cpu"))[32 * 10 + 20].view(1, 1, 2)
    embedding = coordinates.extend_embeddings(
        torch.zeros(1, 1, 1), torch.randn(1, 1, 8), place, size
    )
    mask = (embedding @ features.flatten(2)).view(size)
    assert mask.argmax() == 32 * 10 + 20
    assert mask.max().item() == pytest.approx(INITIAL_LOGIT, abs=1e-3)
    radius = INITIAL_RADIUS * CELLS_PER_UNIT
    assert (mask > 0).sum().item() == pytest.approx(torch.pi * radius**2, rel=0.15)


@pytest.mark.parametrize("relative", [False, True])
def test_selected_queries_follow_the_learned_ones(build, features, relative):
    decoder = build(
        "MODEL.MASK_FORMER.RELATIVE_COORDINATES",
        relative,
        "MODEL.MASK_FORMER.TEST.SELECTED_QUERIES",
        11,
    )
    outputs = decoder(*features)
    assert outputs["pred_masks"].shape == (2, 9, 8, 24)
    for prediction in (outputs, *outputs["aux_outputs"]):
        assert prediction["places"].shape == (2, 7, 2)
    assert decoder.test_queries == 13
    evaluated = decoder.eval()(*features, auxiliary=False)
    assert evaluated["pred_logits"].shape[1] == 13
    with reference_operators():
        expected = decoder(*features, auxiliary=False)
    torch.testing.assert_close(evaluated["pred_masks"], expected["pred_masks"])


def test_all_parameters_are_learned(build, features):
    decoder = build("MODEL.MASK_FORMER.RELATIVE_COORDINATES", True)
    outputs = decoder(*features)
    loss = outputs["pred_logits"].sum() + outputs["pred_masks"].square().sum()
    loss += sum(aux["pred_masks"].square().sum() for aux in outputs["aux_outputs"])
    loss.backward()
    unused = [name for name, p in decoder.named_parameters() if p.grad is None]
    assert unused == []


def test_relative_coordinates_need_selected_queries(build):
    with pytest.raises(ValueError, match="expected selected_queries from 1"):
        build(
            "MODEL.MASK_FORMER.SELECTED_QUERIES", 0, "MODEL.MASK_FORMER.RELATIVE_COORDINATES", True
        )


def test_queries_are_matched_to_the_targets_at_their_places():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    outputs = {
        "pred_logits": torch.zeros(1, 3, 2),
        # Learned, without a mask; on the left with the right mask; on the right with the left mask.
        "pred_masks": torch.stack((torch.full((8, 8), -9.0), masks[1].float(), masks[0].float()))[
            None
        ],
        "places": torch.tensor([[[0.2, 0.5], [0.9, 0.5]]]),
    }
    targets = [{"labels": torch.zeros(2, dtype=torch.int64), "masks": masks}]

    def match(cost_place):
        matcher = HungarianMatcher(1, 1, 1, num_points=64, cost_place=cost_place)
        (queries, matched), *_ = matcher(outputs, targets)
        return dict(zip(queries.tolist(), matched.tolist(), strict=True))

    assert match(0.0) == {1: 1, 2: 0}
    assert match(10.0) == {1: 0, 2: 1}
