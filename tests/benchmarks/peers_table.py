"""The table of peers, on the first page and in full: its figures, facts and their proofs.

    python tests/benchmarks/peers_table.py --check     # do the pages say what the files say?
    python tests/benchmarks/peers_table.py --write     # write it into the pages
    python tests/benchmarks/peers_table.py --verify    # and are the facts in the peers' releases?

Speeds come from ``peers.json``, which ``peers.py --figures`` writes: medians over turns, and ratios
as the median of the turns' ratios, which is not the ratio of two medians. Facts come from
``peer_claims.py``. ``--verify`` downloads each trainer's wheel from PyPI and looks for the text
that proves a fact; open-instruct is not on PyPI, so that what is said of it is not checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT
from peer_claims import (
    ASPECTS,
    CLAIMS,
    MORE,
    ON_FIRST_PAGE,
    OURS,
    RELEASES,
    TRAINERS,
    UNSHARED,
    Claim,
)
from report import Spread, markdown_table

FIGURES = Path(__file__).with_name("peers.json")
BEGIN, END = "<!-- peers: written by tests/benchmarks/peers_table.py -->", "<!-- end of peers -->"

Read = Callable[[str, str], str | None]
"""Returns the text of a trainer's file, or None where its files are not at hand."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one setting of one trainer reached, turn by turn."""

    trainer: str
    title: str
    by_default: bool
    pairs_per_second: tuple[float, ...]
    ours_over_it: tuple[float, ...]
    """How many times its pairs per second rm_ray's were, in the same turn; empty if unknown."""

    @property
    def median(self) -> float:
        """Pairs per second."""
        return statistics.median(self.pairs_per_second)

    @property
    def times(self) -> str:
        """The median of the turns' ratios."""
        known = self.ours_over_it
        return f"{statistics.median(known):.2f}" if known else "turns not kept"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run of ``peers.py``."""

    conditions: str
    commit: str
    speeds: tuple[Speed, ...]
    note: str
    """What is to be known of figures that ``peers.py`` did not write; mostly empty."""
    loss_difference: float
    """Most that the loss of a step differed between trainers of the same pairs."""

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read what ``peers.py --figures`` wrote."""
        figures: dict[str, Any] = json.loads(path.read_text())
        return cls(
            conditions=figures["conditions"],
            commit=figures["commit"],
            speeds=tuple(
                Speed(
                    trainer=one["trainer"],
                    title=one["title"],
                    by_default=one["by_default"],
                    pairs_per_second=tuple(one["pairs_per_second"]),
                    ours_over_it=tuple(one["ours_over_it"]),
                )
                for one in figures["speeds"]
            ),
            note=figures.get("note", ""),
            loss_difference=figures["loss_difference"],
        )

    def of(self, trainer: str) -> list[Speed]:
        """Return what a trainer's settings reached, the fastest first."""
        mine = [speed for speed in self.speeds if speed.trainer == trainer]
        return sorted(mine, key=lambda speed: -speed.median)

    def best(self, trainer: str) -> Speed | None:
        """Return its fastest setting."""
        mine = self.of(trainer)
        return mine[0] if mine else None

    def default(self, trainer: str) -> Speed | None:
        """Return the setting that it has if nothing is said."""
        return next((speed for speed in self.of(trainer) if speed.by_default), None)


def speed_cell(measured: Measured, trainer: str) -> str:
    """Return the pairs per second of one trainer."""
    best, default = measured.best(trainer), measured.default(trainer)
    if best is None:
        why = f"not run: {TRAINERS[trainer].not_timed}"
        stand_in = measured.best(TRAINERS[trainer].stand_in)
        return f"{why} (its batches, in rm_ray: {stand_in.median:.2f})" if stand_in else why
    if trainer == OURS:
        return f"{best.median:.2f}"
    if default is None or default is best:
        return f"{best.median:.2f}"
    return f"{best.median:.2f} at best, {default.median:.2f} by default"


def ratio_cell(measured: Measured, trainer: str) -> str:
    """Return how many times as fast as one trainer rm_ray is."""
    if trainer == OURS:
        return ""
    best, default = measured.best(trainer), measured.default(trainer)
    if best is None:
        stand_in = measured.best(TRAINERS[trainer].stand_in)
        return f"({stand_in.times})" if stand_in else ""
    if default is None or default is best:
        return f"{best.times}"
    return f"{best.times}, {default.times}"


def fact_rows(aspects: tuple[str, ...]) -> list[list[str]]:
    """Return the cells that are no figures."""
    cells = {(claim.aspect, claim.trainer): claim.cell for claim in CLAIMS}
    return [[aspect, *(cells[aspect, name] for name in TRAINERS)] for aspect in aspects]


def table(measured: Measured, aspects: tuple[str, ...]) -> str:
    """Return the table with some of its rows."""
    rows = [
        ["pairs/s on real dialogue", *(speed_cell(measured, name) for name in TRAINERS)],
        ["rm_ray over it, median of turns", *(ratio_cell(measured, name) for name in TRAINERS)],
    ]
    header = ["", *(trainer.title for trainer in TRAINERS.values())]
    return markdown_table(header, [*rows, *fact_rows(aspects)])


def first_page(measured: Measured) -> str:
    """Return what the first page says of the peers."""
    return f"{table(measured, ON_FIRST_PAGE)}\n\n{fill(measured.conditions)}."


