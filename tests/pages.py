"""The project's pages, and the commands on them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_FOLDERS = ("jobs", "rm_ray", "cluster", "tests")

PAGES = (
    "README.md",
    *sorted(str(p.relative_to(ROOT)) for top in _FOLDERS for p in (ROOT / top).rglob("*.md")),
)

WALKED = (
    ("README.md", "Start"),
    ("README.md", "Train on your own pairs"),
    ("jobs/README.md", "Commands and recipes"),
    ("jobs/README.md", "Evaluation on named sets"),
    ("jobs/README.md", "Evaluation beside training"),
    ("rm_ray/data/README.md", "Your data"),
    ("rm_ray/audit/README.md", "Audits"),
    ("rm_ray/objectives/README.md", "Objectives"),
    ("rm_ray/objectives/README.md", "Regression first, then preferences"),
    ("rm_ray/preflight/README.md", "Before a run"),
    ("rm_ray/scoring/README.md", "Scoring and evaluating"),
    ("rm_ray/sweep/README.md", "Sweeps"),
    ("rm_ray/serving/README.md", "Serving"),
    ("rm_ray/publish/README.md", "Publishing"),
    ("rm_ray/tracking/README.md", "MLflow"),
    ("rm_ray/tracking/README.md", "Watching a run"),
    ("cluster/README.md", "One machine"),
)
"""Sections whose commands ``tests/fault/test_pages_walked.py`` gives as they stand."""

ELSEWHERE = (
    "cluster/kuberay.md",
    "cluster/aws.md",
    "cluster/slurm.md",
    "cluster/grafana/README.md",
)
"""Pages for systems that are not on this machine: their commands meet stand-ins."""

PROOFS = (
    "cluster/README.md",
    "tests/README.md",
    "tests/benchmarks/README.md",
    "tests/benchmarks/overhead.md",
    "tests/benchmarks/peers.md",
    "tests/clients/README.md",
    "tests/gpu/README.md",
)
"""Pages with commands that are tests themselves."""

REQUESTS = ("rm_ray/serving/routes.md",)
"""Pages whose commands ask a server; ``tests/integration/test_reward_clients.py`` gives them."""

TUTORIAL = "jobs/tutorial.md"
"""A page that ``tests/fault/test_tutorial_walked.py`` gives from the first command to the last."""

SECOND_TERMINAL = re.compile(r"^(.+?) +# .*in a second terminal$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Commands that stand together on a page."""

    page: str
    section: str
    script: str
    """What a shell is given: commands for a second terminal go to the background."""


def read_blocks(page: str, language: str = "bash") -> list[Block]:
    """Return the commands of a page, in order."""
    found, section, lines = [], "", iter((ROOT / page).read_text().splitlines())
    for line in lines:
        if heading := re.match(r"#+ (.+)", line):
            section = heading[1]
        elif (mark := line.strip()).startswith("```"):
            inside = []
            for inner in lines:
                if inner.strip() == "```":
                    break
                inside.append(SECOND_TERMINAL.sub(r"\1 &", inner))
            if mark == f"```{language}":
                script = textwrap.dedent("\n".join(inside))
                found.append(Block(page=page, section=section, script=script))
    return found


def read_metrics() -> list[str]:
    """Return the names in the page's table of metrics."""
    page = (ROOT / "rm_ray/tracking/README.md").read_text()
    table = page[page.index("## Metrics") : page.index("## MLflow")]
    cells = re.findall(r"^\| (`.+?) \|", table, re.M)
    return [name.strip("`") for cell in cells for name in cell.split(", ")]
