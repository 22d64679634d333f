"""What `MODEL.MIT.TOKEN_MERGING` accepts, and what its errors name."""

import pytest

from proscale.modeling.backbones.token_merging import (
    AveragePooling,
    BipartiteSoftMatching,
    Unmerged,
)
from proscale.modeling.backbones.token_merging_config import parse_token_merging


def test_presets_are_those_of_the_paper():
    for name, ratios, cells in (
        ("bsm_hq", (0.6, 0.8), ((2, 2), (4, 4))),
        ("bsm_fast", (0.9, 0.9), ((4, 4), (4, 4))),
    ):
        stages = parse_token_merging(name)
        for stage in stages[:2]:
            assert isinstance(stage.query, Unmerged)
            assert stage.key_value == BipartiteSoftMatching(ratios[0], cells[0])
        for stage in stages[2:]:
            assert stage.query == BipartiteSoftMatching(ratios[1], cells[1])
            assert isinstance(stage.key_value, Unmerged)
    for stage in parse_token_merging("n2d_2x2"):
        assert stage.query == AveragePooling((2, 2))
        assert isinstance(stage.key_value, Unmerged)


@pytest.mark.parametrize("value", [None, "none", [{}] * 4, [{"q_mode": "none", "q_r": 0.5}] * 4])
def test_no_merging(value):
    for stage in parse_token_merging(value):
        assert isinstance(stage.query, Unmerged)
        assert isinstance(stage.key_value, Unmerged)


def test_settings_of_each_stage():
    stages = parse_token_merging(
        [
            {"q_mode": "bsm", "q_r": 0, "q_sx": 3, "q_sy": 2, "kv_mode": "n2d", "kv_s": [2, 3]},
            {"q_mode": "n1d", "q_s": 5, "q_r": None},
            {"kv_mode": "n2d", "kv_s": 4},
            {"q_mode": None},
        ]
    )
    assert stages[0].query == BipartiteSoftMatching(0.0, cell=(2, 3))
    assert stages[0].key_value == AveragePooling((2, 3))
    assert stages[1].query == AveragePooling((1, 5), flat=True)
    assert stages[2].key_value == AveragePooling((4, 4))
    assert isinstance(stages[3].query, Unmerged)


BSM = {"kv_mode": "bsm", "kv_r": 0.5, "kv_sx": 2, "kv_sy": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"q_mode": "tome"}, r"q_mode is 'tome': expected none, bsm, n2d, n1d"),
        ({"q_mode": ["bsm"]}, r"q_mode is \['bsm'\]: expected"),
        ({"q_mod": "bsm"}, r"unknown key 'q_mod': expected keys of .*q_mode"),
        (BSM | {"kv_r": 1}, r"kv_r is 1: expected numbers in \[0, 1\)"),
        (BSM | {"kv_r": -0.1}, r"kv_r is -0.1: expected"),
        (BSM | {"kv_r": float("nan")}, r"kv_r is nan: expected"),
        (BSM | {"kv_r": "0.5"}, r"kv_r is '0.5': expected"),
        (BSM | {"kv_sx": 0}, r"kv_sx is 0: expected a whole number from 1"),
        (BSM | {"kv_sy": 1.5}, r"kv_sy is 1.5: expected a whole number from 1"),
        (BSM | {"kv_sy": None}, r"kv_sy is missing: kv_mode bsm needs .*kv_r.*kv_sx.*kv_sy"),
        ({"q_mode": "bsm", "q_sx": 2, "q_sy": 2}, r"q_r is missing"),
        (BSM | {"kv_s": 2}, r"kv_mode bsm does not read kv_s"),
        ({"q_mode": "n2d"}, r"q_s is missing: q_mode n2d needs"),
        ({"q_mode": "n2d", "q_s": [2, 0]}, r"q_s is 0: expected"),
        ({"q_mode": "n2d", "q_s": [2, 2, 2]}, r"q_s is .*: expected .* or \[rows, columns\]"),
        ({"q_mode": "n1d", "q_s": [2, 2]}, r"q_s is \[2, 2\]: expected a whole number from 1$"),
        ("bsm", r"is 'bsm': expected a dictionary"),
    ],
)
def test_wrong_settings_are_refused_by_stage_and_key(settings, message):
    with pytest.raises(ValueError, match=rf"token_merging, stage 3.*{message}"):
        parse_token_merging([{}, {}, settings, {}])


@pytest.mark.parametrize("value", ["bsm", "", [{}] * 3, 4, {}])
def test_wrong_values_are_refused(value):
    with pytest.raises(ValueError, match=r"token_merging is .*: expected none, bsm_hq, bsm_fast"):
        parse_token_merging(value)
