"""Rows of any number -> the same rows with rewards, by Ray Data, chunk by chunk.

A chunk is a run of rows of one file or split. A worker writes it as one file, at once, so that what
is finished is what has a file: the same command goes on with the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from rm_ray.cluster.ray_cluster import fit_to_cluster
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.config.train_config import ClusterConfig
from rm_ray.data.rows.columns import ColumnRules
from rm_ray.data.rows.reading import Reading, refuse_missing_columns, sum_up
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.readers import count_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError, find_final_error
from rm_ray.scoring.chunks import PARTS, READINGS, REFUSED, ChunkScorer, file_name
from rm_ray.scoring.conversations import PARTS as PARTS_OF_ROWS
from rm_ray.scoring.scorer import load_architecture
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 256

EVALUATIONS = "~/rm_ray/evaluations"

MANIFEST = "scoring.json"

TOLD_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A folder of scored rows."""

    folder: Storage
    origins: tuple[str, ...]
    """What the fragments are called, in the order of their numbers."""
    num_scored: int
    refused: dict[str, int]
    """Refused rows by reason."""
    rules: ColumnRules
    readings: tuple[Reading, ...]
    """How the rows of each file or split were read."""

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each scored row with its origin, in order."""
        for name in _files(self.folder, PARTS):
            origin = self.origins[int(name.split("-")[1])]
            for line in _read_lines(self.folder, f"{PARTS}/{name}"):
                yield origin, json.loads(line)


def score(
    model: ScoringModel, rows: Rows, output: str | None, cluster: ClusterConfig
) -> ScoredRows:
    """Score every row of the sources that is not scored yet.

    Without ``output`` the folder is one below ``EVALUATIONS`` that model and rows decide.

    Raises:
        InputError: the model or a source cannot be read, or ``output`` has something else.
    """
    architecture = load_architecture(model.model, model.revision)
    if model.max_length is None:
        positions = architecture.get_text_config().to_dict().get("max_position_embeddings")
        model = replace(model, max_length=positions or 2**31)
    specs = [SourceSpec.parse(text) for text in rows.data]
    selections = mixture.select(specs, rows.seed, any_of=PARTS_OF_ROWS, rules=rows.rules)
    origins = tuple(selection.fragment.origin for selection in selections)
    folder, day = _claim(output, model, rows, selections)
    finished = set(_files(folder, PARTS))
    total = sum(
        count_rows(selection.fragment) if selection.rows is None else len(selection.rows)
        for selection in selections
    )
    logger.info("%s rows of %d files or splits", f"{total:,}", len(selections))
    if finished:
        logger.info("%d chunks were finished before", len(finished))
    fitted = fit_to_cluster(cluster)
    try:
        _run(model, rows.rules, day, selections, folder, finished, fitted, total)
    except RayError as error:  # a file that is broken in its middle
        raise find_final_error(error) or error from None
    scored = _sum_up(folder, origins, rows.rules)
    refuse_missing_columns(rows.rules.columns, scored.readings, prefix="")
    return scored


def scoring_fingerprint(model: ScoringModel) -> str:
    """Hash what decides the rewards; a folder by its files' names, sizes and times."""
    path = Path(model.model).expanduser()
    version: object
    if path.is_dir():
        version = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in path.iterdir())
    else:
        version = [model.model, load_architecture(model.model, model.revision)._commit_hash]
    settings = [version, model.dtype, model.max_length]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _claim(
    output: str | None, model: ScoringModel, rows: Rows, selections: Sequence[Selection]
) -> tuple[Storage, date]:
    """Return the folder, with a note of what is scored, or once it is seen to have the same.

    With it comes the day that a chat template is told which asks for the date: that of the
    beginning.
    """
    content = mixture.mixture_fingerprint(selections)
    if rows.rules.are_set:
        read = json.dumps([content, sorted(rows.columns), sorted(rows.ignore_columns)])
        content = hashlib.sha256(read.encode()).hexdigest()
    hashes = {"model": scoring_fingerprint(model), "rows": content}
    name = "-".join(value[:8] for value in hashes.values())
    folder = Storage.open(output or f"{EVALUATIONS}/{name}")
    folder.check_writable("output")
    today = datetime.now().astimezone().date()
    manifest = {"settings": asdict(model), "rows_per_chunk": ROWS_PER_CHUNK,
                "template_date": today.isoformat(), **hashes}  # fmt: skip
    before = folder.read_json(MANIFEST)
    if before is None or not _files(folder, PARTS):  # no score was written
        for left in filter(folder.exists, (REFUSED, READINGS)):
            folder.delete(left)
        folder.write_json(MANIFEST, manifest)
        return folder, today
    compared = ("rows_per_chunk", *hashes)
    changed = [name for name in compared if before.get(name) != manifest[name]]
    if changed:
        raise InputError(
            f"--output '{folder.path}' has scores of another model or of other rows "
            f"({', '.join(changed)} differ); choose another folder"
        )
    return folder, date.fromisoformat(before.get("template_date", today.isoformat()))


