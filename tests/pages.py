"""The project's pages, and the commands on them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAGES = ("README.md", "cluster/README.md", "rm_ray/README.md", "tests/README.md")

WALKED = (
    ("README.md", "Two commands"),
    ("README.md", "Training"),
    ("README.md", "Your own data"),
    ("README.md", "Before a run"),
    ("README.md", "Evaluating and scoring"),
    ("README.md", "Publishing"),
    ("README.md", "MLflow"),
    ("README.md", "Watching a run"),
    ("cluster/README.md", "One machine"),
)
"""Sections whose commands ``tests/fault/test_pages_walked.py`` gives as they stand."""

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
