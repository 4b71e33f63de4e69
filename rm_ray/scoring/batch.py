"""Rows of any number -> the same rows with rewards, by Ray Data, chunk by chunk.

A chunk is a run of rows of one file or split. A worker writes it as one file, at once, so that what
is finished is what has a file: the same command goes on with the rest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.exceptions import RayError

from rm_ray.config import ClusterConfig
from rm_ray.data import sources
from rm_ray.data.contract import Reason, RefusedError
from rm_ray.data.readers import count_rows
from rm_ray.data.source_spec import SourceSpec
from rm_ray.data.sources import Selection
from rm_ray.data.tokenization import ConversationTokenizer
from rm_ray.errors import InputError, find_final_error
from rm_ray.scoring.options import Rows, ScoringModel
from rm_ray.scoring.rows import COLUMNS, Conversations, parse_row
from rm_ray.scoring.scorer import Ids, Scorer, load_architecture
from rm_ray.storage import Storage
from rm_ray.train.session import fit_to_cluster

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 256

EVALUATIONS = "~/rm_ray/evaluations"

MANIFEST, PARTS, REFUSED = "scoring.json", "rows", "quarantine"

TOLD_EVERY_S = 5.0

ADDED = {
    "conversation": ("reward", "num_tokens"),
    "pair": ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens"),
    "responses": ("rewards", "best", "best_response", "num_tokens"),
}
"""Columns that a row gets, by its form."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A folder of scored rows."""

    folder: Storage
    origins: tuple[str, ...]
    """What the fragments are called, in the order of their numbers."""
    num_scored: int
    refused: dict[str, int]
    """Refused rows by reason."""

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each scored row with its origin, in order."""
        for name in _files(self.folder, PARTS):
            origin = self.origins[int(name.split("-")[1])]
            for line in _read_lines(self.folder, f"{PARTS}/{name}"):
                yield origin, json.loads(line)


def score(model: ScoringModel, rows: Rows, output: str | None, cluster: ClusterConfig) -> Scored:
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
    selections = sources.select(specs, rows.seed, any_of=COLUMNS)
    origins = tuple(selection.fragment.origin for selection in selections)
    folder = _claim(output, model, selections)
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
        _run(model, selections, folder, finished, fitted, total)
    except RayError as error:  # a file that is broken in its middle
        raise find_final_error(error) or error from None
    return _sum_up(folder, origins)


def fingerprint(model: ScoringModel) -> str:
    """Hash what decides the rewards; a folder by its files' names, sizes and times."""
    path = Path(model.model).expanduser()
    version: object
    if path.is_dir():
        version = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in path.iterdir())
    else:
        version = [model.model, load_architecture(model.model, model.revision)._commit_hash]
    settings = [version, model.dtype, model.max_length]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _claim(output: str | None, model: ScoringModel, selections: Sequence[Selection]) -> Storage:
    """Return the folder, with a note of what is scored, or once it is seen to have the same."""
    hashes = {"model": fingerprint(model), "rows": sources.fingerprint(selections)}
    name = "-".join(value[:8] for value in hashes.values())
    folder = Storage.open(output or f"{EVALUATIONS}/{name}")
    folder.check_writable("output")
    manifest = {"settings": asdict(model), "rows_per_chunk": ROWS_PER_CHUNK, **hashes}
    before = folder.read_json(MANIFEST)
    if before is None or not _files(folder, PARTS):  # no score was written
        if folder.exists(REFUSED):
            folder.delete(REFUSED)
        folder.write_json(MANIFEST, manifest)
        return folder
    compared = ("rows_per_chunk", *hashes)
    changed = [name for name in compared if before.get(name) != manifest[name]]
    if changed:
        raise InputError(
            f"--output '{folder.path}' has scores of another model or of other rows "
            f"({', '.join(changed)} differ); choose another folder"
        )
    return folder


