import pytest

from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.errors import InputError
from rm_ray.serving.refused_request import to_input_error


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_says_what_to_do(reason: Reason):
    error = to_input_error(RefusedError(reason, "here"))
    assert isinstance(error, InputError)
    said, _, advice = str(error).partition("; ")
    assert said == f"the conversation is refused ({reason}: here)"
    assert advice


def test_a_refusal_without_detail_has_no_colon():
    assert str(to_input_error(RefusedError(Reason.EMPTY))).startswith(
        "the conversation is refused (empty); "
    )
