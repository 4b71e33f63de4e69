import logging

import pytest

from rm_ray.errors import InputError
from rm_ray.train import state

FINE, WITHOUT = ("node-0", ""), ("node-1", "a C compiler (gcc)")


@pytest.mark.parametrize(
    ("choice", "on_gpu", "chosen"),
    [("auto", True, "off"), ("auto", False, "auto"), ("off", True, "off"), ("on", False, "on")],
)
def test_no_rank_takes_liger_where_one_cannot_compile_it(
    choice, on_gpu, chosen, monkeypatch, caplog
):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, WITHOUT, WITHOUT])
    with caplog.at_level(logging.WARNING):
        assert state.choose_liger(choice, on_gpu=on_gpu) == chosen
    lines = [record.getMessage() for record in caplog.records]
    expected = "liger: going on without, since Triton needs a C compiler (gcc) to compile"
    assert [line.startswith(expected) for line in lines] == [True] * (chosen != choice)


def test_liger_is_refused_where_it_is_asked_for_and_cannot_be_compiled(monkeypatch):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, WITHOUT])
    with pytest.raises(InputError, match="kernels on node-1; install gcc and Python's headers"):
        state.choose_liger("on", on_gpu=True)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_liger_is_taken_where_every_rank_can_compile_it(choice, monkeypatch):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, FINE])
    assert state.choose_liger(choice, on_gpu=True) == choice