def _run(
    model: ScoringModel,
    rules: ColumnRules,
    day: date,
    selections: Sequence[Selection],
    folder: Storage,
    finished: set[str],
    cluster: ClusterConfig,
    total: int,
) -> None:
    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for number in batch["fragment"].tolist():
            yield from _chunks(number, selections[number], finished)

    items = [{"fragment": i} for i in range(len(selections))]
    results = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(read, batch_size=1, num_cpus=0.5)
        .repartition(target_num_rows_per_block=1)  # a chunk, so that all workers have some
        .map_batches(
            ChunkScorer,
            fn_constructor_kwargs={
                "model": model,
                "rules": rules,
                "day": day,
                "origins": [selection.fragment.origin for selection in selections],
                "folder": folder,
                "cluster": cluster,
            },
            batch_size=1,
            concurrency=int(cluster.num_workers or 1),
            num_cpus=cluster.cpus_per_worker,
            num_gpus=1 if cluster.use_gpu else 0,
        )
    )
    done, tokens, began, told = 0, 0, time.monotonic(), 0.0
    written = set(finished)
    for counts in results.iter_rows():
        if counts["error"]:
            raise InputError(counts["error"])
        written.add(counts["file"])
        done, tokens = done + counts["rows"], tokens + counts["tokens"]
        now = time.monotonic()
        if now - told > TOLD_EVERY_S:
            told, seconds = now, now - began
            logger.info(
                "%s of %s rows · %.1f rows/s · %s tokens/s",
                f"{done:,}",
                f"{total:,}",
                done / seconds,
                f"{tokens / seconds:,.0f}",
            )
    see_all(folder, written)


def see_all(folder: Storage, written: set[str]) -> None:
    """See that this machine finds every file that workers wrote.

    Raises:
        InputError: some are on other machines.
    """
    if missing := written - set(_files(folder, PARTS)):
        raise InputError(
            f"{len(missing)} of {len(written)} chunks were scored, and are not in {folder.path}: "
            "workers on other machines wrote them there. --output must be a folder or URI that "
            "every machine reaches"
        )


def _chunks(
    number: int, selection: Selection, finished: set[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a fragment's chunks that have no file yet, each as one row of a block."""
    rows = mixture.read_selected(selection)
    chunk = 0
    while block := list(islice(rows, ROWS_PER_CHUNK)):
        if file_name(number, chunk) not in finished:
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


def _files(folder: Storage, kind: str) -> list[str]:
    """Return the names of whole files; a kill may leave a draft beside them."""
    names = [info.base_name for info in folder.list(kind)]
    return [name for name in names if name.endswith(".jsonl")]


def _read_lines(folder: Storage, name: str) -> list[str]:
    return folder.read_text(name).split("\n")[:-1]


def _sum_up(folder: Storage, origins: tuple[str, ...], rules: ColumnRules) -> ScoredRows:
    """Bring the refused rows together and count."""
    refused: Counter[str] = Counter()

    def counted(name: str) -> str:
        lines = _read_lines(folder, f"{REFUSED}/{name}")
        refused.update(json.loads(line)["reason"] for line in lines)
        return "\n".join([*lines, ""])

    if names := _files(folder, REFUSED):
        folder.write_pieces(f"{REFUSED}.jsonl", map(counted, names))
    readings: dict[int, Counter[str]] = defaultdict(Counter)
    for name in _files(folder, READINGS):
        readings[int(name.split("-")[1])].update(json.loads(folder.read_text(f"{READINGS}/{name}")))
    num_scored = sum(len(_read_lines(folder, f"{PARTS}/{name}")) for name in _files(folder, PARTS))
    return ScoredRows(
        folder=folder,
        origins=origins,
        num_scored=num_scored,
        refused=dict(refused.most_common()),
        rules=rules,
        readings=tuple(sum_up(origins[i], counts) for i, counts in sorted(readings.items())),
    )
