"""Any number of rows -> the same rows with rewards, in chunks, on Ray Data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from rm_ray.cluster.ray_cluster import fit_to_cluster
from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.data.rows.column_readings import refuse_missing_columns
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.readers import count_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError, find_final_error
from rm_ray.evaluation.reward_statistics import RewardStatistics, find_statistics
from rm_ray.model.positions import check_positions, count_positions
from rm_ray.scoring.chunks import ChunkScorer
from rm_ray.scoring.conversations import SCORED_PARTS
from rm_ray.scoring.output import (
    ROWS,
    ROWS_PER_CHUNK,
    ScoredRows,
    chunk_name,
    claim_folder,
    list_chunks,
    require_chunks,
)
from rm_ray.scoring.scorer import load_architecture, model_fingerprint, model_name
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0


def score(
    model: ScoringModel, rows: Rows, output: str | None, cluster: ClusterConfig
) -> ScoredRows:
    """Score every row of the sources that is not scored yet.

    ``output`` defaults to a folder in ``~/rm_ray/evaluations`` named after the model and rows.

    Raises:
        InputError: the model or a source cannot be read, ``output`` holds other scores, or rewards
            are to be standardized without statistics.
    """
    name = model_name(model.model, model.revision)
    architecture = load_architecture(name)
    statistics = find_statistics(name, model.rewards)
    if model.max_length is None:
        model = replace(model, max_length=count_positions(architecture) or 2**31)
    assert model.max_length is not None
    check_positions(
        architecture, model.max_length, model=model.model, options=("--max_length", "--model")
    )
    specs = [SourceSpec.parse(text) for text in rows.data]
    selections = mixture.select(specs, rows.seed, any_of=SCORED_PARTS, rules=rows.rules)
    folder, day = claim_folder(
        output,
        model,
        rows,
        model_hash=model_fingerprint(model, architecture, statistics),
        rows_hash=mixture.mixture_fingerprint(selections),
    )
    finished = set(list_chunks(folder, ROWS))
    total = sum(
        count_rows(selection.fragment) if selection.rows is None else len(selection.rows)
        for selection in selections
    )
    logger.info("%s rows from %d files or splits", f"{total:,}", len(selections))
    if finished:
        logger.info("%d chunks are already finished", len(finished))
    batch = ScoringBatch(
        model=model,
        statistics=statistics,
        rules=rows.rules,
        day=day,
        selections=selections,
        folder=folder,
        cluster=fit_to_cluster(cluster),
    )
    try:
        batch.run(finished, total)
    except RayError as error:  # e.g. a file that is damaged in the middle
        raise find_final_error(error) or error from None
    scored = ScoredRows.collect(folder, batch.origins, rows.rules)
    refuse_missing_columns(rows.rules.columns, scored.readings, prefix="")
    return replace(scored, statistics=statistics)


@dataclass(frozen=True, kw_only=True)
class ScoringBatch:
    """The rows that one command scores, the model, and the output folder."""

    model: ScoringModel
    statistics: RewardStatistics | None
    """Those by which the rewards are standardized; None for raw ones."""
    rules: ColumnRules
    day: date
    """Date for chat templates that ask for today's."""
    selections: Sequence[Selection]
    folder: Storage
    cluster: ClusterConfig

    @property
    def origins(self) -> tuple[str, ...]:
        """Names of the fragments, by their numbers."""
        return tuple(selection.fragment.origin for selection in self.selections)

    def run(self, finished: set[str], total: int) -> None:
        """Score the chunks whose file is not in ``finished``; ``total`` is the number of rows."""
        done, tokens, began, reported = 0, 0, time.monotonic(), 0.0
        written = set(finished)
        for counts in self._results(finished).iter_rows():
            if counts["error"]:
                raise InputError(counts["error"])
            written.add(counts["file"])
            done, tokens = done + counts["rows"], tokens + counts["tokens"]
            now = time.monotonic()
            if now - reported > PROGRESS_EVERY_S:
                reported, seconds = now, now - began
                logger.info(
                    "%s of %s rows · %.1f rows/s · %s tokens/s",
                    f"{done:,}",
                    f"{total:,}",
                    done / seconds,
                    f"{tokens / seconds:,.0f}",
                )
        require_chunks(self.folder, written)

    def _results(self, finished: set[str]) -> ray.data.Dataset:
        """Return a lazy dataset that scores each chunk and yields its counts."""
        selections = self.selections

        def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            for number in batch["fragment"].tolist():
                yield from unscored_chunks(number, selections[number], finished)

        items = [{"fragment": i} for i in range(len(selections))]
        arguments: dict[str, Any] = {
            "model": self.model,
            "statistics": self.statistics,
            "rules": self.rules,
            "day": self.day,
            "origins": list(self.origins),
            "folder": self.folder,
            "cluster": self.cluster,
        }
        return (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(read, batch_size=1, num_cpus=0.5)
            .repartition(target_num_rows_per_block=1)  # one chunk, so that every worker gets some
            .map_batches(
                ChunkScorer,
                fn_constructor_kwargs=arguments,
                batch_size=1,
                concurrency=int(self.cluster.num_workers or 1),
                num_cpus=self.cluster.cpus_per_worker,
                num_gpus=1 if self.cluster.use_gpu else 0,
            )
        )


def unscored_chunks(
    number: int, selection: Selection, finished: set[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a fragment's chunks that are not in ``finished``, each as a block of one row."""
    rows = mixture.read_selected(selection)
    chunk = 0
    while block := list(islice(rows, ROWS_PER_CHUNK)):
        if chunk_name(number, chunk) not in finished:
            texts = np.empty(1, dtype=object)
            texts[0] = [text for _, text in block]
            numbers = np.empty(1, dtype=object)
            numbers[0] = [row for row, _ in block]
            yield {
                "fragment": np.array([number]),
                "chunk": np.array([chunk]),
                "row": numbers,
                "json": texts,
            }
        chunk += 1
