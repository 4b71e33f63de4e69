"""A recipe and a sweep -> the trials: every combination of settings, with every seed."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rm_ray.config.checks import require
from rm_ray.config.recipe import parse_config
from rm_ray.config.sweep import Dimension, SweepConfig, takes_whole_numbers
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.storage import below

logger = logging.getLogger(__name__)

DIGITS = 4
"""Significant digits of numbers that are drawn, so that they can be read and typed."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    settings: dict[str, Any]
    """The swept settings' values, by name."""
    config: TrainConfig

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    def to_json(self) -> dict[str, Any]:
        """Return the trial as the sweep's record has it."""
        return {"name": self.name, "settings": self.settings, "seed": self.seed}


def sweep_path(config: TrainConfig) -> str:
    """Return the path or URI of a sweep's folder, in which its trials are stored."""
    return below(config.run.storage_path, config.run.name)


def make_trials(config: TrainConfig, sweep: SweepConfig, origin: str) -> list[Trial]:
    """Return all trials, of the first seed first; the same arguments give the same trials.

    ``config`` is the recipe's; ``origin`` names the sweep's file in errors. The ends of every range
    are checked too. Combinations of values that a configuration reads alike are tried once.

    Raises:
        InputError: values or seeds break a rule, or the metric would never be measured.
    """
    drawn = draw_settings(sweep, config.run.seed)
    for settings in (*drawn, *_ends(sweep, drawn[0])):
        _check(apply(config, settings, origin), sweep, origin)
    _log_replaced(config, sweep)
    read = [_read_back(apply(config, settings, origin), settings) for settings in drawn]
    tried = list({json.dumps(settings): settings for settings in read}.values())
    if len(tried) < len(read):
        logger.info("%d settings came twice and are tried once", len(read) - len(tried))
    seeds = sweep.list_seeds(config.run.seed)
    is_legal = all(0 <= seed < 2**32 for seed in seeds)
    require(is_legal, f"{origin}: seeds", list(seeds), "from 0 to 4294967295")
    return [
        Trial(settings=settings, config=_place(config, number, seed, settings, origin))
        for seed in seeds
        for number, settings in enumerate(tried)
    ]


def _read_back(config: TrainConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return settings as a configuration has them: the text '1e-5' of YAML is a number there."""
    values = config.to_json()
    return {name: values[name.split(".")[0]][name.split(".")[1]] for name in names}


def _log_replaced(config: TrainConfig, sweep: SweepConfig) -> None:
    """Say which settings the recipe gives in vain."""
    given, defaults = (_read_back(one, sweep.settings) for one in (config, TrainConfig()))
    for name, value in given.items():
        if value != defaults[name]:
            logger.info("%s is %r in the recipe; the sweep's values replace it", name, value)


def draw_settings(sweep: SweepConfig, seed: int) -> list[dict[str, Any]]:
    """Return the combinations of values.

    The grids' combinations come in order, each with ``sweep.samples`` draws of the random values.
    """
    generator = random.Random(seed)
    grids = {name: d.grid for name, d in sweep.settings.items() if d.grid is not None}
    return [
        {
            name: given[name] if name in given else _draw(name, dimension, generator)
            for name, dimension in sweep.settings.items()
        }
        for values in product(*grids.values())
        for given in [dict(zip(grids, values, strict=True))]
        for _ in range(sweep.samples)
    ]


def apply(config: TrainConfig, settings: dict[str, Any], origin: str) -> TrainConfig:
    """Return the configuration with other values for the swept settings.

    Raises:
        InputError: the values break a rule.
    """
    nested = copy.deepcopy(config.to_json())
    for name, value in settings.items():
        section, field = name.split(".")
        nested[section][field] = value
    shown = ", ".join(f"{name}={value}" for name, value in settings.items())
    return parse_config(nested, origin=f"{origin}, with {shown}")


def _draw(name: str, dimension: Dimension, generator: random.Random) -> Any:
    """Return one value of a random dimension."""
    if dimension.choice is not None:
        return generator.choice(dimension.choice)
    assert dimension.bounds is not None
    low, high = dimension.bounds
    if dimension.loguniform is not None:
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    value = round(value) if takes_whole_numbers(name) else float(f"{value:.{DIGITS}g}")
    return min(max(value, low), high) if isinstance(value, float) else value


def _ends(sweep: SweepConfig, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield settings with each range's ends, one range after another."""
    for name, dimension in sweep.settings.items():
        for end in dimension.bounds or ():
            yield {**settings, name: round(end) if takes_whole_numbers(name) else end}


def _check(config: TrainConfig, sweep: SweepConfig, origin: str) -> None:
    """Check that a trial measures the metric, and in time to be stopped by it.

    Raises:
        InputError: it does not.
    """
    with about_metric(origin):
        rankable(config, sweep.metric)
    every, at_end = config.evaluation.every_steps, config.evaluation.at_end
    if not at_end:
        raise InputError(
            f"{origin}: trials are ranked by their last evaluation, but evaluation.at_end is off; "
            "turn it on"
        )
    if sweep.asha is not None and not every:
        raise InputError(
            f"{origin}: asha stops trials by their evaluations, but evaluation.every_steps is 0; "
            f"set it to {sweep.asha.grace_steps}, which is asha.grace_steps, or lower"
        )


def rankable(config: TrainConfig, metric: str) -> TrainConfig:
    """Return a trial's configuration with checkpoints ranked by the sweep's metric.

    What checks ``checkpoint.keep_best_by`` then checks the metric.

    Raises:
        InputError: there is no such metric, or no held-out pairs.
    """
    return replace(config, checkpoint=replace(config.checkpoint, keep_best_by=metric))


@contextmanager
def about_metric(origin: str) -> Iterator[None]:
    """Let what is wrong with ``checkpoint.keep_best_by`` be said of the sweep's metric.

    Raises:
        InputError: something is wrong.
    """
    try:
        yield
    except InputError as error:
        said = str(error)
        if (named := said.replace("checkpoint.keep_best_by", "metric")) == said:
            raise
        raise InputError(f"{origin}: {named}") from None


def _place(
    config: TrainConfig, number: int, seed: int, settings: dict[str, Any], origin: str
) -> TrainConfig:
    """Return a trial's configuration: a run in the sweep's folder that publishes nothing."""
    applied = apply(config, settings, origin)
    name = f"{config.run.name}-{number:03d}-seed{seed}"
    run = replace(applied.run, name=name, storage_path=sweep_path(config), seed=seed)
    return replace(
        applied,
        run=run,
        hub=replace(applied.hub, repo_id=None),
        mlflow=replace(applied.mlflow, registered_model=None),
    )
