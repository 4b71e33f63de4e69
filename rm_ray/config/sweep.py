"""Settings of a sweep: what its trials vary, what they are ranked by, and how many run at once."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rm_ray.config.checks import require
from rm_ray.config.fields import field_types
from rm_ray.config.recipe import build_settings, read_settings, refuse_unknown
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError

OWN_SECTIONS = ("run", "mlflow", "hub")
"""Sections that a sweep sets itself, for each trial."""


CENTERING = "objective.centering"
"""The one setting of the objective that the held-out loss leaves out."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values of one swept setting: exactly one of these fields is given."""

    grid: tuple[Any, ...] | None = None
    """Try every value, in every combination with other grids."""

    choice: tuple[Any, ...] | None = None
    """Draw one of these values."""

    uniform: tuple[float, float] | None = None
    """Draw a number between these two; a whole number for a setting that takes only those."""

    loguniform: tuple[float, float] | None = None
    """The same, with a logarithm that is uniformly distributed."""

    def __post_init__(self) -> None:
        given = [name for name, values in vars(self).items() if values is not None]
        rule = "given by exactly one of grid, choice, uniform and loguniform"
        require(len(given) == 1, "the values of a setting", given or "none", rule)
        values = self.grid if self.grid is not None else self.choice
        require(values is None or len(values) > 0, given[0], values, "a list of at least one value")
        require(_is_plain(values), given[0], values, "a list of numbers, texts and lists of them")
        if (bounds := self.bounds) is None:
            return
        low, high = bounds
        is_range = math.isfinite(low) and math.isfinite(high) and low < high
        require(is_range, given[0], list(bounds), "two finite numbers, the lower one first")
        require(self.loguniform is None or low > 0, given[0], list(bounds), "above 0")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of a range; None for a list of values."""
        return self.uniform if self.loguniform is None else self.loguniform

    @property
    def is_random(self) -> bool:
        """Whether values are drawn."""
        return self.grid is None


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Early stopping by asynchronous successive halving, ASHA (arXiv:1810.05934, algorithm 2)."""

    grace_steps: int
    """Steps that every trial takes before it may be stopped."""

    reduction_factor: int = 3
    """A trial goes on past grace_steps, and each time its steps have multiplied by this number, if
    it is among the best 1/N of the trials that came that far before it."""

    def __post_init__(self) -> None:
        grace, factor = self.grace_steps, self.reduction_factor
        require(grace >= 1, "asha.grace_steps", grace, "at least 1")
        require(factor >= 2, "asha.reduction_factor", factor, "at least 2")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep tries, and how it ranks what it finds."""

    settings: dict[str, Dimension]
    """The values of each swept setting, by its name: 'optimizer.learning_rate'."""

    seeds: int | tuple[int, ...] = 1
    """Seeds (run.seed) that each setting is trained with: a list, or a number of them from the
    recipe's on."""

    samples: int = 1
    """Number of draws of random values, for each combination of the grids."""

    metric: str = "eval/rm/loss"
    """Metric of the held-out pairs that ranks settings, by each trial's last evaluation: one that
    checkpoint.keep_best_by accepts. A loss is best if low, everything else if high. It is the
    objective's own, so that it compares no settings that change the objective."""

    max_parallel: int | None = None
    """Trials at once; by default as many as fit on the cluster."""

    asha: AshaConfig | None = None
    """Stops the worse trials early; none trains every trial to its end."""

    def __post_init__(self) -> None:
        for name, dimension in self.settings.items():
            _require_swept(name)
            _require_whole(name, dimension)
        listed = self.seeds if isinstance(self.seeds, tuple) else (0,) * self.seeds
        require(len(listed) > 0, "seeds", self.seeds, "a number of at least 1, or a list of seeds")
        is_once = not isinstance(self.seeds, tuple) or len(set(listed)) == len(listed)
        require(is_once, "seeds", list(listed), "a list without repetitions")
        require(self.samples >= 1, "samples", self.samples, "at least 1")
        is_random = any(dimension.is_random for dimension in self.settings.values())
        rule = "1 where no setting is drawn: every draw would be the same"
        require(is_random or self.samples == 1, "samples", self.samples, rule)
        is_held_out = self.metric.startswith("eval/")
        require(
            is_held_out, "metric", self.metric, "one of the held-out pairs, such as eval/rm/loss"
        )
        self._require_comparable()
        most = self.max_parallel
        require(most is None or most >= 1, "max_parallel", most, "at least 1")

    def _require_comparable(self) -> None:
        """Refuse to rank losses that are not of one objective."""
        changing = [n for n in self.settings if n.startswith("objective.") and n != CENTERING]
        rule = (
            f"no loss where '{(*changing, '')[0]}' is swept, because that changes the loss itself: "
            "choose one that does not depend on it, such as eval/rm/accuracy"
        )
        is_loss = self.metric.split("/")[2:] == ["loss"]
        require(not (is_loss and changing), "metric", self.metric, rule)

    def list_seeds(self, first: int) -> tuple[int, ...]:
        """Return the seeds, if the recipe's is ``first``."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(first, first + self.seeds))

    def to_json(self) -> dict[str, Any]:
        """Return what the trials are made from; how many run at once may change."""
        described = asdict(self)
        del described["max_parallel"]
        return described


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file.

    Raises:
        InputError: it is missing or not YAML, or something in it is unknown or wrong.
    """
    return parse_sweep(read_settings(path, "--sweep"), origin=str(path))


