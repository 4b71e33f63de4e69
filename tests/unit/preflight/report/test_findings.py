from planned_runs import resolve_run

from rm_ray.preflight.checks.verdict import fail, ok, warn
from rm_ray.preflight.report.findings import Findings
from rm_ray.preflight.run_estimate import estimate_run


def test_one_failed_check_fails_the_preflight_and_warnings_do_not():
    assert not Findings(verdicts=(ok("a", "x"), warn("b", "x", "y"))).has_failed
    assert Findings(verdicts=(ok("a", "x"), fail("b", "x", "y"))).has_failed


def test_only_checks_are_described_if_the_input_is_invalid():
    findings = Findings(verdicts=(ok("Hub", "fine"),), error="no such file")
    assert findings.describe() == "\n\nchecks\n  ok       Hub             fine"
    document = findings.to_json()
    assert document.keys() == {"checks", "error"}
    assert document["error"] == "no such file"


def test_the_estimate_comes_after_the_checks(tmp_path):
    resolved = resolve_run(tmp_path, cluster={"num_workers": 1, "use_gpu": False})
    estimate = estimate_run(resolved, least_workers=None, gpu_memory=None, most_steps=1)
    findings = Findings(verdicts=(ok("Hub", "fine"),), estimate=estimate)
    parts = findings.describe().split("\n\n")
    assert [part.strip().split()[0] for part in parts if part] == [
        "checks", "pairs:", "steps:", "memory", "time:",
    ]  # fmt: skip
    assert findings.to_json()["error"] is None