def _run(
    model: ScoringModel,
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
            _ScoreChunk,
            fn_constructor_kwargs={
                "model": model,
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
    rows = sources.read_selected(selection)
    chunk = 0
    while block := list(islice(rows, ROWS_PER_CHUNK)):
        if _file_name(number, chunk) not in finished:
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


def _file_name(fragment: int, chunk: int) -> str:
    return f"part-{fragment:05d}-{chunk:08d}.jsonl"


class _ScoreChunk:
    """Scores a chunk and writes its file; Ray Data makes one for each worker."""

    def __init__(
        self, model: ScoringModel, origins: Sequence[str], folder: Storage, cluster: ClusterConfig
    ) -> None:
        if not cluster.use_gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        self._model, self._origins, self._folder = model, origins, folder
        self._device = torch.device("cuda" if cluster.use_gpu else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score one chunk; return its counts, or what is the user's to mend."""
        name, error = _file_name(int(batch["fragment"][0]), int(batch["chunk"][0])), ""
        num_rows, num_tokens = 0, 0
        try:
            num_rows, num_tokens = self._score(batch, name)
        except InputError as refusal:
            error = str(refusal)
        counts = {"file": name, "rows": num_rows, "tokens": num_tokens, "error": error}
        return {key: np.array([value]) for key, value in counts.items()}

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer.load(
            self._model.model,
            revision=self._model.revision,
            dtype=self._model.dtype,
            device=self._device,
            tokens_per_forward=self._model.tokens_per_forward,
        )

    @functools.cached_property
    def _tokenizer(self) -> ConversationTokenizer:
        assert self._model.max_length is not None
        return ConversationTokenizer(self._scorer.tokenizer, max_length=self._model.max_length)

    def _score(self, batch: dict[str, np.ndarray], name: str) -> tuple[int, int]:
        """Score one chunk and write its file; return how many rows and tokens it has."""
        origin, texts = self._origins[int(batch["fragment"][0])], batch["json"][0]
        rows = [json.loads(text) for text in texts]
        read = [_read(row, origin) for row in rows]
        ids = self._tokenize(read)
        rewards = self._scorer.score([one for one in ids if not isinstance(one, RefusedError)])
        if not all(np.isfinite(values).all() for values in rewards):
            raise InputError(
                f"the model gives rewards that are not finite numbers, to rows of {origin} from "
                f"row {batch['row'][0][0]} on; its weights are broken, or its dtype overflows"
            )
        scored, refused, tokens = [], [], 0
        left = iter(rewards)
        for number, row, what, found in zip(batch["row"][0], rows, read, ids, strict=True):
            if isinstance(found, RefusedError) or isinstance(what, RefusedError):
                assert isinstance(found, RefusedError)
                about = {"origin": origin, "row": int(number)}
                why = {"reason": str(found.reason), "detail": found.detail}
                refused.append({**about, **why, "raw": row})
            else:
                scored.append(_add(row, what, found, next(left).tolist()))
                tokens += sum(map(len, found))
        if refused:
            self._folder.write_text(f"{REFUSED}/{name}", _lines(refused))
        self._folder.write_text(f"{PARTS}/{name}", _lines(scored))  # last: it says that all is done
        return len(rows), tokens

    def _tokenize(
        self, read: Sequence[Conversations | RefusedError]
    ) -> list[list[list[int]] | RefusedError]:
        """Return the ids of each row's conversations, or why it is refused."""
        messages = [m for what in read if isinstance(what, Conversations) for m in what.messages]
        left = iter(self._tokenizer.tokenize(messages))
        result: list[list[list[int]] | RefusedError] = []
        for what in read:
            if isinstance(what, RefusedError):
                result.append(what)
                continue
            found = [next(left) for _ in what.messages]
            refusal = next((one for one in found if isinstance(one, RefusedError)), None)
            result.append(refusal or [one for one in found if not isinstance(one, RefusedError)])
        return result


def _read(row: Any, origin: str) -> Conversations | RefusedError:
    if not isinstance(row, dict):
        return RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}")
    try:
        return parse_row(row, origin)
    except RefusedError as refusal:
        return refusal


def _add(
    row: dict[str, Any], what: Conversations, ids: Sequence[Ids], rewards: list[float]
) -> dict[str, Any]:
    """Return the row with its rewards."""
    lengths = [len(one) for one in ids]
    best = int(np.argmax(rewards))
    values: dict[str, tuple[Any, ...]] = {
        "conversation": (rewards[0], lengths[0]),
        "pair": (*rewards[:2], *lengths[:2]),
        "responses": (rewards, best, what.responses[best], lengths),
    }
    added = dict(zip(ADDED[what.form], values[what.form], strict=True))
    if taken := sorted(added.keys() & row.keys()):
        raise InputError(
            f"the rows have a column '{taken[0]}' already, which scoring would write; rename it"
        )
    return {**row, **added}


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace").decode()  # half a character, as JSON escapes it


def _files(folder: Storage, kind: str) -> list[str]:
    """Return the names of whole files; a kill may leave a draft beside them."""
    names = [info.base_name for info in folder.list(kind)]
    return [name for name in names if name.endswith(".jsonl")]


def _read_lines(folder: Storage, name: str) -> list[str]:
    return folder.read_text(name).split("\n")[:-1]


def _sum_up(folder: Storage, origins: tuple[str, ...]) -> Scored:
    """Bring the refused rows together and count."""
    refused: Counter[str] = Counter()

    def counted(name: str) -> str:
        lines = _read_lines(folder, f"{REFUSED}/{name}")
        refused.update(json.loads(line)["reason"] for line in lines)
        return "\n".join([*lines, ""])

    if names := _files(folder, REFUSED):
        folder.write_pieces(f"{REFUSED}.jsonl", map(counted, names))
    num_scored = sum(len(_read_lines(folder, f"{PARTS}/{name}")) for name in _files(folder, PARTS))
    return Scored(
        folder=folder, origins=origins, num_scored=num_scored, refused=dict(refused.most_common())
    )
