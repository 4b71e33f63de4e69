"""The counts of an audit in the folder of a run, for its model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from rm_ray.runs.layout import AUDIT, RUN, read_record
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def write_to_run(
    model: str, sources: Sequence[str], counts: Mapping[str, int], *, num_rows: int
) -> bool:
    """Write the rows found of each kind, and of how many, if ``model`` was trained on them.

    Does nothing, and returns False, if ``model`` is no run's folder or ``sources`` are not those of
    its ``data.train``. Cards that are written from then on show the counts.
    """
    run_folder = Storage.open(model)
    if not run_folder.exists(RUN):
        return False
    trained = read_record(run_folder)["config"]["data"]["train"]
    if list(sources) != list(trained):
        logger.info(
            "the audit is not part of the model card of '%s', which was trained on %s",
            model,
            ", ".join(trained),
        )
        return False
    run_folder.write_json(AUDIT, {"rows": num_rows, "findings": dict(counts)})
    return True
