"""Imports point down, vendors stay at home, and no room is crowded.

What breaks a rule today stands in ``architecture_debts.txt``, which may only become shorter; what
it would be now is printed by ``python tests/unit/test_architecture.py``.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBTS = Path(__file__).with_name("architecture_debts.txt").read_text().splitlines()

LAYERS = (
    "allocator errors importing logs", "local_home storage", "config", "pretrained", "cluster",
    "data", "batches", "model", "objectives", "runs", "tracking", "train", "checkpoint",
    "evaluation", "scoring", "audit", "publish", "serving", "estimate", "preflight", "worker",
    "driver", "supervisor", "sweep", "commands",
)  # fmt: skip
"""Packages and modules, the lowest first; each imports from its own layer and those below."""

HOMES = {
    "ray": (
        "cluster", "data.cache.cache_build", "data.sources.mixture", "batches.stream",
        "tracking.channel", "tracking.prometheus", "tracking.heartbeat", "scoring.batch",
        "audit.audit", "checkpoint", "publish.mirror_actor", "serving.app", "serving.server",
        "preflight", "worker", "driver", "sweep",
    ),
    "mlflow": ("tracking",),
    "huggingface_hub": ("publish", "data", "pretrained"),
    "accelerate": ("train.engine",),
    "deepspeed": ("train.engine", "train.deepspeed_config"),
    "liger_kernel": ("model",),
    "peft": ("model.tuning",),
    "bitsandbytes": ("model.tuning",),
    "matplotlib": (
        "evaluation.reports.table_and_plots", "tracking.plots", "sweep.plots", "audit.plots",
    ),
    "pyarrow": ("storage", "data", "batches", "audit"),
    "rensa": ("audit.text.minhash",),
    "py3langid": ("audit.text.language",),
}  # fmt: skip
"""Where a vendor may be imported: in a package or module that begins so."""

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_MODULES = 350, 60, 15


@cache
def modules() -> dict[str, Path]:
    """Return every module's path by its name without ``rm_ray``."""
    home = ROOT / "rm_ray"
    paths = (path for path in home.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(home).with_suffix("").parts): path for path in paths}


@cache
def imports(module: str) -> frozenset[str]:
    """Return what a module imports anywhere in it: its own house's without ``rm_ray``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def inner_imports(module: str) -> set[str]:
    """Return the modules of the house that a module imports."""
    names = {name.removeprefix("rm_ray.") for name in imports(module) if name.startswith("rm_ray.")}
    return {name if name in modules() else name.rpartition(".")[0] for name in names}


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module.split(".")[0] in names.split())


def upward() -> Iterator[str]:
    for module in modules():
        for other in inner_imports(module):
            if layer_of(other) > layer_of(module):
                yield f"up: {module} -> {other}"


def circles() -> Iterator[str]:
    graph = {module: sorted(inner_imports(module)) for module in sorted(modules())}
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            imported, importer, *_ = error.args[1]
            yield f"circle: {' -> '.join(sorted(set(error.args[1])))}"
            graph[importer].remove(imported)
        else:
            return


def strangers() -> Iterator[str]:
    for module in modules():
        for vendor in {name.split(".")[0] for name in imports(module)} & HOMES.keys():
            if not any(f"{module}.".startswith(f"{home}.") for home in HOMES[vendor]):
                yield f"vendor: {module} imports {vendor}"


def untested() -> Iterator[str]:
    for module in modules():
        *folder, name = module.split(".")
        if not (ROOT / "tests" / "unit").joinpath(*folder, f"test_{name}.py").exists():
            yield f"untested: {module}"


def long_ones() -> Iterator[str]:
    for module, path in modules().items():
        text = path.read_text()
        if text.count("\n") > MOST_LINES:
            yield f"long: {module}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and _lines(node) > MOST_LINES_OF_A_FUNCTION:
                yield f"long: {module}.{node.name}"


def _lines(function: ast.FunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def crowded() -> Iterator[str]:
    for folder in {path.parent for path in modules().values()}:
        if len([*folder.glob("*.py")]) - (folder / "__init__.py").exists() > MOST_MODULES:
            yield f"crowded: {folder.relative_to(ROOT)}"


RULES = (upward, circles, strangers, untested, long_ones, crowded)


@pytest.mark.parametrize("rule", RULES)
def test_what_breaks_a_rule_is_known_and_nothing_else(rule):
    found = sorted(set(rule()))
    kinds = {"upward": "up", "circles": "circle", "strangers": "vendor", "long_ones": "long"}
    kind = kinds.get(rule.__name__, rule.__name__)
    assert found == [debt for debt in DEBTS if debt.startswith(f"{kind}: ")]


def test_every_debt_is_of_a_kind_that_is_looked_for():
    kinds = {debt.split(":")[0] for debt in DEBTS}
    assert kinds <= {"up", "circle", "vendor", "untested", "long", "crowded"}


TEXTS = (".py", ".md", ".sh", ".yaml", ".json", ".txt")


NO_MODULES = ("rm_ray.run", "rm_ray.json", "rm_ray.somewhere", "rm_ray/commit.txt")
"""A tag in MLflow, a dashboard, a logger of a test, and a file that an image may hold."""


def test_every_module_named_in_a_text_exists():
    """In strings, patterns, pages and scripts, which no import checks."""
    folders = (ROOT / name for name in ("rm_ray", "jobs", "cluster", "tests"))
    paths = chain(ROOT.glob("*.*"), *(folder.rglob("*.*") for folder in folders))
    missing = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in paths
        if path.suffix in TEXTS
        for match in re.finditer(r"(?<![\w/.-])rm_ray((?:\\?[./][a-z_]+)+)", path.read_text())
        if match[0] not in NO_MODULES and not _is_a_place(re.split(r"\\?[./]", match[1])[1:])
    }
    assert not missing


def _is_a_place(names: list[str]) -> bool:
    """Return whether names lead from the package to a module, or to something in one."""
    place = ROOT / "rm_ray"
    while names and (place / names[0]).is_dir():
        place, names = place / names[0], names[1:]
    return not names or any(place.glob(f"{names[0]}.*"))


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in sorted(set(chain(*(rule() for rule in RULES)))))
