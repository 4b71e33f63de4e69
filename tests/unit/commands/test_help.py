"""``--help`` of every command: complete, and without slow imports."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rm_ray.config.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[3]

COMMANDS = {path.stem for path in (ROOT / "jobs").glob("*.py")}

HEAVY = {"torch", "ray", "transformers", "mlflow", "deepspeed", "datasets", "matplotlib"}

CODE = """
import json, runpy, sys
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@functools.cache
def ask_for_help(name):
    """Return the page of a command, and the modules that it imported."""
    command = [sys.executable, "-c", CODE, str(ROOT / "jobs" / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_needs_no_slow_imports(name):
    page, imported = ask_for_help(name)
    assert page.startswith(f"usage: python jobs/{name}.py [-h]")
    assert HEAVY & imported == set()


def test_every_script_runs_the_command_of_its_name():
    modules = {path.stem for path in (ROOT / "rm_ray" / "commands").glob("*.py")}
    assert modules - {"__init__", "exits"} == COMMANDS
    for name in COMMANDS:
        script = (ROOT / "jobs" / f"{name}.py").read_text()
        assert f"from rm_ray.commands.{name} import main\n" in script


@pytest.mark.parametrize("name", ["train", "preflight", "inspect"])
def test_help_explains_every_setting(name):
    page, _ = ask_for_help(name)
    for section, fields in TrainConfig().to_dict().items():
        for field in fields:
            option = page.partition(f"--{section}.{field}")[2]
            assert len(option.partition("--")[0].split()) > 4, f"{section}.{field}"
