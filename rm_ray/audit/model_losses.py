"""The losses of rows under models: those that a run kept, or those of a model that scores them."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rm_ray.audit.suspects import Suspects, find_most_suspect, join_losses
from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.recipe import parse_config
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.data.cache.exclusions import Exclusions
from rm_ray.data.cache.group_columns import binary_entropy
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.evaluation.pairwise import bradley_terry_losses
from rm_ray.runs.layout import EXPORT, RUN, read_record
from rm_ray.runs.row_losses import RowLosses
from rm_ray.scoring.batch import score
from rm_ray.scoring.conversations import SCORED_PARTS, parse_conversations
from rm_ray.scoring.ensemble import member_folder
from rm_ray.scoring.output import (
    REFUSED,
    ROWS,
    ROWS_PER_CHUNK,
    ScoredRows,
    chunk_name,
    list_chunks,
    read_lines,
)
from rm_ray.scoring.preferences import compare_responses
from rm_ray.storage import Storage, below

logger = logging.getLogger(__name__)

WHOLE_EPOCH = 0.95
"""Share of the rows with losses that have one in an epoch which counts as whole."""


def read_losses(
    model: ScoringModel, rows: Rows, output: str | None, cluster: ClusterConfig
) -> RowLosses:
    """Return the losses that a run kept of the rows, or else those of its export, or of a model.

    ``model`` names a run's folder, an export or a model on the Hub, which scores the rows into the
    folder ``output``, as ``scoring.batch.score``.

    Raises:
        InputError: the model cannot be read, or knows none of the rows.
    """
    selections = mixture.select(
        [SourceSpec.parse(text) for text in rows.data],
        rows.seed,
        any_of=SCORED_PARTS,
        rules=rows.rules,
    )
    run_folder = Storage.open(model.model)
    if run_folder.exists(RUN):
        record = read_record(run_folder)
        kept = RowLosses.read(run_folder)
        reason = find_obstacle(record["config"], kept) or find_change(record, rows.rules)
        if kept is not None and reason is None:
            logger.info("%s: using the losses that the run kept", model.model)
            kept = replace(kept, losses=kept.losses[whole_epochs(kept.losses)])
            return select_rows(kept, selections, model.model)
        logger.info("%s: its export scores the rows, because %s", model.model, reason)
        model = replace(model, model=below(model.model, EXPORT))
    return score_losses(score(model, rows, output, cluster), selections)


def find_change(record: dict[str, Any], rules: ColumnRules) -> str | None:
    """Return why a run's training rows are not what their numbers name now; None if they are.

    ``rules`` are those by which rows are read now.
    """
    try:
        config = parse_config(record["config"], "the run's record")
        specs = [SourceSpec.parse(text) for text in config.data.train]
        selections = mixture.select(specs, config.run.seed, rules=config.data.rules)
        is_same = mixture.mixture_fingerprint(selections) == record["data"]["train"]["data_hash"]
    except InputError as error:
        return f"the rows that it was trained on cannot be read any more ({error})"
    if not is_same:
        return "the rows have changed since it was trained on them"
    if config.data.rules.key != rules.key:
        return "it read the rows by other settings, such as data.columns"
    return None


def find_obstacle(config: dict[str, Any], kept: RowLosses | None) -> str | None:
    """Return why the losses that a run kept do not compare its rows; None if they do."""
    objective = config.get("objective", {})
    if kept is None:
        return "it kept no losses (run.keep_pair_losses)"
    if whole_epochs(kept.losses).sum() < 2:
        return "it kept less than two whole epochs, and early losses only show an untrained model"
    if config["data"].get("group_by_prompt"):
        return "a loss belongs to several rows (data.group_by_prompt)"
    if (loss := objective.get("loss", "bradley_terry")) != "bradley_terry":
        return f"its losses depend on more than labels (objective.loss {loss})"
    margin = objective.get("margin", "add")
    if margin == "scale" or (kept.has_margins and margin != "ignore"):
        return f"its losses depend on more than labels (objective.margin {margin})"
    if (ties := objective.get("ties", "half")) != "half":
        return f"its losses depend on how ties are read (objective.ties {ties})"
    if objective.get("label_smoothing") or objective.get("noise"):
        return "its losses are smoothed (objective.label_smoothing, objective.noise)"
    return None


def whole_epochs(losses: np.ndarray) -> np.ndarray:
    """Return which epochs ``[E]`` have a loss of nearly every row that has any.

    A row without the losses of an epoch cannot be compared with one that has them.
    """
    known = ~np.isnan(losses)
    whole: np.ndarray = known.sum(axis=1) >= max(1, WHOLE_EPOCH * known.any(axis=0).sum())
    return whole


def select_rows(kept: RowLosses, selections: Sequence[Selection], model: str) -> RowLosses:
    """Return the losses of the selected rows.

    Raises:
        InputError: there is none.
    """
    mine = np.zeros(len(kept.row), dtype=bool)
    for selection in selections:
        origin = selection.fragment.origin
        if origin in kept.origins:
            of_origin = kept.fragment == kept.origins.index(origin)
            wanted = None if selection.rows is None else read_numbers(selection)
            mine |= of_origin if wanted is None else of_origin & np.isin(kept.row, wanted)
    if not mine.any():
        asked = ", ".join(sorted({each.fragment.origin for each in selections}))
        raise InputError(
            f"the run '{model}' was trained on none of these rows: it was trained on "
            f"{', '.join(kept.origins)}, and --data is {asked}. Name the sources as the run did, "
            "or name its export"
        )
    return RowLosses(
        origins=kept.origins,
        fragment=kept.fragment[mine],
        row=kept.row[mine],
        floor=kept.floor[mine],
        losses=kept.losses[:, mine],
    )


def read_numbers(selection: Selection) -> np.ndarray:
    """Return the numbers of a selection's rows in their origin, in order: ``[N]``."""
    return np.fromiter((number for number, _ in mixture.read_selected(selection)), dtype=np.int64)


