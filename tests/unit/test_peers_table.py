"""The table of peers says what its figures and claims say."""

import statistics
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "benchmarks")]

import peers_table  # noqa: E402
from pair_set import pairs_that_share  # noqa: E402
from peer_claims import ASPECTS, CLAIMS, MORE, OURS, TRAINERS, Claim, Proof, has, lacks  # noqa: E402
from peers_table import Measured, Speed, fact_rows, failures, text_in, with_table  # noqa: E402


def test_the_pages_say_what_the_figures_and_the_claims_say() -> None:
    assert list(peers_table.out_of_date(Measured.read(peers_table.FIGURES))) == []


def test_what_is_said_of_this_project_is_in_its_files() -> None:
    assert list(failures(CLAIMS, peers_table.read_ours)) == []


def test_every_trainer_has_every_cell_and_every_cell_a_proof() -> None:
    cells = [(claim.aspect, claim.trainer) for claim in CLAIMS]
    assert sorted(cells) == sorted((aspect, name) for aspect in ASPECTS for name in TRAINERS)
    for claim in (*CLAIMS, *MORE):
        assert claim.proofs, claim
        assert all(bool(proof.text) != bool(proof.absent) for proof in claim.proofs), claim
    assert [len(row) for row in fact_rows(ASPECTS)] == [1 + len(TRAINERS)] * len(ASPECTS)


def claim(*proofs: Proof) -> Claim:
    return Claim(aspect="a batch", trainer="trl", cell="padded", proofs=proofs)


@pytest.mark.parametrize(
    ("proof", "text", "found"),
    [
        (has("a.py", "pad(right)"), "x = pad(right)", []),
        (has("a.py", "pad(right)"), "x = pad(left)", ["trl, a batch: a.py has no 'pad(right)'"]),
        (lacks("a.py", "aux_loss"), "x = pad(left)", []),
        (lacks("a.py", "aux_loss"), "aux_loss = 0", ["trl, a batch: a.py now has 'aux_loss'"]),
        (lacks("a.py", "aux_loss"), "", ["trl, a batch: a.py is not there"]),
        (has("a.py", "pad(right)"), None, []),
    ],
)
def test_a_fact_that_a_release_no_longer_bears_out_is_reported(
    proof: tuple[Proof, ...], text: str | None, found: list[str]
) -> None:
    assert list(failures((claim(*proof),), lambda trainer, file: text)) == found


def test_a_wheels_files_are_found_at_its_root_and_among_its_data(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("trl/a.py", "at the root")
        archive.writestr("openrlhf-1.data/purelib/openrlhf/a.py", "among data")
    with zipfile.ZipFile(tmp_path / "x.whl") as archive:
        assert text_in(archive, "trl/a.py") == "at the root"
        assert text_in(archive, "openrlhf/a.py") == "among data"
        assert text_in(archive, "a.py") == ""


def speed(trainer: str, ours: list[float], theirs: list[float], default: bool = False) -> Speed:
    return Speed(
        trainer=trainer,
        title="batch 1",
        by_default=default,
        pairs_per_second=tuple(theirs),
        ours_over_it=tuple(a / b for a, b in zip(ours, theirs, strict=True)),
    )


def test_a_ratio_is_the_median_of_the_turns_ratios_and_not_a_ratio_of_medians() -> None:
    ours, theirs = [6.0, 4.0, 5.0], [1.0, 0.5, 0.9]
    measured = Measured(
        conditions="",
        commit="",
        note="",
        loss_difference=0.0,
        speeds=(
            speed(OURS, ours, ours),
            speed("trl", ours, theirs, default=True),
            speed("trl", ours, [2.0, 2.0, 2.0]),
        ),
    )
    assert statistics.median([6 / 1, 4 / 0.5, 5 / 0.9]) == 6.0 != 5.0 / 0.9
    assert peers_table.ratio_cell(measured, "trl") == "2.50, 6.00"
    assert peers_table.speed_cell(measured, "trl") == "2.00 at best, 0.90 by default"
    assert peers_table.speed_cell(measured, OURS) == "5.00"
    assert peers_table.headline(measured) == "**2.5 times as fast as the fastest other trainer**"


def test_only_the_part_between_the_marks_is_replaced() -> None:
    page = f"before\n{peers_table.BEGIN}\nold\n{peers_table.END}\nafter\n"
    assert with_table(page, "new") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="lacks the marks"):
        with_table("before\nafter\n", "new")


def test_pairs_with_nothing_shared_have_the_same_conversations() -> None:
    pairs = pairs_that_share(0.5, count=6, tokens=24, vocabulary=50)
    alone = pairs.unshared()
    assert alone.lengths.distinct.sum() == pairs.lengths.all.sum() > pairs.lengths.distinct.sum()
    for side in (0, 1):
        for i in range(6):
            np.testing.assert_array_equal(
                alone.gather(np.array([i])).conversation(0, side),
                pairs.gather(np.array([i])).conversation(0, side),
            )
