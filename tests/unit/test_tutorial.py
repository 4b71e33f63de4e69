"""The options of the tutorial's commands; ``tests/fault/test_tutorial_walked.py`` gives them."""

import dataclasses
import importlib
import re
import shlex

import pytest
import tyro
from pages import ROOT, TUTORIAL, read_blocks

from rm_ray.config.recipe import parse_options


def given() -> list[tuple[str, tuple[str, ...]]]:
    """Each command of the page in ``jobs/``, with its arguments."""
    found = []
    for block in read_blocks(TUTORIAL):
        for line in block.script.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            scripts = [i for i, word in enumerate(words) if re.match(r"jobs/\w+\.py$", word)]
            found += [(words[i], tuple(w for w in words[i + 1 :] if w != "&")) for i in scripts]
    return found


@pytest.mark.parametrize(("script", "arguments"), given())
def test_a_command_of_the_tutorial_has_its_options(script: str, arguments: tuple[str, ...]) -> None:
    assert (ROOT / script).is_file()
    name = script.removeprefix("jobs/").removesuffix(".py")
    module = importlib.import_module(f"rm_ray.commands.{name}")
    kind = getattr(module, f"{name.capitalize()}Command")
    if "recipe" in {field.name for field in dataclasses.fields(kind)}:
        parse_options(kind, name, arguments)
    else:
        tyro.cli(kind, args=list(arguments), use_underscores=True)
