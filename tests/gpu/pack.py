"""The archive for a GPU machine without a package index.

It holds ``site/`` (packages for PYTHONPATH), ``project/`` (this commit), ``lengths.npz`` (of real
pairs) and ``commit``. Versions are those that are installed here, which requirements.txt pins or
led to. A listing proves that every import of the kit is answered by the archive, the machine or
Python itself.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import numpy as np
from machine import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from report import markdown_table

MOST_BYTES = 60 * 2**20

PYTHON = "3.12"

PLATFORMS = (
    "manylinux1_x86_64",
    "manylinux2014_x86_64",
    *(f"manylinux_2_{n}_x86_64" for n in (5, 12, 17, 24, 27, 28, 31, 34)),
)
"""Systems whose wheels run there; the index matches each name exactly."""

WITHOUT_EXTRAS = {"ray": {"train"}}
"""Extras that the kit takes instead of those in requirements.txt: nobody looks at Ray's dashboard
there."""

FROM_SOURCE = {"deepspeed"}
"""What the index has as source alone; its wheel is pure Python as long as no operator is built."""

STRIPPED = (
    "ray/jars", "ray/rllib", "ray/llm", "ray/cpp", "ray/dashboard/client", "mlflow/server/js",
)  # fmt: skip
"""Folders that training never reads: Java, C++, reinforcement learning and pages for browsers."""

OTHER_LIBRARIES = ("cuda11*", "cuda12[0-6]", "cuda132", "rocm*", "xpu*")
"""Libraries of bitsandbytes to leave out: that of 12.8 serves all of CUDA 12, of 13.0 all of 13."""

IMPORTERS = (
    "rm_ray", "jobs", "tests/gpu", "tests/fault/jobs.py", "tests/outcomes.py", "tests/tables.py",
    "tests/families.py", "tests/varlen_operator.py", "tests/benchmarks/core.py",
    "tests/benchmarks/memory_estimate.py", "tests/benchmarks/needs.py", "tests/benchmarks/turns.py",
    "tests/benchmarks/pair_set.py", "tests/benchmarks/machine.py",
    "tests/benchmarks/plain_engine.py", "tests/benchmarks/report.py", "tests/gloo_ranks.py",
)  # fmt: skip
"""Code that runs there."""


def main() -> None:
    """Make the archive, and say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    there = read_machine()
    carried = {name: version(name) for name in closure(read_roots()) if name not in there}
    with tempfile.TemporaryDirectory(prefix="rm_ray-pack-") as name:
        work = Path(name)
        kit = work / "kit"
        fetch(carried, work / "wheels")
        unpack(work / "wheels", kit / "site")
        add_project(kit)
        print(list_imports(kit / "site", there), flush=True)
        archive = options.out / "kit-cp312.tar.xz"
        compress(kit, archive)
        unpacked = sum(file.stat().st_size for file in kit.rglob("*") if file.is_file())
    size = archive.stat().st_size
    print(
        f"\n{archive}: {size / 2**20:.1f} MiB ({unpacked / 2**20:.0f} unpacked), {len(carried)} "
        f"packages: {' '.join(f'{name}=={carried[name]}' for name in sorted(carried))}"
    )
    if size > MOST_BYTES:
        archive.unlink()
        sys.exit(f"{size / 2**20:.1f} MiB are more than {MOST_BYTES / 2**20:.0f}: removed again")


def read_machine() -> set[str]:
    """Return what a GPU machine has itself."""
    lines = (ROOT / "tests" / "gpu" / "machine.txt").read_text().splitlines()
    return {canonicalize_name(line) for line in lines if line and not line.startswith("#")}


def read_roots() -> Iterator[Requirement]:
    """Yield what requirements.txt asks for, with the extras that the kit takes."""
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            requirement.extras = WITHOUT_EXTRAS.get(name, requirement.extras)
            yield requirement


