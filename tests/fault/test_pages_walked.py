"""The pages as a new user walks them: every command as it stands, on a machine of its own.

The machine is a namespace of Linux with its own network, processes and ``/tmp/ray``, so that ports
are free, and ``ray stop`` stops no other Ray. The Hub is a loopback one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN
from outcomes import result
from pages import WALKED, read_blocks, read_metrics
from servers import without_ray

from jobs import ROOT

TOOLS = ("ip", "unshare")

MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        bool(MISSING) or os.geteuid() != 0,
        reason=f"needs root, and of util-linux and iproute2: {', '.join(MISSING) or 'nothing'}",
    ),
]

BEGIN = """
set -euo pipefail
mkdir -p /tmp/ray "$HOME/ray"
mount --bind "$HOME/ray" /tmp/ray
ip link set lo up
{python} tests/hub_server.py "$HOME/hub" 8000 &
set -x
"""

OWN_PAIRS = "Train on your own pairs"

BEFORE = {
    OWN_PAIRS: f"""
export HF_TOKEN={TOKEN}
PYTHONPATH=. {sys.executable} tests/fault/own_pairs.py
"""
}
"""What stands before a section: the reader's own pairs, and a login at the Hub."""

AFTER = {
    OWN_PAIRS: """
.venv/bin/python ~/snippet.py
unset HF_TOKEN
""",
    "Publishing": f"HF_TOKEN={TOKEN} .venv/bin/python ~/card.py\n",
}
"""What stands after a section: snippets."""

CARD = """
import re
from huggingface_hub import ModelCard

card = ModelCard.load("me/reward-model").text
exec(re.search(r"```python\\n(.*?)```", card, re.S)[1])
"""
"""Scores two answers as the card of the published model says."""


def commands() -> Iterator[str]:
    """Yield what is given to the shell, section by section."""
    yield BEGIN.format(python=sys.executable)
    for page, section in WALKED:
        yield BEFORE.get(section, "")
        for block in read_blocks(page):
            if block.section == section:
                yield block.script.replace("hf_...", TOKEN)
        yield AFTER.get(section, "")


@pytest.fixture(scope="module")
def walk() -> Iterator[tuple[Path, str]]:
    """The home of the one who walked, and what was printed."""
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        home = Path(folder)
        clone = home / "clone"
        files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        for file in files:
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, clone / file)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        (snippet,) = read_blocks("README.md", "python")
        (home / "snippet.py").write_text(f"{snippet.script}\nprint('reward', reward)\n")
        (home / "card.py").write_text(CARD)
        hub = {"HF_ENDPOINT": "http://127.0.0.1:8000", "HF_HUB_DISABLE_XET": "1"}
        apart = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        done = subprocess.run(
            [*apart, "bash", "-c", "\n".join(commands())],
            cwd=clone,
            env=without_ray() | hub | {"HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        assert done.returncode == 0
        yield home, done.stdout


def test_every_command_of_the_pages_does_what_they_say(walk: tuple[Path, str]) -> None:
    home, printed = walk
    runs = home / "rm_ray"
    names = {path.parent.name for path in runs.glob("*/result.json")}
    (first, second) = sorted(name for name in names if name.startswith("debug-2"))
    assert names == {first, second, "mine", "logged", "debug-1"}
    for name in names - {"mine"}:  # whose model is new to language, and trained for 94 steps
        assert result(runs / name)["metrics"]["eval/rm/accuracy"] > 0.9
    assert "reward " in printed.split("snippet.py")[1]
    assert len(list((runs / "scored" / "rows").glob("*.jsonl"))) == 2  # of 500 rows
    for repo, tags in (("reward-model", 3), ("my-model", 1)):
        repository = json.loads((home / "hub" / f"me--{repo}.json").read_text())
        assert repository["branches"].keys() >= {"main"}
        assert len(repository["tags"]) == tags
    after = printed.split("/card.py\n")[1]
    for answer in ("A spider has eight legs.", "Legs are fun!"):
        assert re.search(rf"^-?\d+\.\d+ {re.escape(answer)}$", after, re.M)
    (told,) = re.findall(r'"train_runs": ?\[\{.*?"name": ?"([^"]+)"', printed)
    assert told == "debug-1"  # what Ray Train says of its runs


def test_a_run_on_own_pairs_ends_as_the_first_page_shows(walk: tuple[Path, str]) -> None:
    home, printed = walk
    (shown,) = [block for block in read_blocks("README.md", "") if block.section == OWN_PAIRS]
    there = {"/home/ana/pairs.jsonl": f"{home}/clone/pairs.jsonl", "/home/ana": str(home)}
    for line in shown.script.splitlines():
        for theirs, ours in there.items():
            line = line.replace(theirs, ours)
        assert line.strip() in printed


def test_a_run_logs_the_metrics_of_the_page(walk: tuple[Path, str]) -> None:
    home, _ = walk
    lines = (home / "rm_ray" / "mine" / "history.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line)["metrics"]}
    assert logged == set(read_metrics())
