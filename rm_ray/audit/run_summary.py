"""What an audit found, in the folder of a run that was trained on the same rows: for its card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rm_ray.audit.finding_files import FOLDER
from rm_ray.config.recipe import parse_config
from rm_ray.errors import InputError
from rm_ray.runs.layout import AUDIT, EXPORT, RUN, read_record
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

AUDITS = "~/rm_ray/audits"
"""Parent of the default output folders."""

REPORT = "report.json"

MOST_LANGUAGES = 5

Report = Mapping[str, Any]
Record = Mapping[str, Any]


def default_folder(sources: Sequence[str]) -> str:
    """Return the output folder of an audit of these sources, if the user names none."""
    return f"{AUDITS}/{short_key(sources)}"


def short_key(names: Sequence[str]) -> str:
    """Return a key of names, for a folder."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def summarize_audit(report: Report) -> dict[str, Any]:
    """Return what a card says: rows, findings, sets, rules without a model, and languages."""
    rules = [*report["rules"].values(), report["writers"]]
    parts = ("rule", "share", "share_low", "share_high", "pairs")
    languages = [*report["languages"].items()][:MOST_LANGUAGES]
    return {
        "rows": report["rows_read"],
        "excluded": report["rows_refused"].get("excluded", 0),
        "findings": {kind: found["rows"] for kind, found in report["findings"].items()},
        "evaluation_sets": {name: each["rows"] for name, each in report["evaluation_sets"].items()},
        "rules": [{part: rule[part] for part in parts} for rule in rules if rule["pairs"]],
        "languages": {name: rows / report["rows_read"] for name, rows in languages},
    }


def write_to_run(model: str, report: Report) -> bool:
    """Write the summary of an audit, if ``model`` was trained on its rows; return whether it was.

    ``model`` is a run's folder or the export in it; of other models nothing is known. Cards that
    are written from then on have the summary.
    """
    run_folder = Storage.open(model.removesuffix("/").removesuffix(f"/{EXPORT}"))
    if not run_folder.exists(RUN):
        return False
    record = read_record(run_folder)
    if not _is_of_rows(report, record):
        logger.info(
            "the audit is not part of the model card of '%s', which was trained on other rows, "
            "read them by other settings, or is of another version: %s",
            model,
            ", ".join(record["config"]["data"]["train"]),
        )
        return False
    run_folder.write_json(AUDIT, summarize_audit(report))
    return True


def find_audit(record: Record) -> dict[str, Any] | None:
    """Return the summary of an audit of the rows of a run's record; None if there is none.

    It is looked for where the files of ``data.exclude`` are, and in the sources' default folder.
    """
    data = record["config"]["data"]
    folders = [file.rpartition(f"/{FOLDER}/")[0] for file in data.get("exclude", ())]
    for folder in dict.fromkeys([*folders, default_folder(data["train"])]):
        try:
            report = Storage.open(folder).read_json(REPORT) if folder else None
        except (InputError, OSError) as error:  # a card can do without
            logger.info("no audit is read from %s: %s", folder, error)
            continue
        if isinstance(report, dict) and _is_of_rows(report, record):
            logger.info("an audit of these rows is in %s; the model card sums it up", folder)
            return summarize_audit(report)
    return None


def _is_of_rows(report: Report, record: Record) -> bool:
    """Return whether a report is on the rows of a run, as the run read them."""
    try:
        rules = parse_config(record["config"], "the run's record").data.rules
    except InputError:  # of another version
        return False
    is_same = report.get("data_hash") == record["data"]["train"]["data_hash"]
    return bool(is_same and report.get("column_rules") == rules.key)


def keep_audit(run_folder: Storage, record: Record) -> None:
    """Write the summary of an earlier audit of a run's rows into its folder, if there is one."""
    if not run_folder.exists(AUDIT) and (found := find_audit(record)) is not None:
        run_folder.write_json(AUDIT, found)
