"""A raw row -> what the audit keeps of it: hashes, sketches, lengths, and what rules say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.audit.baselines import RULES, credit_rules, find_writers
from rm_ray.audit.contamination.evaluation_sets import EvaluationSets, Turn
from rm_ray.audit.text.language import identify_language
from rm_ray.audit.text.messages import leave_out_instructions, read_all, read_text
from rm_ray.audit.text.minhash import band, shingle, sign, sketch
from rm_ray.audit.text.words import hash_bytes, hash_words, split_words
from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.cache.exclusions import Exclusions
from rm_ray.data.cache.overlap import hash_group
from rm_ray.data.preferences.group_reading import parse_row
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError, encodable
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.data.rows.turns import INSTRUCTIONS

SCHEMA = pa.schema(
    {
        "fragment": pa.int32(),
        "row": pa.int64(),
        "source": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "raw": pa.string(),
        "reading": pa.string(),
        "content": pa.uint64(),
        "labelled": pa.uint64(),
        "compared": pa.list_(pa.uint64()),
        "signs": pa.list_(pa.int8()),
        "bands": pa.list_(pa.uint64()),
        "responses_sketch": pa.list_(pa.uint64()),
        "prompt_sketch": pa.list_(pa.uint64()),
        "prompt_words": pa.int32(),
        "better_words": pa.float32(),
        "worse_words": pa.float32(),
        "language": pa.string(),
        **{f"{name}_{part}": pa.float32() for name in RULES for part in ("won", "of")},
        "writers": pa.list_(pa.string()),
        "leaks": pa.list_(pa.string()),
    }
)
"""A row of the audit; only its place, reason, detail and raw text if ``reason`` is not empty."""


def read_block(
    batch: Mapping[str, np.ndarray],
    origins: Sequence[str],
    rules: ColumnRules,
    sets: EvaluationSets,
    exclusions: Exclusions,
) -> pa.Table:
    """Return the facts of a block of raw rows (``fragment``, ``row``, ``json``)."""
    excluded = exclusions.find(batch["fragment"], batch["row"])
    rows: list[dict[str, Any]] = []
    shingles: list[np.ndarray] = []
    read: list[int] = []
    columns = (batch["fragment"].tolist(), batch["json"].tolist(), excluded)
    for number, (fragment, text, why) in enumerate(zip(*columns, strict=True)):
        if why is not None:
            excluded_by = {"reason": str(Reason.EXCLUDED), "detail": encodable(why)}
            rows.append({**excluded_by, "raw": text})
            continue
        group, reading = parse_row(text, origins[fragment], rules)
        if isinstance(group, RefusedError):
            rows.append({"reason": str(group.reason), "detail": group.detail, "raw": text})
            continue
        assert reading is not None
        words = _Words.of(group)
        rows.append(_describe(group, json.loads(text), reading, words, sets))
        shingles += [np.concatenate([shingle(each) for each in words.responses])]
        shingles += [shingle(_join(words.asked))]
        read.append(number)
    _add_signatures(rows, read, shingles)
    found = {name: [row.get(name) for row in rows] for name in SCHEMA.names[2:]}
    return pa.table({"fragment": batch["fragment"], "row": batch["row"], **found}, schema=SCHEMA)


def _add_signatures(
    rows: Sequence[dict[str, Any]], read: Sequence[int], shingles: Sequence[np.ndarray]
) -> None:
    """Add bands and sketches to the rows that were read, each with two sets of shingles."""
    signatures = sign([np.unique(one) for one in shingles])
    responses, prompts = signatures[::2], signatures[1::2]
    has_words = np.array([len(one) > 0 for one in shingles], dtype=bool).reshape(-1, 2)
    # Without words in the prompt, the responses count twice.
    bands = band(np.where(has_words[:, 1:], prompts, responses), responses)
    sketches = sketch(signatures)
    for i, number in enumerate(read):
        rows[number] |= {
            "bands": bands[i].tolist() if has_words[i, 0] else [],
            "responses_sketch": sketches[2 * i].tolist(),
            "prompt_sketch": sketches[2 * i + 1].tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class _Words:
    """The hashed words of a group."""

    prompt: Sequence[np.ndarray]
    """Of all turns of the prompt."""
    asked: Sequence[np.ndarray]
    """Of those that are no instructions."""
    responses: Sequence[np.ndarray]

    @classmethod
    def of(cls, group: Group) -> _Words:
        prompt, responses = (
            [hash_words(split_words(read_all(message))) for message in messages]
            for messages in (group.prompt, group.responses)
        )
        both = zip(group.prompt, prompt, strict=True)
        asked = [words for message, words in both if message["role"] not in INSTRUCTIONS]
        return cls(prompt=prompt, asked=asked, responses=responses)


def _join(words: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.uint64), *words])


def _describe(
    group: Group,
    row: Mapping[str, Any],
    reading: RowReading,
    words: _Words,
    sets: EvaluationSets,
) -> dict[str, Any]:
    hashes = hash_group(group)
    credits = credit_rules(group, row, reading)
    asked = leave_out_instructions(group.prompt)
    turns = [Turn(role=message["role"], text=read_text(message)) for message in asked]
    leaks = sets.find(hashes["prompt_hash"], turns, _join([*words.prompt, *words.responses]))
    sizes = [len(each) for each in words.responses]
    said = [read_text(message) for message in (*asked, *group.responses[:1])]
    return {
        "source": group.source,
        "reason": "",
        "reading": reading.to_json(),
        **_keys(group, hashes["response_hashes"]),
        "prompt_words": sum(map(len, words.prompt)),
        **_lengths(group, sizes),
        "language": identify_language("\n".join(said)),
        **{f"{name}_won": credit.won for name, credit in credits.items()},
        **{f"{name}_of": credit.of for name, credit in credits.items()},
        "writers": [*map(encodable, find_writers(row) or ())],
        "leaks": [json.dumps(asdict(leak)) for leak in leaks],
    }


def _keys(group: Group, hashes: Sequence[bytes]) -> dict[str, Any]:
    """Return what identifies a row's responses, its labels, and each of its comparisons.

    Labels are all that training sees: margins, probabilities, weights and ratings too.
    """
    compared, signs, labels = [], [], []
    for each in group.comparisons:
        better, worse = hashes[each.better], hashes[each.worse]
        low, high = sorted((better, worse))
        sign = 0 if each.is_tie else 1 if better == low else -1
        compared.append(hash_bytes(low + high))
        signs.append(sign)
        strength = np.array([sign, each.probability, each.margin, each.weight]) + 0.0  # no -0
        labels.append(low + high + strength.tobytes())
    scores = group.scores or ()
    labels += [h + np.float64(s + 0.0).tobytes() for h, s in zip(hashes, scores, strict=False)]
    return {
        "content": hash_bytes(b"".join(sorted(hashes))),
        "labelled": hash_bytes(b"\0".join(sorted(labels))),
        "compared": compared,
        "signs": signs,
    }


def _lengths(group: Group, sizes: Sequence[int]) -> dict[str, float]:
    """Return the mean words of better and of worse responses, by the weight of comparisons."""
    decided = [each for each in group.comparisons if not each.is_tie]
    total = sum(each.weight for each in decided)
    if not total:
        return {"better_words": math.nan, "worse_words": math.nan}
    return {
        "better_words": sum(each.weight * sizes[each.better] for each in decided) / total,
        "worse_words": sum(each.weight * sizes[each.worse] for each in decided) / total,
    }
