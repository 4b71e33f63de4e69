"""Verdicts and their outcomes."""

import pytest

from rm_ray.errors import InputError
from rm_ray.preflight.checks.verdict import (
    Verdict,
    fail,
    fail_on_input_error,
    ok,
    warn,
    warn_at_most,
)


def refuse() -> Verdict:
    raise InputError("no such model")


def test_a_check_that_refuses_its_input_fails_with_the_remedy():
    verdict = fail_on_input_error("model", refuse, remedy="check the name")
    assert verdict == fail("model", "no such model", "check the name")
    assert fail_on_input_error("model", lambda: ok("model", "fine"), remedy="x") == ok(
        "model", "fine"
    )


def test_other_errors_propagate():
    def break_down() -> Verdict:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fail_on_input_error("model", break_down, remedy="x")


def test_failures_become_warnings_if_another_cluster_trains():
    assert warn_at_most(ok("disk", "large")) == ok("disk", "large")
    expected = warn("disk", "small", "check again on the cluster of this run")
    assert warn_at_most(fail("disk", "small", "free space")) == expected
    assert warn_at_most(warn("disk", "small", "free space")) == expected
