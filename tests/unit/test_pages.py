"""What the pages say is there is there, and their commands for systems elsewhere are sound."""

import ast
import os
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import settings_page
import torch
import yaml
from pages import (
    ELSEWHERE,
    PAGES,
    PROOFS,
    REQUESTS,
    ROOT,
    TUTORIAL,
    WALKED,
    Block,
    read_blocks,
    read_metrics,
)
from scored import ranked

from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.data.rows.refusals import Reason
from rm_ray.evaluation.lists import list_metrics
from rm_ray.objectives.build import build_objective
from rm_ray.train.metrics import GroupMetrics

MOST_LINES = 200

OBJECTIVES = (
    ObjectiveConfig(ties="davidson", tie_parameter="learned", centering=0.01),
    ObjectiveConfig(loss="plackett_luce", centering=0.01),
    ObjectiveConfig(loss="regression"),
)
"""With every part that an objective may have."""

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


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    limit = {"README.md": 150, "rm_ray/README.md": 70}.get(page, MOST_LINES)
    assert len((ROOT / page).read_text().splitlines()) <= limit


def test_every_page_is_reached_from_the_first_one() -> None:
    reached: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)[^)]*\)", page.read_text())
        ahead += {(page.parent / link).resolve() for link in links if "://" not in link} - reached
    assert reached | {ROOT / "tests/gpu/results/README.md"} == {ROOT / page for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if "/" in page])
def test_every_script_and_module_that_a_page_names_is_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    homes = (ROOT, (ROOT / page).parent, ROOT / "tests", ROOT / "jobs")
    for name in re.findall(r"`([\w./]+\.(?:py|sh))`", text):
        assert any((home / name).is_file() for home in homes), name


def test_the_page_of_the_code_names_every_package_once_in_the_order_of_its_layer() -> None:
    text = (ROOT / "rm_ray" / "README.md").read_text()
    named = re.findall(r"^\| \[?`([\w/]+)`", text, re.M)
    folders = {path.parent.relative_to(ROOT / "rm_ray") for path in modules()}
    assert Counter(named) == Counter(str(folder) for folder in folders if folder.name)
    alone = {path.name for path in (ROOT / "rm_ray").glob("*.py")} - {"__init__.py"}
    assert alone <= set(re.findall(r"`(\w+\.py)`", text))
    layers = [layer for names in read_layers() for layer in names.split()]
    order = [layers.index(name.split("/")[0]) for name in named]
    assert order == sorted(order)


def modules() -> list[Path]:
    paths = (ROOT / "rm_ray").rglob("*.py")
    return [path for path in paths if path.name != "__init__.py"]


