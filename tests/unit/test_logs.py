import subprocess
import sys

from rm_ray.importing import ROOT


def test_characters_that_a_terminal_cannot_encode_are_escaped():
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


def test_stdout_is_reserved_for_a_document():
    code = "import logging; from rm_ray.logs import log_to_stderr, log_to_stdout; log_to_stdout(); "
    code += "log_to_stderr(); logging.getLogger('rm_ray').info('a line'); print('{}')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ROOT}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"{}\n", b"a line\n")


def test_bitsandbytes_does_not_advise_a_package_that_nothing_here_uses():
    code = "import logging; from rm_ray.logs import log_to_stdout; log_to_stdout(); "
    code += "log = logging.getLogger('bitsandbytes.backends.cpu.ops'); "
    code += "log.warning('Failed to load CPU gemm_4bit_forward from'); log.warning('other')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ROOT}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"other\n")
