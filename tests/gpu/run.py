"""The kit: what a GPU does with this program, part by part, into Markdown and JSON.

    bash tests/gpu/run.sh [part ...] [--out FOLDER] [--budget SECONDS] [--dry-cpu]

The order of the parts is that of their worth. Each is a process of its own, ends after two minutes
at the latest, and prints its tables when it is done; one that fails does not stop the next.
``--dry-cpu`` runs all of them in a reduced form on a CPU, so that no mistake waits for the GPU; its
figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT, describe_gpu, describe_machine

from gpu.finding import Finding, missed, render

LIMIT_S = 120.0
"""Most that a part may take."""

TIDY_S = 12.0
"""Seconds before its limit when a part is to be over, so that it can still say what it lacks."""

LOG = "kit.log"
"""What all parts print, beside ``kit.md``, ``kit.json`` and the rows of the part that runs."""

LEAST_S = 20.0
"""With less than this left of the budget no part is started."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the kit, and the question that it answers."""

    question: str
    dry_s: float = LIMIT_S
    """Most that its reduced form may take on a CPU."""


PARTS = {
    "kernels": Part(question="Does the variable-length call compute what the grouped one does?"),
    "speed": Part(question="How much of the GPU's arithmetic does a step use, beside others?"),
    "whole": Part(question="Does a run go through Ray, kills and ZeRO to its export?", dry_s=1500),
    "learning": Part(question="Does it learn the same as on a CPU, in memory that stays flat?"),
    "syncs": Part(question="Where does the CPU wait for the GPU?"),
    "memory": Part(question="Is preflight's estimate the memory that training takes?"),
    "liger": Part(question="Do Liger's kernels compute the same, and what are they worth?"),
    "qlora": Part(question="Do 4-bit weights compute and learn the same, and what do they cost?"),
    "repeat": Part(
        question="Is a run that was killed bit-identical to one left alone?", dry_s=1500
    ),
}
"""All parts, the one worth most first."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What came of a part."""

    name: str
    status: str
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether it went to its end and missed nothing; one not asked for is no fault."""
        return self.status == "done"

    def render(self) -> str:
        """Return its page."""
        head = (
            f"## {self.name}\n\n{PARTS[self.name].question} ({self.status}, {self.seconds:.0f} s)"
        )
        return f"{head}\n\n{render(self.findings)}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; return 1 where one failed or missed a goal."""
    options = parse(arguments)
    out = options.out or Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="rm_ray-kit-"))
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).unlink(missing_ok=True)
    started = time.monotonic()
    head = describe(on_cpu=options.dry_cpu, lengths=options.lengths)
    print(head, flush=True)
    sections: list[Section] = []
    for name in options.parts or PARTS:
        left = options.budget - (time.monotonic() - started)
        if left < LEAST_S:
            section = Section(name=name, status="not started: the budget is spent", seconds=0.0)
        else:
            section = run_part(name, options, out, seconds=left)
        sections.append(section)
        write(out, head, sections)
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        print(f"\n{section.render()}", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s; {out / 'kit.md'}, {out / 'kit.json'}")
    return int(not all(section.is_good for section in sections))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; unknown parts are refused with the known ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="folder for kit.md, kit.json and kit.log")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds, all together")
    parser.add_argument("--dry-cpu", action="store_true", help="show on a CPU that all of it works")
    parser.add_argument(
        "--lengths",
        type=lambda name: Path(name).resolve(),
        help="lengths of real pairs, as pack.sh writes them",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; known are {', '.join(PARTS)}")
    return options


def describe(*, on_cpu: bool, lengths: Path | None) -> str:
    """Return what it runs on, in a few lines."""
    device = "a CPU, in a reduced form: no figure says anything" if on_cpu else describe_gpu()
    pairs = "lengths of real pairs" if lengths else "generated lengths (no real ones came along)"
    return f"# The kit on a GPU\n\n{describe_machine()}\n\n{device}; {pairs}"


def run_part(name: str, options: argparse.Namespace, out: Path, *, seconds: float) -> Section:
    """Run one part in a process of its own, for so long at the most."""
    limit = min(seconds, PARTS[name].dry_s if options.dry_cpu else LIMIT_S)
    rows = out / f"{name}.jsonl"
    rows.unlink(missing_ok=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "gpu.part", name, "--out", str(out.resolve())]
    command += ["--ends", str(started + limit - TIDY_S)]
    command += ["--lengths", str(options.lengths)] if options.lengths else []
    command += ["--dry-cpu"] if options.dry_cpu else []
    with (out / LOG).open("ab") as log:
        log.write(f"== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,
        )
        status = wait(process, limit)
    findings = read(rows)
    if status == "done" and (misses := missed(findings)):
        status = f"done, and {misses} of {len(findings)} rows miss their goal"
    elif status != "done":
        status += f"; {out / LOG} ends: {tail(out / LOG)}"
    seconds = time.monotonic() - started
    return Section(name=name, status=status, seconds=seconds, findings=tuple(findings))


def python_path() -> str:
    """Return where a part finds this package, and then whatever the kit carries."""
    carried = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT / "tests"), *([carried] if carried else [])])


def wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a part's end, or end it and all that it started; return how it ended."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = f"ended at its limit of {seconds:.0f} s"
    else:
        status = "done" if code == 0 else f"failed with {code}"
    for kind, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            os.killpg(process.pid, kind)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    end_group(process.pid, patience=10.0)
    return status


def end_group(group: int, *, patience: float) -> None:
    """Wait until all that a part started is gone, and then end what is left of it."""
    deadline = time.monotonic() + patience
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def read(file: Path) -> list[Finding]:
    """Return what a part has found, also one that did not come to its end."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [Finding(**row) for row in rows if "table" in row]


def tail(log: Path) -> str:
    """Return the last line of a log."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing")


def write(out: Path, head: str, sections: Sequence[Section]) -> None:
    """Write both files anew, so that nothing is lost with what follows."""
    pages = [head, *(section.render() for section in sections)]
    (out / "kit.md").write_text("\n\n".join(pages) + "\n")
    figures: dict[str, Any] = {
        "head": head,
        "parts": {
            section.name: {
                "status": section.status,
                "seconds": section.seconds,
                "findings": [finding.to_dict() for finding in section.findings],
            }
            for section in sections
        },
    }
    (out / "kit.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
