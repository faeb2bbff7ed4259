"""Drawing a token: the inverse of the distribution function, and the edges of temperature and top_p."""

import math

import torch

from tokensqueeze.engines.sampling import draw

# Probabilities 0.5, 0.3 and 0.2.
LOGITS_BV = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))


def drawn(uniform: float, *, temperature: float = 1.0, top_p: float | None = None) -> int:
    return int(
        draw(
            LOGITS_BV,
            [0],
            temperature_S=torch.tensor([temperature]),
            top_p_S=None if top_p is None else torch.tensor([top_p]),
            uniform_S=torch.tensor([uniform], dtype=torch.float64),
        )[0]
    )


def test_a_uniform_number_picks_the_token_whose_share_it_falls_into():
    assert [drawn(uniform) for uniform in (0.1, 0.3, 0.69, 0.71, 0.99)] == [0, 1, 1, 2, 2]


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    # 0.5 reaches 0.5 by itself; 0.5 and 0.3 are needed for 0.6.
    assert {drawn(uniform, top_p=0.5) for uniform in (0.01, 0.5, 0.99)} == {1}
    assert {drawn(uniform, top_p=0.6) for uniform in (0.01, 0.5, 0.99)} == {1, 2}


def test_the_most_probable_token_stays_whatever_top_p_is():
    assert {drawn(uniform, top_p=top_p) for uniform in (0.01, 0.99) for top_p in (1e-30, 1e-50, 5e-324)} == {1}


def test_a_low_temperature_sharpens():
    # 0.5² to 0.3² to 0.2²: 0.25, 0.09, 0.04 of 0.38.
    edge = 0.04 / 0.38
    assert drawn(edge - 1e-3, temperature=0.5) == 0 and drawn(edge + 1e-3, temperature=0.5) == 1
    assert math.isclose(float(torch.softmax(LOGITS_BV / 0.5, -1)[0, 0]), edge, rel_tol=1e-5)
