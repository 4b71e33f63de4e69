import logging

import pytest
from transformers import AutoConfig

from rm_ray.preflight.resolve import choose_layout


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("rm_ray"), "propagate", True)
    caplog.set_level(logging.INFO, logger="rm_ray")
    return caplog


def test_a_model_that_cannot_be_packed_is_padded_and_says_so_in_one_line(said):
    assert choose_layout("packed", AutoConfig.for_model("gemma2")) == "padded"
    (line,) = said.messages
    assert line.startswith("batch.layout: padded instead of packed, since 'gemma2' is not one of")


def test_a_layout_that_can_be_had_is_had_without_a_word(said):
    assert choose_layout("packed", AutoConfig.for_model("llama")) == "packed"
    assert choose_layout("padded", AutoConfig.for_model("llama")) == "padded"
    assert choose_layout("padded", AutoConfig.for_model("gemma2")) == "padded"
    assert said.messages == []
