import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rm_ray.objectives.outcomes import (
    BradleyTerryOutcomes,
    DavidsonOutcomes,
    Outcomes,
    RaoKupperOutcomes,
    outcome_losses,
    smooth,
    undo_noise,
)

OUTCOMES = (
    BradleyTerryOutcomes(),
    DavidsonOutcomes(),
    DavidsonOutcomes(nu=0.2),
    RaoKupperOutcomes(),
    RaoKupperOutcomes(eta=0.1),
)
WITH_TIES = OUTCOMES[1:]

leads = st.floats(-30, 30)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def win(outcomes: Outcomes, lead: float) -> float:
    return outcomes.win(tensor(lead)).item()


def tie(outcomes: Outcomes, lead: float) -> float:
    return outcomes.tie(tensor(lead)).item()


def loss(
    outcomes: Outcomes,
    *,
    lead: float,
    label: float = 1.0,
    target: float | None = None,
    margin: float = 0.0,
) -> float:
    return outcome_losses(
        outcomes,
        lead=tensor(lead),
        margin=tensor(margin),
        label=tensor(label),
        target=tensor(label if target is None else target),
    ).item()


@given(leads)
@pytest.mark.parametrize("outcomes", WITH_TIES)
def test_win_loss_and_tie_have_probabilities_that_add_up_to_one(outcomes: Outcomes, lead: float):
    losses = (win(outcomes, lead), win(outcomes, -lead), tie(outcomes, lead))

    assert math.isclose(sum(math.exp(-x) for x in losses), 1.0, rel_tol=1e-12)


@given(leads)
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_a_tie_is_the_same_from_both_sides_and_likeliest_at_equal_rewards(
    outcomes: Outcomes, lead: float
):
    assert math.isclose(tie(outcomes, lead), tie(outcomes, -lead), rel_tol=1e-12)
    assert tie(outcomes, lead) >= tie(outcomes, 0.0) - 1e-12


@pytest.mark.parametrize("outcomes", [DavidsonOutcomes(), RaoKupperOutcomes()])
def test_by_default_equal_responses_have_every_outcome_with_probability_one_third(
    outcomes: Outcomes,
):
    assert math.isclose(win(outcomes, 0.0), math.log(3), rel_tol=1e-12)
    assert math.isclose(tie(outcomes, 0.0), math.log(3), rel_tol=1e-12)


@given(leads, st.floats(0.01, 5))
def test_davidson_is_the_ratio_of_worths(lead: float, nu: float):
    a, b = math.exp(lead), 1.0  # worths; the tie's is nu times their geometric mean
    total = a + b + nu * math.sqrt(a * b)

    outcomes = DavidsonOutcomes(nu=nu)

    assert math.isclose(win(outcomes, lead), -math.log(a / total), rel_tol=1e-9, abs_tol=1e-12)
    expected = -math.log(nu * math.sqrt(a * b) / total)
    assert math.isclose(tie(outcomes, lead), expected, rel_tol=1e-9, abs_tol=1e-12)


