"""The preflight report as JSON."""

import json

from planned_runs import random_lengths, resolve_run

from rm_ray.preflight.checks.verdict import fail
from rm_ray.preflight.report.document import findings_to_json
from rm_ray.preflight.run_estimate import estimate_run

VERDICT = fail("disk", "full", "free it")


def test_the_document_has_only_verdicts_without_an_estimate():
    assert findings_to_json([VERDICT], None) == {
        "checks": [{"name": "disk", "outcome": "failed", "found": "full", "remedy": "free it"}]
    }


def test_an_estimate_is_written_as_plain_values(tmp_path):
    resolved = resolve_run(tmp_path, cluster={"num_workers": 2, "use_gpu": False})
    estimate = estimate_run(resolved, least_workers=None, gpu_memory=None, most_steps=100)
    document = json.loads(json.dumps(findings_to_json([VERDICT], estimate)))
    lengths = random_lengths()
    assert (document["pairs"], document["refused"], document["workers"]) == (2_000, 3, 2)
    assert document["distinct_tokens"] == lengths.distinct.sum()
    assert sum(document["histogram"]["counts"]) == 2_000
    assert len(document["histogram"]["edges"]) == len(document["histogram"]["counts"]) + 1 == 51
    assert document["layouts"]["packed"]["is_exact"]
    assert document["layouts"]["packed"]["distinct"] == lengths.distinct.sum()
    (chosen,) = [way for way in document["memory"] if way["is_chosen"]]
    assert (chosen["zero_stage"], chosen["offload"], chosen["fits"]) == (0, "none", None)
    assert chosen["device"] == max(
        sum(size for name, size in moment.items() if name != "name") for moment in chosen["moments"]
    )
    assert (document["hours"], document["prediction"], document["gpu_memory"]) == (None,) * 3
    assert document["config"]["cluster"]["num_workers"] == 2