def parse_sweep(given: dict[str, Any], origin: str) -> SweepConfig:
    """Build a sweep's settings from nested dictionaries; errors begin with ``origin``.

    Raises:
        InputError: a name is unknown or a value breaks a rule.
    """
    refuse_unknown(SweepConfig, given, prefix="", origin=origin)
    settings = given.get("settings")
    if not isinstance(settings, dict) or not settings:
        raise InputError(
            f"{origin}: settings must have at least one setting with its values, such as "
            f"'optimizer.learning_rate: {{grid: [1.0e-6, 3.0e-6]}}', got {settings!r}"
        )
    for name, values in settings.items():
        _refuse_fields(Dimension, values, f"settings.{name}", origin)
        build_settings(Dimension, values, f"{origin}: settings.{name}")  # names the setting
    if given.get("asha") is not None:
        _refuse_fields(AshaConfig, given["asha"], "asha", origin)
    return build_settings(SweepConfig, given, origin)


def takes_whole_numbers(name: str) -> bool:
    """Return whether a setting takes whole numbers only."""
    hint = dict(field_types(TrainConfig))[name]
    kinds = {hint, *get_args(hint), *(part for each in get_args(hint) for part in get_args(each))}
    return int in kinds and float not in kinds


def _require_whole(name: str, dimension: Dimension) -> None:
    """Refuse fractional ends of a range of whole numbers: draws would be rounded out of it.

    Raises:
        InputError: names the setting and the ends.
    """
    ends = dimension.bounds or ()
    kind = "uniform" if dimension.loguniform is None else "loguniform"
    is_whole = not takes_whole_numbers(name) or all(end == round(end) for end in ends)
    rule = "whole numbers, because the setting takes no others"
    require(is_whole, f"settings.{name}.{kind}", list(ends), rule)


def _is_plain(values: Any) -> bool:
    """Return whether JSON holds these values as they are; YAML also has dates and sets."""
    if isinstance(values, (list, tuple)):
        return all(map(_is_plain, values))
    return values is None or isinstance(values, (bool, int, float, str))


def _refuse_fields(cls: type, given: Any, name: str, origin: str) -> None:
    if not isinstance(given, dict):
        raise InputError(f"{origin}: '{name}' must contain fields, got {given!r}")
    refuse_unknown(cls, given, prefix=f"{name}.", origin=origin)


def _require_swept(name: str) -> None:
    """Refuse a name that is no setting, or one that a sweep sets itself.

    Raises:
        InputError: names the setting, and the nearest known name.
    """
    known = [name for name, _ in field_types(TrainConfig)]
    if name == "run.seed":
        raise InputError("settings: 'run.seed' cannot be swept; list the seeds under 'seeds'")
    if name.split(".")[0] in OWN_SECTIONS:
        raise InputError(f"settings: '{name}' cannot be swept, because it is not about training")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"settings: unknown setting '{name}'{hint}")