@given(leads, st.floats(0.01, 5))
def test_rao_kupper_is_the_ratio_of_worths_with_a_threshold(lead: float, eta: float):
    a, b, theta = math.exp(lead), 1.0, math.exp(eta)

    outcomes = RaoKupperOutcomes(eta=eta)

    expected = -math.log(a / (a + theta * b))
    assert math.isclose(win(outcomes, lead), expected, rel_tol=1e-9, abs_tol=1e-12)
    tied = (theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b))
    assert math.isclose(tie(outcomes, lead), -math.log(tied), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(("nu", "expected"), [(1.0, 1 / 3), (0.5, 0.2), (2.0, 0.5)])
def test_davidson_ties_equal_responses_with_probability_nu_over_two_plus_nu(nu, expected):
    assert math.isclose(math.exp(-tie(DavidsonOutcomes(nu=nu), 0.0)), expected)


@pytest.mark.parametrize("eta", [1e-300, 1e-8, 1.0, 700.0])
def test_rao_kupper_ties_equal_responses_with_probability_tanh_of_half_eta(eta: float):
    tied = math.exp(-tie(RaoKupperOutcomes(eta=eta), 0.0))

    assert math.isclose(tied, math.tanh(eta / 2), rel_tol=1e-9)


@given(leads)
def test_few_ties_leave_bradley_terry(lead: float):
    plain = win(BradleyTerryOutcomes(), lead)

    for outcomes in (DavidsonOutcomes(nu=1e-9), RaoKupperOutcomes(eta=1e-9)):
        assert math.isclose(win(outcomes, lead), plain, rel_tol=1e-6, abs_tol=1e-8)


@given(leads)
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_a_certain_winner_has_the_loss_of_a_win(outcomes: Outcomes, lead: float):
    assert loss(outcomes, lead=lead) == win(outcomes, lead)


@given(leads, st.floats(-5, 5))
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_a_margin_counts_like_a_smaller_lead_of_a_certain_winner(
    outcomes: Outcomes, lead: float, margin: float
):
    assert loss(outcomes, lead=lead, margin=margin) == win(outcomes, lead - margin)


@given(leads, st.floats(-5, 5), st.sampled_from([0.5, 0.6, 0.9]))
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_a_tie_and_a_soft_label_have_no_margin(outcomes, lead, margin, label):
    plain = loss(outcomes, lead=lead, label=label)

    assert loss(outcomes, lead=lead, label=label, margin=margin) == plain


@given(leads, st.sampled_from([0.25, 0.5, 0.75, 0.875]))
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_exchanging_the_sides_and_the_probability_changes_nothing(outcomes, lead, label):
    exchanged = loss(outcomes, lead=-lead, label=1 - label)

    assert math.isclose(loss(outcomes, lead=lead, label=label), exchanged, rel_tol=1e-12)


@pytest.mark.parametrize("label", [0.6, 0.75, 0.99])
def test_a_soft_label_is_best_met_by_its_log_odds(label: float):
    best = math.log(label / (1 - label))
    entropy = -label * math.log(label) - (1 - label) * math.log(1 - label)

    assert math.isclose(loss(BradleyTerryOutcomes(), lead=best, label=label), entropy)
    for other in (best - 0.1, best + 0.1):
        assert loss(BradleyTerryOutcomes(), lead=other, label=label) > entropy


@given(leads, st.floats(0.01, 0.49), st.floats(-3, 3))
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_the_loss_for_noise_is_unbiased_over_flipped_labels(outcomes, lead, noise, margin):
    """A flip exchanges the sides of a row and keeps its margin."""
    target = undo_noise(tensor(1.0), noise).item()

    as_is = loss(outcomes, lead=lead, target=target, margin=margin)
    flipped = loss(outcomes, lead=-lead, target=target, margin=margin)

    expected = (1 - noise) * as_is + noise * flipped
    clean = loss(outcomes, lead=lead, margin=margin)
    assert math.isclose(expected, clean, rel_tol=1e-9, abs_tol=1e-9 / (1 - 2 * noise))


@given(st.floats(0, 1), st.floats(0, 0.45))
def test_undoing_noise_recovers_the_probability_before_the_flips(label: float, noise: float):
    seen = (1 - noise) * label + noise * (1 - label)

    assert math.isclose(undo_noise(tensor(seen), noise).item(), label, abs_tol=1e-12)


@given(leads, st.floats(0.01, 0.49))
def test_the_loss_for_noise_is_the_formula_of_its_source(lead: float, noise: float):
    won, lost = (win(BradleyTerryOutcomes(), x) for x in (lead, -lead))
    expected = ((1 - noise) * won - noise * lost) / (1 - 2 * noise)

    target = undo_noise(tensor(1.0), noise).item()

    assert math.isclose(
        loss(BradleyTerryOutcomes(), lead=lead, target=target), expected, rel_tol=1e-9, abs_tol=1e-9
    )


@pytest.mark.parametrize(("label", "expected"), [(1.0, 0.9), (0.5, 0.5), (0.75, 0.7)])
def test_smoothing_moves_a_label_towards_one_half(label: float, expected: float):
    assert math.isclose(smooth(tensor(label), 0.1).item(), expected)


@pytest.mark.parametrize("target", [0.9, 1.125])
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_a_tie_stays_a_tie_under_smoothing_and_noise(outcomes: Outcomes, target: float):
    assert loss(outcomes, lead=1.5, label=0.5, target=target) == tie(outcomes, 1.5)


@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_losses_and_gradients_stay_finite_at_large_leads_in_float32(outcomes: Outcomes):
    lead = torch.tensor([-1e30, -1e4, -200.0, 0.0, 200.0, 1e4, 1e30], requires_grad=True)

    total = (outcomes.win(lead) + outcomes.win(-lead) + outcomes.tie(lead)).sum()
    total.backward()

    assert total.dtype == torch.float32
    assert total.isfinite()
    assert lead.grad is not None
    assert lead.grad.isfinite().all()


@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_gradients_are_those_of_the_values(outcomes: Outcomes):
    lead = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    label = tensor(1.0, 0.5, 0.75, 1.0, 0.5, 0.75, 1.0, 0.5, 0.75)
    margin = torch.full_like(lead, 0.3).detach()

    def losses(lead: Tensor) -> Tensor:
        target = smooth(label, 0.1)
        return outcome_losses(outcomes, lead=lead, margin=margin, label=label, target=target)

    assert torch.autograd.gradcheck(losses, lead)
