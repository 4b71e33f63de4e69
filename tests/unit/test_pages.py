"""What the pages say is there is there, and their commands for systems elsewhere are sound."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, WALKED, Block, read_blocks

ELSEWHERE = ("KubeRay", "ray up (AWS)", "Slurm", "Prometheus and Grafana")
"""Sections for systems that are not on this machine: their commands meet stand-ins here."""

PROOFS = ("Development", "What is proved, and how", "How this is tested")
"""Sections of commands that are tests themselves."""

STAND_INS = ("kubectl", "helm", "podman", "aws", "ray", "pip", "sbatch", "prometheus", "tail",
             "grafana-server")  # fmt: skip

STAND_IN = """#!/bin/bash
call=$(printf '%s' "$(basename "$0")"; printf '\\x1f%s' "$@"
       if [[ " $* " == *" -f - "* ]]; then printf '\\x1f'; cat; fi)
printf '%s\\x1e' "$call" >>"$CALLS"  # at once: some are called beside one another
case "$*" in *jsonpath*) printf dG9rZW4= ;; *ami-id) echo ami-1 ;; esac
"""


def headings(page: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(str(path.resolve().relative_to(ROOT))), target


def test_the_tree_of_the_code_names_every_module_once() -> None:
    text = (ROOT / "rm_ray" / "README.md").read_text()
    tree = text[text.index("```\nrm_ray/") : text.index("\njobs/")]
    named: list[str] = []
    folder = ""
    for line in tree.splitlines()[2:]:
        if match := re.match(r"  ([\w/]+)/$", line):
            folder = f"{match[1]}/"
        elif match := re.match(r"  (  )?(\w+\.py(?:, \w+\.py)*) ", line):
            named += [f"{folder if match[1] else ''}{name}" for name in match[2].split(", ")]
    there = {
        str(path.relative_to(ROOT / "rm_ray"))
        for path in (ROOT / "rm_ray").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert Counter(named) == Counter(there)


def test_every_command_is_given_by_a_test() -> None:
    sections = {(block.page, block.section) for page in PAGES for block in read_blocks(page)}
    elsewhere = {("cluster/README.md", section) for section in ELSEWHERE}
    proofs = {each for each in sections if each[1] in PROOFS}
    assert sections == {*WALKED, *elsewhere, *proofs}


def test_the_commands_that_are_proofs_exist() -> None:
    """Their scripts, and tests for what they select."""
    blocks = [b for page in PAGES for b in read_blocks(page) if b.section in PROOFS]
    for block in blocks:
        for line in block.script.splitlines():
            words = line.partition("#")[0].split()
            paths = [word for word in words if re.match(r"tests/.*\.(py|sh)$", word)]
            assert len(paths) == 1, line
            assert (ROOT / paths[0]).is_file(), line
            if "-k" in words:
                selected = words[words.index("-k") + 1]
                assert list((ROOT / "tests" / "fault").glob(f"*{selected}*.py")), line


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A clone on a machine whose commands only note how they are called."""
    clone, programs = tmp_path / "clone", tmp_path / "programs"
    for folder in ("cluster", "jobs"):
        shutil.copytree(ROOT / folder, clone / folder)
    shutil.copy(ROOT / "requirements.txt", clone)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "activate").touch()
    programs.mkdir()
    for path in [*(programs / name for name in STAND_INS), clone / ".venv/bin/python",
                 clone / ".venv/bin/ray"]:  # fmt: skip
        path.write_text(STAND_IN)
        path.chmod(0o755)
    return tmp_path


def give(block: Block, folder: Path) -> list[list[str]]:
    """Give a block's commands to a shell; return how programs were called."""
    dashboards = folder / "session" / "metrics" / "grafana" / "dashboards"
    dashboards.mkdir(parents=True, exist_ok=True)
    script = block.script.replace("/tmp/ray/session_latest", str(folder / "session"))
    calls = folder / "calls"
    calls.write_text("")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\nwait"],
        cwd=folder / "clone",
        env={
            "PATH": f"{folder / 'programs'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CALLS": str(calls),
            "RAY_AUTH_TOKEN": "token",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{block.script}\n{done.stdout}{done.stderr}"
    return [call.split("\x1f") for call in calls.read_text().split("\x1e") if call]


def test_the_commands_for_clusters_elsewhere_name_what_the_manifests_have(elsewhere: Path) -> None:
    """Each is given to a shell as it stands, with stand-ins for the systems that it is for."""
    (elsewhere / ".cache" / "huggingface").mkdir(parents=True)
    (elsewhere / ".cache" / "huggingface" / "token").write_text("hf_token")
    blocks = [b for b in read_blocks("cluster/README.md") if b.section in ELSEWHERE]
    calls = [call for block in blocks for call in give(block, elsewhere)]
    assert {call[0] for call in calls} == {*STAND_INS, "python"}
    manifests = "\n".join(path.read_text() for path in (ROOT / "cluster").glob("*.yaml"))
    for call in calls:
        for word in call[1:]:
            if re.match(r"(cluster|jobs)/.+\.\w+$", word):
                assert (ROOT / word).is_file(), call
        match call:
            case ["kubectl", "apply", "-f", "-", claim]:
                document = yaml.safe_load(claim)
                assert f"claimName: {document['metadata']['name']}" in manifests
            case ["kubectl", "create", "secret", "generic", name, source]:
                key = source.partition("=")[2].partition("=")[0]
                assert re.search(rf"name: {name}\n\s+key: {key}\b", manifests), call
            case ["kubectl", "get", "rayjob" | "raycluster" as kind, name, *_]:
                assert re.search(rf"kind: {kind}\n.*\n  name: {name}$", manifests, re.I | re.M)
            case ["podman", "build" | "push", *_, image] if image != ".":
                assert re.search(rf"image: (&\w+ )?{image}$", manifests, re.M)
    submitted = [call for call in calls if call[:3] == ["ray", "job", "submit"]]
    assert all(call[-2:] == ["--recipe", "jobs/recipes/tulu3_8b.yaml"] for call in submitted)
    assert len(submitted) == 2


def test_the_scripts_of_the_recipes_train_them(elsewhere: Path) -> None:
    """Those of the table, which need the Hugging Face Hub or a cluster, with stand-ins too."""
    table = re.findall(
        r"^\| `(\w+)` \|.* `bash (jobs/\w+\.sh)`", (ROOT / "README.md").read_text(), re.M
    )
    assert [recipe for recipe, _ in table] == ["debug", "debug_hub", "tulu3_8b"]
    for recipe, script in table:
        block = Block(page="README.md", section="", script=f"bash {script} --run.seed 3")
        (call,) = [c for c in give(block, elsewhere) if "jobs/train.py" in c]
        at = call.index("jobs/train.py")
        assert call[at + 1 : at + 3] == ["--recipe", f"jobs/recipes/{recipe}.yaml"]
        assert call[-2:] == ["--run.seed", "3"]


def test_the_snippets_of_the_pages_are_python() -> None:
    for page in PAGES:
        for block in read_blocks(page, "python"):
            compile(block.script, page, "exec")