def score_losses(scored: ScoredRows, selections: Sequence[Selection]) -> RowLosses:
    """Return the Bradley-Terry losses of scored rows that compare responses.

    Raises:
        InputError: no row does, or the rows have changed since they were scored.
    """
    fragments, numbers = array("l"), array("q")
    losses, floors = array("f"), array("d")
    for fragment, number, row in _number_rows(scored, selections):
        origin = scored.origins[fragment]
        parsed = parse_conversations(row, origin, scored.rules)
        try:
            group = compare_responses(row, parsed, origin, scored.rules)
        except RefusedError:
            continue
        if group is None or not len(group.better):
            continue
        fragments.append(fragment)
        numbers.append(number)
        losses.append(float(group.weights @ bradley_terry_losses(group.pairs)))
        floors.append(float(group.weights @ binary_entropy(group.probabilities)))
    if not losses:
        raise InputError(
            f"no row of {', '.join(scored.origins)} tells which response is better, so no label "
            "can be wrong"
        )
    return RowLosses(
        origins=scored.origins,
        fragment=np.asarray(fragments),
        row=np.asarray(numbers),
        floor=np.asarray(floors),
        losses=np.asarray(losses)[None],
    )


def _number_rows(
    scored: ScoredRows, selections: Sequence[Selection]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield each scored row with its fragment and its number there.

    Files of scored rows have no numbers: they are all of a chunk's rows but the refused ones.
    """
    chunks, refused_chunks = (set(list_chunks(scored.folder, kind)) for kind in (ROWS, REFUSED))
    for fragment, selection in enumerate(selections):
        numbers = read_numbers(selection)
        for first in range(0, len(numbers), ROWS_PER_CHUNK):
            name = chunk_name(fragment, first // ROWS_PER_CHUNK)
            left = numbers[first : first + ROWS_PER_CHUNK]
            if name in refused_chunks:
                lines = read_lines(scored.folder, f"{REFUSED}/{name}")
                left = left[~np.isin(left, [json.loads(line)["row"] for line in lines])]
            lines = read_lines(scored.folder, f"{ROWS}/{name}") if name in chunks else []
            if len(lines) != len(left):
                raise InputError(
                    f"{scored.folder.join(f'{ROWS}/{name}')} has {len(lines)} rows instead of "
                    f"{len(left)}: {selection.fragment.origin} has changed since it was scored; "
                    "choose another --output"
                )
            yield from zip(
                [fragment] * len(left), left.tolist(), map(json.loads, lines), strict=True
            )


def find_suspects(
    models: Sequence[ScoringModel],
    rows: Rows,
    cluster: ClusterConfig,
    *,
    share: float,
    exclusions: Exclusions,
    output: str | None = None,
) -> Suspects:
    """Return the share of the rows whose labels are most probably wrong, the worst first.

    Each model is a run's folder, an export or a model on the Hub. A model that has to score the
    rows does so on ``cluster`` and into ``output/model-N``, where the next call finds the scores.
    Rows to exclude are left out.

    Raises:
        InputError: a model cannot be read, or the models have no rows in common.
    """
    found = []
    for number, model in enumerate(models, start=1):
        logger.info("model %d of %d: %s", number, len(models), model.model)
        found.append(read_losses(model, rows, member_folder(output, number), cluster))
    joint = join_losses(found)
    if not len(joint.row):
        raise InputError(
            f"the models {', '.join(model.model for model in models)} have no rows of "
            f"{', '.join(rows.data)} in common"
        )
    is_kept = np.ones(len(joint.row), dtype=bool)
    for number, origin in enumerate(joint.origins):
        here = np.flatnonzero(joint.fragment == number)
        is_kept[here] = [why is None for why in exclusions.find_in(origin, joint.row[here])]
    return find_most_suspect(joint.only(is_kept), share)