def read_layers() -> tuple[str, ...]:
    """Return the layers that ``test_architecture.py`` holds the code to, the lowest first."""
    for node in ast.parse((ROOT / "tests/unit/test_architecture.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="LAYERS")], value=value):
                return tuple(ast.literal_eval(value))
    raise AssertionError("test_architecture.py has no LAYERS")


def test_the_page_of_settings_says_what_the_fields_say() -> None:
    page = settings_page.PAGE.read_text()
    assert settings_page.with_tables(page) == page, "run: python tests/settings_page.py --write"


def test_the_page_of_metrics_names_those_that_are_logged() -> None:
    assert Counter(read_metrics()) == Counter(named_in_code())


def named_in_code() -> set[str]:
    """Return the metrics in the code; those of the means are put together from their parts."""
    literal = re.compile(r'"((?:train/rm|eval/rm|perf)/\w+)"')
    names = {name for path in modules() for name in literal.findall(path.read_text())}
    for prefix, objective in product(("train/rm", "eval/rm"), OBJECTIVES):
        groups = GroupMetrics.zero(torch.device("cpu"), build_objective(objective).parts)
        groups.sums += 1
        names |= groups.means(prefix).keys()
    names |= list_metrics(ranked([3, 2, 1], [3.0, 2.0, 1.0]), "eval/rm").keys()
    return names | {"episode", "epoch"}


def test_the_page_of_data_has_every_reason_to_refuse_a_row() -> None:
    page = (ROOT / "rm_ray/data/README.md").read_text()
    listed = page.partition("<!-- reasons -->\n")[2].partition(".\n")[0]
    plain = re.sub(r"\s*\([^)]*\)", "", listed).replace("\n", " ")
    assert Counter(plain.split(", ")) == Counter(map(str, Reason))


def test_the_messages_of_the_troubleshooting_page_are_in_the_code() -> None:
    page = (ROOT / "jobs/troubleshooting.md").read_text().partition("## Ray\n")[0]
    rows = re.findall(r"^\| (`.+?`) \| ", page, re.M)
    assert len(rows) > 20
    for message in (quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)):
        pattern = re.compile(re.sub(r"\\\.\\\.\\\.|\b[NMS]\b|\b30\b", ".*", re.escape(message)))
        assert any(pattern.search(text) for text in texts_in_code()), message


@cache
def texts_in_code() -> frozenset[str]:
    """Return every text in the code, ``...`` where a value is put into it."""
    found: set[str] = set()
    for path in modules():
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and node not in docstrings:
                found.add(str(node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                found.add("".join(map(str, parts)))
    return frozenset(found)


def test_every_command_is_given_by_a_test() -> None:
    sections = {(page, block.section) for page in PAGES for block in read_blocks(page)}
    assert {*WALKED} <= sections
    assert {page for page, _ in sections - {*WALKED}} == {*ELSEWHERE, *PROOFS, *REQUESTS, TUTORIAL}


def test_the_commands_that_are_proofs_exist() -> None:
    """Their scripts, and tests for what they select."""
    blocks = [b for page in PROOFS for b in read_blocks(page) if (page, b.section) not in WALKED]
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
        timeout=240,
    )
    assert done.returncode == 0, f"{block.script}\n{done.stdout}{done.stderr}"
    return [call.split("\x1f") for call in calls.read_text().split("\x1e") if call]


def test_the_commands_for_clusters_elsewhere_name_what_the_manifests_have(elsewhere: Path) -> None:
    """Each is given to a shell as it stands, with stand-ins for the systems that it is for."""
    (elsewhere / ".cache" / "huggingface").mkdir(parents=True)
    (elsewhere / ".cache" / "huggingface" / "token").write_text("hf_token")
    blocks = [block for page in ELSEWHERE for block in read_blocks(page)]
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
            case ["kubectl", "port-forward", service, _] if service.endswith("-serve-svc"):
                name = service.removeprefix("service/").removesuffix("-serve-svc")
                assert re.search(rf"kind: RayService\n.*\n  name: {name}$", manifests, re.M)
            case ["podman", "build" | "push", *_, image] if image != ".":
                assert re.search(rf"image: (&\w+ )?{image}$", manifests, re.M)
    submitted = [call for call in calls if call[:3] == ["ray", "job", "submit"]]
    assert all(call[-2:] == ["--recipe", "jobs/recipes/tulu3_8b.yaml"] for call in submitted)
    assert len(submitted) == 2


def test_the_scripts_of_the_recipes_train_them(elsewhere: Path) -> None:
    """Those of the table, which need the Hugging Face Hub or a cluster, with stand-ins too."""
    table = re.findall(
        r"^\| `(\w+)` \|.* `bash (jobs/\w+\.sh)`", (ROOT / "jobs" / "README.md").read_text(), re.M
    )
    eight = ["tulu3_8b", "tulu3_8b_lora", "qlora_8b", "rewardbench2_8b"]
    recipes = ["debug", "debug_hub", *eight, "llama70b"]
    assert [recipe for recipe, _ in table] == recipes
    for recipe, script in table:
        block = Block(page="jobs/README.md", section="", script=f"bash {script} --run.seed 3")
        (call,) = [c for c in give(block, elsewhere) if "jobs/train.py" in c]
        at = call.index("jobs/train.py")
        assert call[at + 1 : at + 3] == ["--recipe", f"jobs/recipes/{recipe}.yaml"]
        assert call[-2:] == ["--run.seed", "3"]


def test_the_snippets_of_the_pages_are_python() -> None:
    for page in PAGES:
        for block in read_blocks(page, "python"):
            compile(block.script, page, "exec")
