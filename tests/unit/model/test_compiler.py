from pathlib import Path

import pytest

from rm_ray.model.compiler import find_missing


@pytest.fixture
def machine(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """A PATH with gcc, and a folder with Python's headers."""
    for name in ("bin", "include"):
        (tmp_path / name).mkdir()
    compiler = tmp_path / "bin" / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    (tmp_path / "include" / "Python.h").touch()
    return {"PATH": str(tmp_path / "bin")}, tmp_path / "include"


def test_a_compiler_and_headers_are_all_that_is_needed(machine):
    environment, include = machine

    assert find_missing(environment, include) == ""
    (Path(environment["PATH"]) / "gcc").rename(Path(environment["PATH"]) / "clang")
    assert find_missing(environment, include) == ""


def test_what_is_missing_is_named(machine, tmp_path: Path):
    environment, _ = machine
    (tmp_path / "empty").mkdir()
    headers = f"Python's headers ({tmp_path}/empty/Python.h)"

    assert find_missing(environment, tmp_path / "empty") == headers
    nothing = find_missing({"PATH": str(tmp_path / "empty")}, tmp_path / "empty")
    assert nothing == f"a C compiler (gcc) and {headers}"


def test_cc_is_taken_at_its_word_as_triton_does(machine):
    environment, include = machine

    assert find_missing({**environment, "CC": "gcc"}, include) == ""
    assert find_missing({**environment, "CC": "icc"}, include) == ("the compiler 'icc' set in CC")
