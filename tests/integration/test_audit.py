"""The audit of planted data on a real Ray, and training without what it found."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from planted_audit import NUM_PLAIN, PLANTED, evaluation_rows, planted_rows, write_rows
from runs import FinishedRun

from rm_ray.commands.audit import main
from rm_ray.config.recipe import parse_config
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.evaluation.intervals import wilson_interval
from rm_ray.preflight.caches import build_caches
from rm_ray.storage import Storage

REFUSED = {"prompt": "Why?", "chosen": "Same.", "rejected": "Same."}


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted data, an evaluation set, and the audit of both in ``audit``."""
    home = tmp_path_factory.mktemp("audit")
    data = write_rows(home / "pairs.jsonl", [*planted_rows(), REFUSED])
    bench = write_rows(home / "bench.jsonl", evaluation_rows())
    output = str(home / "audit")
    for name in ("parts", "exclude"):
        (home / "audit" / name).mkdir(parents=True)
        write_rows(home / "audit" / name / "of_the_user.jsonl", [REFUSED])
    assert main(["--data", data, "--against", f"bench={bench}", "--output", output]) == 0
    return home


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit" / "report.json").read_text())
    return found


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    text = (folder / "audit" / "exclude" / f"{kind}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_planted_row_is_found_and_no_other(folder: Path, report: dict[str, Any]):
    twice, reverse, alike = (
        PLANTED[kind] for kind in ("duplicates", "contradictions", "near_duplicates")
    )
    starts = NUM_PLAIN, NUM_PLAIN + twice, NUM_PLAIN + twice + reverse
    wanted = {
        "duplicates": [*range(starts[0], starts[1])],
        "contradictions": [*range(twice, twice + reverse), *range(starts[1], starts[2])],
        "near_duplicates": [*range(starts[2], starts[2] + alike)],
        "contaminated": [*range(NUM_PLAIN - PLANTED["contaminated"], NUM_PLAIN)],
    }
    for kind, rows in wanted.items():
        found = lines(folder, kind)
        assert [line["row"] for line in found] == rows, kind
        assert {line["origin"] for line in found} == {str(folder / "pairs.jsonl")}
        assert report["findings"][kind]["rows"] == len(rows)
    data = folder / "pairs.jsonl"
    assert lines(folder, "duplicates")[3]["detail"].endswith(f"as row 3 of {data}")
    assert report["evaluation_sets"]["bench"] == {
        "rows": 62,
        "shared_by": {"prompt": 4, "13-gram": 4, "8-grams": 4},
    }


def test_rows_that_training_refuses_are_in_the_quarantine(folder: Path, report: dict[str, Any]):
    assert report["rows_refused"] == {"identical responses": 1}
    (line,) = map(json.loads, (folder / "audit" / "quarantine.jsonl").read_text().splitlines())
    assert json.loads(line["raw"]) == REFUSED
    assert not (folder / "audit" / ".audit-parts").exists()


def test_the_longer_response_wins_as_often_as_planted(report: dict[str, Any]):
    longer = report["rules"]["longer"]
    rows = planted_rows()
    won = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert (longer["share"], longer["pairs"]) == (pytest.approx(won / len(rows)), len(rows))
    low, high = wilson_interval(won, len(rows))
    assert (longer["share_low"], longer["share_high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_report_is_a_page_with_plots(folder: Path):
    page = (folder / "audit" / "report.md").read_text()
    assert f"| duplicates | {PLANTED['duplicates']} |" in page
    assert (folder / "audit" / "plots" / "audit.png").stat().st_size > 10_000


def test_files_of_the_user_stay_where_they_are(folder: Path):
    for name in ("parts", "exclude"):
        assert (folder / "audit" / name / "of_the_user.jsonl").exists()


def test_an_audit_does_not_replace_the_files_that_it_excludes_by(
    folder: Path, capfd: pytest.CaptureFixture[str]
):
    file, data = folder / "audit" / "exclude" / "duplicates.jsonl", str(folder / "pairs.jsonl")
    before = file.read_bytes()
    command = ["--data", data, "--data.exclude", str(file), "--output", str(folder / "audit")]
    assert main(command) == 2
    assert f"data.exclude {file} is in --output" in "".join(capfd.readouterr())
    assert file.read_bytes() == before


def test_a_source_that_is_given_twice_has_no_duplicates_for_that(cluster: None, tmp_path: Path):
    data = write_rows(tmp_path / "few.jsonl", planted_rows()[:9])
    assert main(["--data", data, data, "--output", str(tmp_path / "audit")]) == 0
    assert lines(tmp_path, "duplicates") == []


def test_excluded_rows_are_never_trained_on_and_change_the_data(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    storage = Storage.open(str(folder / "storage"))
    logger = logging.getLogger("rm_ray.data.cache.exclusions")
    logger.addHandler(caplog.handler)  # the command's logging ends above it
    files = [folder / "audit" / "exclude" / f"{kind}.jsonl" for kind in PLANTED]

    def train_on(*excluded: Path):
        data = {
            "train": [str(folder / "pairs.jsonl")], "eval": [str(folder / "pairs.jsonl")],
            "exclude": [str(file) for file in excluded], "max_refused_fraction": 0.05,
        }  # fmt: skip
        train, held_out = build_caches(
            parse_config({"data": data}), load_tokenizer("builtin"), storage
        )
        assert held_out is not None
        assert held_out.num_rows == len(planted_rows())  # whatever is not trained on
        return train

    duplicates = files[0].read_text()
    files[0] = folder / "named.jsonl"
    files[0].write_text(duplicates)
    rest = train_on(*files)

    excluded = {line["row"] for kind in PLANTED for line in lines(folder, kind)}
    assert rest.refused == {"excluded": len(excluded), "identical responses": 1}
    assert "not in the training data" not in caplog.text
    assert set(open_table(rest.parts).row.tolist()) == {*range(len(planted_rows()))} - excluded
    assert (rest.duplicates, rest.contradictions) == (0, 0)
    quarantine = [json.loads(text) for text in Path(rest.quarantine).read_text().splitlines()]
    reasons = {row["row"]: row["detail"] for row in quarantine if row["reason"] == "excluded"}
    assert reasons[NUM_PLAIN] == "duplicates"
    assert train_on(*files).parts.key == rest.parts.key  # reused
    (gone := json.loads(duplicates.splitlines()[0]))["row"] = 10**6
    files[0].write_text("\n".join([*duplicates.splitlines()[1:], json.dumps(gone)]))
    changed = train_on(*files)
    assert changed.identity != rest.identity
    logger.removeHandler(caplog.handler)
    assert (
        f"1 of the {len(excluded)} rows that it names are not in the training data" in caplog.text
    )
    assert changed.num_rows == rest.num_rows + 1


def test_a_run_and_its_export_show_the_rows_that_both_disagree_with(
    finished: FinishedRun, tmp_path: Path
):
    """The run kept its losses; the export scores the rows."""
    (source,) = finished.settings["data"]["train"]
    models = [str(finished.folder), str(finished.folder / "export")]
    command = ["--data", source, "--run.seed", "1", "--suspect_share", "0.1", "--model", *models]
    assert main([*command, "--output", str(tmp_path / "audit")]) == 0

    found = lines(tmp_path, "mislabelled")
    assert 0 < len(found) <= 16
    assert [line["score"] for line in found] == sorted(
        (line["score"] for line in found), reverse=True
    )
    assert found[-1]["score"] > math.log(2)
    assert len({line["row"] for line in found}) == len(found)
    told = json.loads((finished.folder / "audit.json").read_text())
    assert told["rows"] == 153
    assert told["findings"]["mislabelled"] == len(found)
