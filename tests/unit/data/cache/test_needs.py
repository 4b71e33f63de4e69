import math
from typing import Any

import pytest

from rm_ray.config.sections.objective import Need
from rm_ray.data.cache.needs import find_lack

ALL: tuple[Need, ...] = ("labels", "comparisons", "wins", "margins", "scores")


def row(
    *probabilities: float, margin: float = 0.0, scores: tuple[float, ...] = ()
) -> dict[str, Any]:
    return {
        "better": [0] * len(probabilities),
        "probability": [*probabilities],
        "margin": [margin] * len(probabilities),
        "score": [*scores] or [math.nan, math.nan],
    }


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (row(1.0), {"labels", "comparisons", "wins"}),
        (row(1.0, margin=2.0), {"labels", "comparisons", "wins", "margins"}),
        (row(0.5), {"labels", "comparisons"}),
        (row(0.5, 0.8), {"labels", "comparisons", "wins"}),
        (row(1.0, margin=-1.0), {"labels", "comparisons", "wins"}),
        (row(scores=(3.0,)), {"labels", "scores"}),
        (row(scores=(math.nan, 0.0)), {"labels", "scores"}),
        (row(1.0, scores=(3.0, 2.0)), {"labels", "comparisons", "wins", "scores"}),
        (row(0.50000001, margin=1e-50), {"labels", "comparisons"}),  # as float32: 0.5 and 0
        (row(), set()),
    ],
)
def test_a_group_meets_the_needs_of_the_objectives_that_can_use_it(
    found: dict[str, Any], met: set[str]
):
    assert {need for need in ALL if find_lack(found, need) is None} == met


def test_what_a_group_lacks_is_said():
    assert find_lack(row(0.5), "wins") == "no response is better than another one"
    assert find_lack(row(1.0), "scores") == "no response has a score"
