"""The Grafana dashboard asks for figures that runs show, each by run, and is laid out neatly."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rm_ray.tracking.prometheus import TAG, gauge_name
from rm_ray.train.metrics import GroupMetrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "rm_ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

LITERAL = re.compile(r'"((?:train/rm|eval/rm|perf)/\w+)"|\b_?gauges\.set\("(\w+)"')
"""Names of metrics in the code; those of the means are put together from their parts."""


def named_in_code() -> set[str]:
    found = [LITERAL.findall(path.read_text()) for path in (ROOT / "rm_ray").rglob("*.py")]
    names = {metric or figure for file in found for metric, figure in file}
    for prefix in ("train/rm", "eval/rm"):
        pairs = GroupMetrics.zero(torch.device("cpu"))
        pairs.sums += 1
        names |= pairs.means(prefix).keys()
    return {"ray_" + gauge_name(name) for name in names | {"step", "episode", "epoch"}}


def asked_in(query: str) -> list[str]:
    return re.findall(r"\bray_\w+", query)


QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

OF_SETS = [query for query in QUERIES if "__name__" in query]
"""Queries for one metric of every named evaluation set, whose names are the user's."""


@pytest.mark.parametrize("query", [query for query in QUERIES if query not in OF_SETS])
def test_a_query_asks_for_what_runs_show_and_by_run(query: str):
    asked = asked_in(query)

    assert asked
    assert set(asked) <= named_in_code()
    # An attempt is a process of its own, and Ray tells processes apart: one line for all of them.
    assert query.count("max by (rm_run) (") == len(asked)
    assert query.count(f'{{{TAG}=~"$run"}}') == len(asked)


@pytest.mark.parametrize("query", OF_SETS)
def test_a_query_of_named_sets_finds_each_sets_metric_and_nothing_else(query: str):
    asked = re.fullmatch(
        r'max by \(rm_run, set\) \(label_replace\(\{__name__=~"(.+?)",rm_run=~"\$run"\}, '
        r'"set", "\$1", "__name__", "(.+?)"\)\)',
        query,
    )
    assert asked is not None
    chosen, named = asked.groups()
    metric = chosen.rpartition("_")[2]
    names = [gauge_name(f"eval/{name}/{metric}") for name in ("chat", "reward-bench", "all_of_it")]
    assert [re.fullmatch(named, f"ray_{name}")[1] for name in names] == [
        "chat", "reward_bench", "all_of_it",
    ]  # fmt: skip
    assert all(re.fullmatch(chosen, f"ray_{name}") for name in names)
    others = {f"ray_{gauge_name(f'eval/chat/{metric}/{part}')}" for part in ("mine", "Safety")}
    assert not any(re.fullmatch(chosen, name) for name in named_in_code() | others)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_of_which_run(panel: dict[str, Any]):
    assert panel["description"].endswith(".")
    assert panel["datasource"] == SOURCE
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["legendFormat"].startswith("{{" + TAG + "}}")
        assert target["datasource"] == SOURCE
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)


def test_learning_speed_and_what_lags_behind_are_all_there():
    asked = {gauge for panel in PANELS for t in panel["targets"] for gauge in asked_in(t["expr"])}
    wanted = {
        f"{part}/rm/{name}"
        for part in ("train", "eval")
        for name in ("loss", "accuracy", "chosen_rewards", "rejected_rewards", "reward_margin")
    }
    wanted |= {"train/rm/lr", "train/rm/grad_norm"}
    wanted |= {"perf/pairs_per_second", "perf/tokens_per_second", "perf/data_wait_share"}
    wanted |= {"perf/goodput", "perf/steps_since_checkpoint", "mirror_waiting", "mlflow_unsent"}
    wanted |= {"step", "total_steps", "workers"}
    assert {"ray_" + gauge_name(name) for name in wanted} <= asked
    assert [query.count("_accuracy") > 0 for query in OF_SETS] == [True, False]


def test_the_run_is_chosen_from_those_that_prometheus_knows():
    source, run = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert (run["name"], run["multi"], run["datasource"]) == ("run", True, SOURCE)
    assert run["query"]["query"] == f"label_values(ray_{gauge_name('total_steps')}, {TAG})"


def test_panels_fill_rows_without_covering_one_another():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    for one, other in combinations(places, 2):
        apart = [
            one[start] + one[size] <= other[start] or other[start] + other[size] <= one[start]
            for start, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart), (one, other)
    widths = {y: sum(p["w"] for p in places if p["y"] == y) for y in {p["y"] for p in places}}
    assert set(widths.values()) == {24}


def test_kubernetes_scrapes_every_pod_that_may_have_a_driver():
    monitor = yaml.safe_load((ROOT / "cluster" / "grafana" / "podmonitor.yaml").read_text())
    rayjob = yaml.safe_load((ROOT / "cluster" / "kuberay-rayjob.yaml").read_text())

    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    # KubeRay adds the port of that name to a pod whose manifest has none, and Ray listens there.
    (head,) = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert "metrics" not in {port["name"] for port in head["ports"]}
    assert (
        "metrics-export-port"
        not in rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    )
