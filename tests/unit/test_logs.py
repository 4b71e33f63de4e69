import subprocess
import sys

from rm_ray.importing import ROOT


def test_a_terminal_without_letters_for_it_shows_text_all_the_same():
    code = "import logging; from rm_ray.logs import log_to_stdout; log_to_stdout(); "
    code += "logging.getLogger('rm_ray').info('größe → 3')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ROOT},
        capture_output=True,
        check=True,
    )
    assert done.stdout == rb"gr\xf6\xdfe \u2192 3" + b"\n"
    assert done.stderr == b""