def closure(roots: Iterable[Requirement]) -> set[str]:
    """Return the names of the roots and all that they lead to, on Linux with Python 3.12."""
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for text in requires(name) or []:
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(
                marker.evaluate({**environment, "extra": extra}) for extra in extras or {""}
            ):
                waiting.append(needed)
    return found


def fetch(carried: dict[str, str], wheels: Path) -> None:
    """Download the wheels for Python 3.12, and make those that the index has as source alone."""
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-qq", "--disable-pip-version-check", "--no-deps"]
    pins = {name: f"{name}=={number.partition('+')[0]}" for name, number in carried.items()}
    ready = [pin for name, pin in sorted(pins.items()) if name not in FROM_SOURCE]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*pip, "download", *quiet, *target, "-d", str(wheels), *ready], check=True)
    made = [pins[name] for name in sorted(FROM_SOURCE & pins.keys())]
    subprocess.run(
        [*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(wheels), *made],
        check=True,
        env={**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
    )


def unpack(wheels: Path, site: Path) -> None:
    """Unpack all wheels into one folder, without what training never reads."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    for folder in (*(site / name for name in STRIPPED), *site.glob("*.data")):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in [path for path in site.rglob("tests") if path.is_dir()]:
        shutil.rmtree(folder, ignore_errors=True)
    libraries = (f"bitsandbytes/libbitsandbytes_{name}.so" for name in OTHER_LIBRARIES)
    for file in [path for p in ("**/*.pyc", "**/*.map", *libraries) for path in site.glob(p)]:
        file.unlink()


def add_project(kit: Path) -> None:
    """Add this commit, its name, and the lengths of real pairs where there are some."""
    git = ["git", "-C", str(ROOT)]
    project = kit / "project"
    project.mkdir(parents=True)
    packed = subprocess.run([*git, "archive", "HEAD"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(project)], input=packed, check=True)
    described = subprocess.run(
        [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
    )
    (kit / "commit").write_text(described.stdout)
    from pair_set import SHARED_DATA, read_pairs  # imports torch

    if not SHARED_DATA.exists():
        print(f"no real pairs in {SHARED_DATA}: the kit will generate lengths")
        return
    pairs = read_pairs("real")
    np.savez_compressed(
        kit / "lengths.npz",
        chosen=pairs.chosen,
        rejected=pairs.rejected,
        prefix=pairs.lengths.prefix,
    )


def list_imports(site: Path, there: set[str]) -> str:
    """Return a table of where each imported package comes from.

    Raises:
        SystemExit: one comes from nowhere.
    """
    providers = packages_distributions()
    own = {"rm_ray", "gpu", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    rows, missing = [], []
    for module in sorted(imported()):
        if module in sys.stdlib_module_names or module in own:
            continue
        names = {canonicalize_name(name) for name in providers.get(module, [module])}
        if (site / module).exists() or (site / f"{module}.py").exists():
            where = "archive"
        elif names & there:
            where = "machine"
        else:
            where = "NOWHERE"
            missing.append(module)
        rows.append([module, ", ".join(sorted(names)), where])
    if missing:
        sys.exit(f"imported and neither carried nor in machine.txt: {', '.join(missing)}")
    return markdown_table(["import", "package", "from"], rows)


def imported() -> set[str]:
    """Return the top-level packages that the code which runs there imports."""
    paths = [ROOT / name for name in IMPORTERS]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def compress(kit: Path, archive: Path) -> None:
    """Write the archive, the same for the same contents."""
    order = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]
    packed = subprocess.Popen(
        ["tar", *order, "-C", str(kit.parent), "-cf", "-", kit.name], stdout=subprocess.PIPE
    )
    with archive.open("wb") as file:
        subprocess.run(["xz", "-T0", "-6"], stdin=packed.stdout, stdout=file, check=True)
    if packed.wait():
        sys.exit("tar failed")


if __name__ == "__main__":
    main()
