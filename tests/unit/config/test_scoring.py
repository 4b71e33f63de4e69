import pytest

from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: Rows(data=("a.jsonl",), seed=-1), "seed"),
        (lambda: Rows(data=("https://ana:hunter2@example.com/a.jsonl",)), "data"),
        (lambda: ScoringModel(model=""), "model"),
        (lambda: ScoringModel(model="m", max_length=0), "max_length"),
        (lambda: ScoringModel(model="m", tokens_per_forward=-1), "tokens_per_forward"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_loaded(wrong, name):
    with pytest.raises(InputError, match=f"^{name} must ") as caught:
        wrong()
    assert "hunter2" not in str(caught.value)
