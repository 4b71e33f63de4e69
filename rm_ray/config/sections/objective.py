"""Settings of the objective: the loss, and what it makes of margins, ties and uncertain labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rm_ray.config.checks import require

Need = Literal["labels", "comparisons", "wins", "margins", "scores"]
"""What a group must have: comparisons or scores; comparisons; ones that are no ties; ones with a
margin; scores."""

Margin = Literal["add", "scale", "ignore"]
"""Uses of a comparison's margin."""

TIE_PARAMETERS = {"davidson": (1e-6, 1e3), "rao_kupper": (1e-6, 20.0)}
"""Least and most tie parameter of each model of ties: at these, a tie of equal responses is all
but impossible or all but certain, and float32 still tells the outcomes apart."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which loss to minimise, and what it makes of margins, ties and uncertain labels."""

    loss: Literal["bradley_terry", "plackett_luce", "regression"] = "bradley_terry"
    """'bradley_terry': likelihood of every comparison of two responses (arXiv:2009.01325);
    'plackett_luce': likelihood of a ranking, each response chosen among those it beats;
    'regression': squared error of rewards that predict scores (arXiv:2410.01257)."""

    margin: Margin | None = None
    """'add': the lead that the better reward should have (arXiv:2307.09288); 'scale': multiplies
    the comparison's loss (arXiv:2410.01257), so that one without a positive margin has no loss;
    'ignore'. By default 'add' with loss 'bradley_terry' and ties 'half' or 'drop', otherwise
    'ignore', the only choice there. A tie or a comparison with a probability has no margin to
    add."""

    ties: Literal["half", "davidson", "rao_kupper", "drop"] = "half"
    """How loss 'bradley_terry' reads a tie: half a win for each; an outcome of its own, after
    Davidson (1970) or Rao and Kupper (1967), which also changes the probability of a win; or not
    at all, so that the group's other comparisons count in full. 'plackett_luce' ranks neither
    response below the other."""

    tie_parameter: float | Literal["learned"] | None = None
    """How likely ties are: Davidson's nu, 1e-6 to 1000 (equal responses tie with probability
    nu / (2 + nu)), or Rao and Kupper's eta = log theta, 1e-6 to 20 (tanh(eta / 2)). By default 1
    and log 2, by which equal responses tie with probability 1/3. 'learned' starts there and learns
    it with the weights, from data with ties; train/rm/tie_parameter shows it."""

    label_smoothing: float = 0.0
    """Probability, below 0.5, that a label is wrong: the better response then wins with 1 minus it.
    Rewards do not drift apart without end, since the best difference is a finite one."""

    noise: float = 0.0
    """Known share, below 0.5, of labels that were flipped at random: the loss is in expectation the
    one on clean labels (arXiv:2403.00409). It is not bounded below."""

    centering: float = 0.0
    """Coefficient of the squared sum of a pair's rewards, or of (twice the mean)^2 of more
    responses, which keeps rewards around 0 (arXiv:2312.09244, eq. 2). TRL recommends 0.01."""

    def __post_init__(self) -> None:
        parameter, centering = self.tie_parameter, self.centering
        finite = parameter in (None, "learned") or 0 < float(parameter or 0) < math.inf
        require(finite, "objective.tie_parameter", parameter, "above 0 and finite, or 'learned'")
        require(
            0 <= centering < math.inf, "objective.centering", centering, "at least 0 and finite"
        )
        for name in ("label_smoothing", "noise"):
            share = getattr(self, name)
            require(0 <= share < 0.5, f"objective.{name}", share, "at least 0 and below 0.5")
        require(
            not (self.label_smoothing and self.noise),
            "objective.noise",
            self.noise,
            "0 with objective.label_smoothing: each is an answer to wrong labels, so choose one",
        )
        self._check_ties()
        if self.loss != "bradley_terry":
            self._check_other_losses()

    def _check_ties(self) -> None:
        require(
            self.models_ties or self.tie_parameter is None,
            "objective.tie_parameter",
            self.tie_parameter,
            f"none with objective.ties '{self.ties}' (only 'davidson' and 'rao_kupper' have one)",
        )
        if not self.models_ties:
            return
        reasons = {
            "add": "win, loss and tie would no longer have probabilities that add up to 1",
            "scale": "a tie has no margin, so no tie would have a loss",
        }
        require(
            self.margin not in reasons,
            "objective.margin",
            self.margin,
            f"'ignore' with objective.ties '{self.ties}': {reasons.get(self.margin or '')}",
        )
        least, most = TIE_PARAMETERS[self.ties]
        parameter = self.tie_parameter
        require(
            parameter in (None, "learned") or least <= float(parameter or 0) <= most,
            "objective.tie_parameter",
            parameter,
            f"from {least:g} to {most:g}, or 'learned', with objective.ties '{self.ties}'",
        )

    def _check_other_losses(self) -> None:
        rule = f"{{}} with objective.loss '{self.loss}', which has no use for it"
        unused = {
            "margin": (self.margin in (None, "ignore"), "'ignore'"),
            "ties": (self.ties == "half", "'half', the default,"),
            "label_smoothing": (self.label_smoothing == 0, "0"),
            "noise": (self.noise == 0, "0"),
            "centering": (self.loss != "regression" or self.centering == 0, "0"),
        }
        for name, (holds, value) in unused.items():
            require(holds, f"objective.{name}", getattr(self, name), rule.format(value))

    @property
    def need(self) -> Need:
        """What a group must have for a loss."""
        if self.loss == "regression":
            return "scores"
        if self.margin == "scale":
            return "margins"
        return "wins" if self.loss == "plackett_luce" or self.ties == "drop" else "comparisons"

    @property
    def models_ties(self) -> bool:
        """Whether a tie is an outcome of its own."""
        return self.ties in TIE_PARAMETERS

    @property
    def margin_use(self) -> Margin:
        """What to do with margins, also where it is left to the default."""
        if self.margin is not None:
            return self.margin
        adds = self.loss == "bradley_terry" and self.ties in ("half", "drop")
        return "add" if adds else "ignore"
