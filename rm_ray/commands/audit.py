"""The command that audits preference data."""

from __future__ import annotations

import logging
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rm_ray.commands.exits import ExitStatus, run_command
from rm_ray.config.checks import refuse_password, require
from rm_ray.config.recipe import parse_options
from rm_ray.config.train_config import TrainConfig

if TYPE_CHECKING:  # keep --help fast: these import pyarrow
    from rm_ray.audit.audit import Audit
    from rm_ray.audit.suspects import Suspects
    from rm_ray.data.cache.exclusions import Exclusions
    from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/audit.py"

PAGE, PLOTS = "report.md", "plots"


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Look for bad rows in preference data, before a model is trained on them.

    Finds duplicates, near duplicates, contradictions and rows that share prompts with evaluation
    sets, and shows what simple rules predict, how long responses are, and in which languages:
    ``python jobs/audit.py --data pairs.jsonl --against bench=allenai/reward-bench:filtered``.
    Writes report.md, report.json, plots, and files of rows for ``data.exclude``. Takes the settings
    of ``jobs/train.py``, reads rows as it does, and runs on the CPUs of the cluster.
    """

    recipe: Path | None = None
    """YAML file with the settings of the run, by section."""

    data: tuple[str, ...] = ()
    """Sources to audit, in the format of data.train; by default data.train."""

    against: tuple[str, ...] = ()
    """Evaluation sets that the data should not share prompts with, each 'NAME=SOURCE', in the
    format of evaluation.sets; by default evaluation.sets. They are held in memory."""

    model: tuple[str, ...] = ()
    """Models whose losses show which rows are probably mislabelled: runs on these rows, exports, or
    models on the Hub. Runs of several epochs with run.keep_pair_losses need not score the rows, and
    the seeds of a sweep find more than one run."""

    suspect_share: float = 0.15
    """Largest share of the rows to call mislabelled, the most suspect ones."""

    similarity: float = 0.8
    """Least estimated Jaccard similarity, of the prompts and of the responses, of near duplicates:
    from 0.7, where 6 of 10 are found; of 0.8, 95 of 100."""

    output: str | None = None
    """Folder or URI for the report and the files of rows, which all machines reach; by default a
    folder in ~/rm_ray/audits named after the sources. An older audit in it is replaced."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )

    def __post_init__(self) -> None:
        is_share = 0.7 <= self.similarity <= 1
        require(is_share, "--similarity", self.similarity, "between 0.7 and 1")
        is_share = 0 < self.suspect_share <= 1
        require(is_share, "--suspect_share", self.suspect_share, "above 0 and at most 1")
        for source in self.data:
            refuse_password("--data", source, "the environment")
        for entry in self.against:
            refuse_password("--against", entry, "the environment")
            name, _, source = entry.partition("=")
            is_legal = re.fullmatch(r"[a-zA-Z0-9_.-]+", name) is not None and bool(source.strip())
            require(is_legal, "--against", entry, "a list of NAME=SOURCE, as in bench=bench.jsonl")

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources to audit."""
        return self.data or self.config.data.train

    @property
    def place(self) -> str:
        """The output folder, or its URI."""
        from rm_ray.audit.run_summary import default_folder

        return self.output or default_folder(self.sources)

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """The sources of each evaluation set."""
        if not self.against:
            return self.config.evaluation.named_sets
        found: dict[str, tuple[str, ...]] = {}
        for entry in self.against:
            name, _, source = entry.partition("=")
            found[name] = (*found.get(name, ()), source)
        return found


def main(arguments: Sequence[str]) -> int:
    """Audit the data; return the exit status."""
    return run_command(_audit, arguments, on_interrupt="interrupted; rerun it to start again")


def _audit(arguments: Sequence[str]) -> int:
    command = parse_options(AuditCommand, PROGRAM, arguments)
    audit_sources(command)
    return ExitStatus.DONE


def audit_sources(command: AuditCommand) -> None:
    """Audit the sources on a Ray cluster, write the report, and log the summary."""
    from rm_ray.audit.finding_files import file_of
    from rm_ray.audit.report import summarize, write_page
    from rm_ray.audit.run_summary import REPORT, write_to_run
    from rm_ray.cluster.ray_cluster import ray_cluster
    from rm_ray.config.sections.cluster import ClusterConfig
    from rm_ray.data.rows.column_readings import describe_all
    from rm_ray.storage import Storage, below

    config, sources = command.config, command.sources
    folder = Storage.open(command.place)
    folder.check_writable("output")
    with ray_cluster(ClusterConfig(), imports=("rm_ray.audit.audit",)):
        from rm_ray.audit.audit import audit_data
        from rm_ray.audit.audit_sources import open_sources

        opened = open_sources(sources, command.sets, config.data, folder, seed=config.run.seed)
        suspects = _find_suspects(command, opened.exclusions) if command.model else None
        audit = audit_data(opened, folder, similarity=command.similarity)
        if suspects is not None:
            audit = _add_mislabelled(audit, suspects, folder)
    for line in describe_all(audit.readings):
        logger.info("%s", line)
    report = {"sources": list(sources), "similarity": command.similarity, **audit.to_json()}
    title = f"Audit of {', '.join(sources)}"
    folder.write_json(REPORT, report)
    for model in command.model:
        write_to_run(model, report)
    folder.write_text(PAGE, write_page(report, title))
    _plot(report, title, folder)
    logger.info("\n%s\n", summarize(report))
    files = [below(command.place, file_of(each.kind)) for each in audit.findings if each.count]
    if files:
        logger.info("to leave out what was found: --data.exclude %s", shlex.join(files))
    logger.info("report  %s", folder.join(PAGE))


def _find_suspects(command: AuditCommand, exclusions: Exclusions) -> Suspects:
    """Return the rows that the models call mislabelled, but for those that are excluded."""
    from rm_ray.audit.model_losses import find_suspects
    from rm_ray.audit.run_summary import short_key
    from rm_ray.config.scoring import Rows, ScoringModel
    from rm_ray.storage import below

    data = command.config.data
    rows = Rows(
        data=command.sources,
        columns=data.columns,
        ignore_columns=data.ignore_columns,
        form=data.form,
        max_responses=data.max_responses,
        score_weights=data.score_weights,
        seed=command.config.run.seed,
    )
    return find_suspects(
        [ScoringModel(model=model) for model in command.model],
        rows,
        command.config.cluster,
        share=command.suspect_share,
        exclusions=exclusions,
        output=below(command.place, f"scores-{short_key((*command.model, *command.sources))}"),
    )


def _add_mislabelled(audit: Audit, suspects: Suspects, folder: Storage) -> Audit:
    """Write the suspects, and say of how many rows they are."""
    from rm_ray.audit.finding_files import write_findings
    from rm_ray.audit.suspects import KIND

    written = write_findings(folder, KIND, suspects.findings)
    if (left := audit.tally.num_read - suspects.num_examined) > 0:
        logger.warning(
            "mislabelled rows are looked for among the %s that every model in --model has a loss "
            "of; %s rows have none, because a run was not trained on them, or they are too long or "
            "compare nothing",
            f"{suspects.num_examined:,}",
            f"{left:,}",
        )
    return replace(audit, findings=(*audit.findings, written), num_examined=suspects.num_examined)


def _plot(report: dict[str, Any], title: str, folder: Storage) -> None:
    from rm_ray.audit.plots import plot_audit  # imported here because matplotlib takes a second

    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as local:
        plot_audit(report, title, Path(local) / "audit.png")
        folder.upload(Path(local), PLOTS)
