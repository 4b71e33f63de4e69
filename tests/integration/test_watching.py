"""A submitted run as people watch it: Prometheus, the Grafana dashboard's queries, Ray's pages.

Needs Debian's packages prometheus, chromium and chromium-driver. The screenshots lie below pytest's
``--basetemp``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMEDRIVER, CHROMIUM, ENTER, Browser, browsing
from servers import (
    PROMETHEUS,
    RAY,
    HubServer,
    MlflowServer,
    PrometheusServer,
    RayMachines,
    wait_for_answer,
    without_ray,
)

ROOT = Path(__file__).resolve().parents[2]
NAME = "colours"
NUM_STEPS = 564
PATIENCE_S = 900.0
"""How long anything may take on a busy machine before it is held never to come."""

PROGRAMS = {"prometheus": PROMETHEUS, "chromium": CHROMIUM, "chromedriver": CHROMEDRIVER}
MISSING = ", ".join(name for name, path in PROGRAMS.items() if path is None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]


@dataclass(frozen=True)
class Watched:
    """A run that is under way on a cluster, and what watches it."""

    machines: RayMachines
    prometheus: PrometheusServer
    mlflow: MlflowServer
    storage: Path
    job: subprocess.Popen[bytes]
    log: Path
    began: float

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Return what the condition gives once that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert not self.job.poll(), f"failed before {what}:\n{self.log.read_text()}"
            time.sleep(1)
        raise AssertionError(f"{what} did not come:\n{self.log.read_text()}")

    def ask_ray(self, path: str) -> Any:
        """What the dashboard's HTTP API answers to who has the token."""
        headers = {"Authorization": f"Bearer {self.machines.token}"}
        request = urllib.request.Request(f"{self.machines.dashboard}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The debug recipe on two workers, submitted, published, and past its second evaluation."""
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        ray_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-")))
        hub = stack.enter_context(HubServer(_made(folder / "hub")).running())
        mlflow = MlflowServer(_made(folder / "mlflow"))
        stack.enter_context(mlflow.running())
        prometheus = PrometheusServer(_made(folder / "prometheus"))
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        variables = {"PATH": path, "RAY_PROMETHEUS_HOST": prometheus.address, **hub.environment}
        machines = RayMachines(ray_folder)
        stack.enter_context(machines.node(num_cpus=4, is_head=True, **variables))
        wait_for_answer(f"{machines.dashboard}/api/jobs/", Authorization=f"Bearer {machines.token}")
        stack.enter_context(prometheus.running(find_configuration(ray_folder)))
        began, log = time.time(), folder / "job.log"
        command = [
            RAY, "job", "submit", "--address", machines.dashboard, "--submission-id", NAME,
            "--metadata-json", json.dumps({"job_name": NAME}), "--working-dir", str(ROOT), "--",
            "python", "jobs/train.py", "--recipe", "jobs/recipes/debug.yaml", "--run.name", NAME,
            "--run.storage_path", str(folder / "storage"), "--optimizer.epochs", "6",
            "--cluster.num_workers", "2", "--cluster.cpus_per_worker", "1",
            "--evaluation.every_steps", "20", "--checkpoint.every_steps", "40",
            "--evaluation.sets", "chat=builtin:test=20",
            "--mlflow.tracking_uri", mlflow.address, "--hub.repo_id", f"someone/{NAME}",
        ]  # fmt: skip
        with log.open("w") as output:
            job = subprocess.Popen(
                command, env=without_ray() | machines.auth, stdout=output, stderr=output
            )
        stack.callback(job.wait)
        stack.callback(job.kill)
        watched = Watched(machines, prometheus, mlflow, folder / "storage", job, log, began)
        watched.wait_for(lambda: "evaluation at step 40:" in log.read_text(), "two evaluations")
        yield watched


def find_configuration(folder: Path) -> Path:
    """The one that Ray's head writes for Prometheus, soon after it answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = list(folder.glob("*/session_latest/metrics/prometheus/prometheus.yml"))
        if found:
            return found[0]
        assert time.monotonic() < deadline, "Ray wrote no configuration for Prometheus"
        time.sleep(0.5)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a person finds what the pages looked like."""
    return tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One window for all pages."""
    with browsing(width=1400, height=800) as browser:
        yield browser


def test_rays_jobs_page_asks_for_the_token_and_shows_the_run(
    watched: Watched, browser: Browser, screenshots: Path
) -> None:
    pages = f"{watched.machines.dashboard}/#"
    browser.open(f"{pages}/jobs")
    browser.wait_for("Authentication Token Required")
    browser.type("input[type=password]", watched.machines.token + ENTER)
    listed = browser.wait_for("Job List", NAME, "--recipe jobs/recipes/debug.yaml")
    assert "RUNNING" in listed or "SUCCEEDED" in listed
    browser.screenshot(screenshots / "jobs.png")
    (job,) = [job for job in watched.ask_ray("/api/jobs/") if job["submission_id"] == NAME]
    browser.open(f"{pages}/jobs/{job['job_id']}")
    browser.wait_for(NAME, "Total: ", "evaluation at step 20: accuracy")
    browser.screenshot(screenshots / "job.png")


def test_rays_train_api_names_the_run_and_shows_nobodys_conversations(watched: Watched) -> None:
    (run,) = watched.ask_ray("/api/train/v2/runs/v1")["train_runs"]
    assert run["name"] == NAME
    assert run["status"] in ("RUNNING", "FINISHED")
    assert run["run_settings"]["train_loop_config"] == {"job": f"attempt 1 at run '{NAME}'"}
    assert run["run_settings"]["scaling_config"]["num_workers"] == 2


def test_prometheus_has_what_every_panel_of_the_dashboard_asks_for(watched: Watched) -> None:
    dashboard = json.loads((ROOT / "cluster" / "grafana" / "rm_ray.json").read_text())
    queries = {
        (panel["title"], target["refId"]): target["expr"].replace("$run", NAME)
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        if panel["title"] != "Score on named sets"  # the built-in pairs are no benchmark's
    }
    assert len(queries) > 20

    def find(query: str) -> list[dict[str, Any]]:
        times = {"start": watched.began, "end": time.time(), "step": 10}
        return list(watched.prometheus.ask("query_range", query=query, **times)["result"])

    def find_missing() -> list[tuple[str, str]]:
        return [name for name, query in queries.items() if not find(query)]

    watched.wait_for(lambda: not find_missing(), "data for every query")
    for query in queries.values():
        named = {"set": "chat"} if "set" in query else {}
        assert [series["metric"] for series in find(query)] == [{"rm_run": NAME, **named}], query
    assert watched.prometheus.ask("label/rm_run/values") == [NAME]

    def last(gauge: str) -> float:
        (series,) = find(f'max by (rm_run) (ray_rm_{gauge}{{rm_run="{NAME}"}})')
        return float(series["values"][-1][1])

    assert last("total_steps") == NUM_STEPS
    assert last("workers") == 2
    assert 0.5 < last("eval_accuracy") <= 1


def test_a_figure_that_is_set_once_is_there_until_the_run_ends(watched: Watched) -> None:
    def count_scrapes(gauge: str) -> int:
        found = watched.prometheus.ask("query", query=f"count_over_time(ray_rm_{gauge}[1h])")
        return max((int(series["value"][1]) for series in found["result"]), default=0)

    watched.wait_for(lambda: count_scrapes("step") >= 4, "steps in Prometheus")
    assert count_scrapes("total_steps") >= count_scrapes("step")


def test_the_metrics_ask_for_no_token_and_rays_dashboard_finds_prometheus(
    watched: Watched,
) -> None:
    targets = watched.prometheus.ask("targets")["activeTargets"]
    scraped = [target["scrapeUrl"] for target in targets if target["health"] == "up"]
    assert scraped
    with urllib.request.urlopen(scraped[0], timeout=60) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{watched.machines.dashboard}/api/prometheus_health", timeout=60)
    assert refusal.value.code == 401
    assert watched.ask_ray("/api/prometheus_health")["msg"] == "prometheus running"


def test_status_lists_the_run(watched: Watched) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "status.py"), str(watched.storage), "--json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    status = json.loads(listed.stdout)
    assert (status["name"], status["total_steps"], status["num_workers"]) == (NAME, NUM_STEPS, 2)
    assert status["state"] in ("running", "finished")
    assert status["step"] >= 40


def test_being_watched_does_not_keep_the_run_from_its_end(watched: Watched) -> None:
    assert watched.job.wait(PATIENCE_S) == 0, watched.log.read_text()
    (run,) = watched.ask_ray("/api/train/v2/runs/v1")["train_runs"]
    assert (run["name"], run["status"]) == (NAME, "FINISHED")


def test_mlflows_page_draws_the_run(watched: Watched, browser: Browser, screenshots: Path) -> None:
    address = watched.mlflow.address
    (run,) = ask_mlflow(address, "runs/search", experiment_ids=["1"])["runs"]
    assert run["info"]["run_name"] == NAME
    browser.open(address)
    for key, value in MLFLOW_PREFERENCES.items():
        browser.run(f"localStorage.setItem('mlflow.{key}', '{value}')")
    browser.open(f"{address}/#/experiments/1/runs/{run['info']['run_id']}/model-metrics")
    browser.wait_for(NAME, "train/rm", f"{NAME} (eval/rm/accuracy)")
    curves = "return document.querySelectorAll('.scatterlayer .trace path.js-line').length"
    watched.wait_for(lambda: browser.run(curves) >= 3, "curves")
    browser.screenshot(screenshots / "mlflow.png")


MLFLOW_PREFERENCES = {
    "workflowType_v1": '"machine_learning"',
    "assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "assistant.panelOpen_v1": "false",
}
"""What a person chooses who trains models and does not want the assistant beside them."""


def ask_mlflow(address: str, what: str, **body: Any) -> Any:
    """What MLflow's HTTP API answers."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{what}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
