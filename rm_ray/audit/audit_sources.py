"""What an audit reads: the rows, the evaluation sets, and the rows to leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rm_ray.audit.contamination.evaluation_sets import EvaluationSets
from rm_ray.audit.contamination.evaluation_sources import read_evaluation_prompts
from rm_ray.audit.finding_files import FOLDER
from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.exclusions import Exclusions
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class AuditSources:
    """What an audit reads."""

    selections: Sequence[Selection]
    origins: tuple[str, ...]
    """Of the selections."""
    rules: ColumnRules
    data_hash: str
    """Of the rows, as in the record of a run on them."""
    sets: EvaluationSets
    exclusions: Exclusions


def open_sources(
    specs: Sequence[str],
    against: Mapping[str, Sequence[str]],
    config: DataConfig,
    folder: Storage,
    *,
    seed: int,
) -> AuditSources:
    """Find the rows to audit, and read the named evaluation sets and the rows to leave out.

    Raises:
        InputError: a source or a file cannot be read.
    """
    _refuse_own_files(config.exclude, folder)
    selections = mixture.select(
        [SourceSpec.parse(text) for text in specs], seed, rules=config.rules
    )
    origins = tuple(selection.fragment.origin for selection in selections)
    return AuditSources(
        selections=selections,
        origins=origins,
        rules=config.rules,
        data_hash=mixture.mixture_fingerprint(selections),
        sets=EvaluationSets(read_evaluation_prompts(against, config.rules, seed)),
        exclusions=Exclusions.read(config.exclude, origins),
    )


def _refuse_own_files(exclude: Sequence[str], folder: Storage) -> None:
    """Refuse files to exclude by that an earlier audit wrote where this one writes.

    Rows that are excluded are not searched again, so the new file would not name them.
    """
    for name in exclude:
        file = Storage.open(name)
        is_near = file.filesystem.equals(folder.filesystem)
        if is_near and file.path.startswith(folder.join(FOLDER) + "/"):
            raise InputError(
                f"data.exclude {name} is in --output, where this audit would replace it without "
                "the rows it names; choose another --output"
            )