def fill(text: str) -> str:
    """Return a paragraph in lines of the pages' length."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def full_page(measured: Measured) -> str:
    """Return what the page of peers says: all rows, all settings, and each cell's proof."""
    settings = [
        [
            title_of(speed.trainer),
            speed.title,
            Spread.of(speed.pairs_per_second).cell(),
            Spread.of(speed.ours_over_it).cell() if speed.ours_over_it else speed.times,
        ]
        for speed in sorted(measured.speeds, key=lambda speed: speed.median)
    ]
    header = ["trainer", "setting", "pairs/s", "rm_ray over it, turn by turn"]
    sources = [
        [TRAINERS[claim.trainer].title, claim.aspect, cited(claim)]
        for claim in sorted(CLAIMS, key=lambda claim: [*TRAINERS].index(claim.trainer))
    ]
    count = len(measured.speeds[0].pairs_per_second)
    turns = measured.note or f"medians (least to most) of {count} turns"
    return "\n\n".join(
        [
            table(measured, ASPECTS),
            fill(
                f"{measured.conditions}, at commit {measured.commit}; {turns}. All losses agree to "
                f"{measured.loss_difference:.0e}."
            ),
            markdown_table(header, settings),
            "\n".join(f"- {claim.aspect} ({cited(claim)})." for claim in MORE),
            markdown_table(["trainer", "cell", "files that prove it"], sources),
        ]
    )


def title_of(trainer: str) -> str:
    """Return what a trainer is called beside its settings."""
    return "rm_ray, nothing shared" if trainer == UNSHARED else TRAINERS[trainer].title


def cited(claim: Claim) -> str:
    """Return the names of the files that a claim rests on, each once."""
    release = RELEASES[claim.trainer]
    at = f"{release.package or claim.trainer}-{release.version}/" if release.version else ""
    return ", ".join(dict.fromkeys(f"`{at}{proof.file}`" for proof in claim.proofs))


def headline(measured: Measured) -> str:
    """Return what the first page says first of its speed: beside the fastest of the others."""
    others = [s for s in measured.speeds if s.trainer in TRAINERS and s.trainer != OURS]
    times = min(statistics.median(s.ours_over_it) for s in others if s.ours_over_it)
    return f"**{times:.1f} times as fast as the fastest other trainer**"


PAGES = {"README.md": first_page, "tests/benchmarks/peers.md": full_page}


def with_table(page: str, text: str) -> str:
    """Return a page with its part about the peers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page lacks the marks '{BEGIN}' and '{END}'; put them where it goes")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def out_of_date(measured: Measured) -> Iterator[str]:
    """Yield what the pages say otherwise than figures and claims do."""
    for name, render in PAGES.items():
        page = (ROOT / name).read_text()
        if with_table(page, render(measured)) != page:
            yield f"{name}: its table is not that of {FIGURES.name} and the claims: --write it"
    first = " ".join((ROOT / "README.md").read_text().split())
    if (begins := headline(measured)) not in first:
        yield f"README.md does not say '{begins}' at its beginning: put it there"


def failures(claims: tuple[Claim, ...], read: Read) -> Iterator[str]:
    """Yield what the trainers' files do not bear out."""
    for claim in claims:
        for proof in claim.proofs:
            text = read(claim.trainer, proof.file)
            if text is None:
                continue
            where = f"{claim.trainer}, {claim.aspect}: {proof.file}"
            if not text:
                yield f"{where} is not there"
            elif proof.text and proof.text not in text:
                yield f"{where} has no '{proof.text}'"
            elif proof.absent and proof.absent in text:
                yield f"{where} now has '{proof.absent}'"


def read_ours(trainer: str, file: str) -> str | None:
    """Return the text of a file of this project."""
    return (ROOT / file).read_text() if trainer == OURS else None


def text_in(archive: zipfile.ZipFile, file: str) -> str:
    """Return the text of a wheel's file, wherever it keeps pure Python; empty if there is none."""
    names = [n for n in archive.namelist() if n == file or n.endswith(f".data/purelib/{file}")]
    return archive.read(names[0]).decode() if names else ""


class Wheels:
    """The files of the trainers' releases, from wheels that pip downloads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives: dict[str, zipfile.ZipFile] = {}

    def read(self, trainer: str, file: str) -> str | None:
        """Return a file's text; empty where the wheel no longer has it."""
        if trainer == OURS or not RELEASES[trainer].package:
            return read_ours(trainer, file)
        if trainer not in self._archives:
            self._archives[trainer] = self._open(trainer)
        archive = self._archives[trainer]
        return text_in(archive, file)

    def _open(self, trainer: str) -> zipfile.ZipFile:
        package, version = RELEASES[trainer].package, RELEASES[trainer].version
        into = self._folder / trainer
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                "--only-binary=:all:", "--python-version=3.11", "--platform=any",
                "--platform=manylinux1_x86_64", f"--dest={into}", f"{package}=={version}",
            ],
            check=True,
        )  # fmt: skip
        return zipfile.ZipFile(next(into.glob("*.whl")))


def main() -> None:
    """Check the pages, write them, or verify what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", type=Path, default=FIGURES)
    what = parser.add_mutually_exclusive_group(required=True)
    for name in ("check", "write", "verify"):
        what.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    measured = Measured.read(options.figures)
    if options.write:
        for name, render in PAGES.items():
            path = ROOT / name
            path.write_text(with_table(path.read_text(), render(measured)))
    wrong = list(out_of_date(measured))
    if options.verify:
        with tempfile.TemporaryDirectory(prefix="rm_ray-peers-") as folder:
            wrong += failures((*CLAIMS, *MORE), Wheels(Path(folder)).read)
        unchecked = ", ".join(t.title for k, t in TRAINERS.items() if k != OURS and not t.package)
        proofs = sum(len(claim.proofs) for claim in (*CLAIMS, *MORE))
        print(f"{proofs} proofs looked for; not checked, since not on PyPI: those of {unchecked}")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
