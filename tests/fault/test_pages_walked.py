"""The pages as a new user walks them: every command as it stands (``walks.py`` says where)."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN
from outcomes import result
from pages import WALKED, read_blocks, read_metrics
from walks import MARKS, walking

pytestmark = MARKS

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
    "Serving": "kill $!\nwait $!\n",  # which ends it with status 0
    "Publishing": f"HF_TOKEN={TOKEN} .venv/bin/python ~/card.py\n",
}
"""What stands after a section: snippets, and the end of the server."""

OF_OTHER_RUNS = {
    "train/rm/centering", "eval/rm/centering", "train/rm/tie_parameter", "eval/rm/tie_parameter",
    "eval/rm/best_of_k", "eval/rm/kendall_tau",
}  # fmt: skip
"""Metrics that pairs and the usual objective do not have."""

CARD = """
import re
from huggingface_hub import ModelCard

card = ModelCard.load("me/reward-model").text
exec(re.search(r"```python\\n(.*?)```", card, re.S)[1])
"""
"""Scores two answers as the card of the published model says."""


def commands() -> Iterator[str]:
    """Yield what is given to the shell, section by section."""
    for page, section in WALKED:
        yield BEFORE.get(section, "")
        for block in read_blocks(page):
            if block.section == section:
                yield block.script
        yield AFTER.get(section, "")


@pytest.fixture(scope="module")
def walk() -> Iterator[tuple[Path, str]]:
    """The home of the one who walked, and what was printed."""
    (snippet,) = read_blocks("README.md", "python")
    files = {"snippet.py": f"{snippet.script}\nprint('reward', reward)\n", "card.py": CARD}
    with walking(commands(), files) as walked:
        yield walked


def test_every_command_of_the_pages_does_what_they_say(walk: tuple[Path, str]) -> None:
    home, printed = walk
    runs = home / "rm_ray"
    names = {path.parent.name for path in runs.glob("*/result.json")}
    (first, second) = sorted(name for name in names if name.startswith("debug-2"))
    stages = {"scores", "strengths"}
    assert names == {first, second, "mine", "logged", "debug-1", *stages}
    assert result(runs / "strengths")["head"] == "score.weight"
    # Labels of the two stages are noisy; the model of "mine" is new to language.
    for name in names - {"mine", *stages}:
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
    assert logged == set(read_metrics()) - OF_OTHER_RUNS
