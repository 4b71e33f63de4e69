"""What goes to a cluster agrees with the schemas, the recipes and the pinned versions."""

import copy
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import pytest
import ray.autoscaler
import yaml

from rm_ray.config import TrainConfig
from rm_ray.data.synthetic import CHAT_TEMPLATE
from rm_ray.recipe import parse_config, read_recipe

ROOT = Path(__file__).resolve().parents[2]
RAYJOB = ROOT / "cluster" / "kuberay-rayjob.yaml"
RAY_UP = ROOT / "cluster" / "ray-up.yaml"
RECIPES = ROOT / "jobs" / "recipes"
RAYJOB_CRD = ROOT.parent / "shared" / "schemas" / "ray.io_rayjobs.yaml.gz"

SCRIPTS = sorted(
    p for folder in ("jobs", "tests", "cluster") for p in (ROOT / folder).rglob("*.sh")
)


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def tulu3_recipe() -> TrainConfig:
    return read_recipe(RECIPES / "tulu3_8b.yaml")


def refuse_unknown_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Close every object that lists its fields, as ``kubectl apply`` does.

    A structural schema of Kubernetes has fields only below these three keywords.
    """
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {
            name: refuse_unknown_fields(field) for name, field in schema["properties"].items()
        }
        closed.setdefault("additionalProperties", False)
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            closed[keyword] = refuse_unknown_fields(schema[keyword])
    return closed


@pytest.fixture(scope="module")
def rayjob_schema() -> jsonschema.Draft202012Validator:
    if not RAYJOB_CRD.is_file():
        pytest.skip(f"the definition of RayJob is not at {RAYJOB_CRD.relative_to(ROOT.parent)}")
    definition = yaml.load(gzip.decompress(RAYJOB_CRD.read_bytes()), Loader=yaml.CSafeLoader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    api_version = read_yaml(RAYJOB)["apiVersion"]
    schema = versions[api_version.removeprefix("ray.io/")]["schema"]["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(refuse_unknown_fields(schema))


@pytest.fixture(scope="module")
def ray_up_schema() -> jsonschema.Draft7Validator:
    path = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


def set_at(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy with the value at a path replaced, or removed where it is None."""
    changed = copy.deepcopy(document)
    *parents, last = path
    inner = changed
    for step in parents:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return changed


def faults(validator: Any, document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_the_rayjob_is_what_kuberay_accepts(rayjob_schema):
    assert faults(rayjob_schema, read_yaml(RAYJOB)) == []


CLUSTER = ("spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*CLUSTER, "authOptions", "mode"), "tokens"),
        ((*CLUSTER, "authOption"), {"mode": "token"}),
        ((*CLUSTER, "headGroupSpec"), None),
        ((*WORKERS, "replicas"), "eight"),
        ((*WORKERS, "maxReplicas"), None),
        ((*WORKERS, "template", "spec", "containers"), None),
        ((*WORKERS, "template", "spec", "containers", 0, "resource"), {}),
        ((*WORKERS, "rayStartParams", "num-gpus"), 8),
    ],
)
def test_a_broken_rayjob_is_refused(rayjob_schema, path, value):
    assert faults(rayjob_schema, set_at(read_yaml(RAYJOB), path, value))


def test_the_ray_up_config_is_what_ray_accepts(ray_up_schema):
    config = read_yaml(RAY_UP)

    assert faults(ray_up_schema, config) == []
    assert config["head_node_type"] in config["available_node_types"]
    assert config["max_workers"] == config["available_node_types"]["gpu"]["max_workers"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("provider",), None),
        (("max_worker",), 8),
        (("setup_commands",), "pip install ray"),
        (("available_node_types", "gpu", "resources", "GPU"), "8"),
        (("available_node_types", "gpu", "resources"), None),
        (("available_node_types", "gpu", "replicas"), 8),
    ],
)
def test_a_broken_ray_up_config_is_refused(ray_up_schema, path, value):
    assert faults(ray_up_schema, set_at(read_yaml(RAY_UP), path, value))


def kuberay_resources() -> dict[str, int]:
    cluster = read_yaml(RAYJOB)["spec"]["rayClusterSpec"]
    groups = [(1, cluster["headGroupSpec"])]
    groups += [(group["replicas"], group) for group in cluster["workerGroupSpecs"]]
    total = {"CPU": 0, "GPU": 0}
    for count, group in groups:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        total["CPU"] += count * int(limits["cpu"])
        total["GPU"] += count * int(limits.get("nvidia.com/gpu", 0))
    return total


def ray_up_resources() -> dict[str, int]:
    config = read_yaml(RAY_UP)
    total = {"CPU": 0, "GPU": 0}
    for name, node in config["available_node_types"].items():
        count = 1 if name == config["head_node_type"] else node["min_workers"]
        for resource in total:
            total[resource] += count * node["resources"].get(resource, 0)
    return total


@pytest.mark.parametrize("resources", [kuberay_resources, ray_up_resources])
def test_a_cluster_has_the_gpus_and_cpus_that_the_recipe_asks_for(resources):
    asked = tulu3_recipe().cluster

    assert resources()["GPU"] == asked.num_workers
    assert resources()["CPU"] > asked.num_workers * asked.cpus_per_worker


def test_every_gpu_node_has_as_many_gpus_in_requests_as_in_limits():
    for group in read_yaml(RAYJOB)["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_recipe_keeps_its_runs_on_the_shared_storage():
    storage_path = tulu3_recipe().run.storage_path
    cluster = read_yaml(RAYJOB)["spec"]["rayClusterSpec"]

    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        mounts = {
            m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims
        }
        assert any(storage_path.startswith(f"{mount}/") for mount in mounts)
    mounting = [c for c in read_yaml(RAY_UP)["setup_commands"] if "sudo mount " in c]
    assert [storage_path.startswith(f"{command.split()[-1]}/") for command in mounting] == [True]


def test_clusters_ask_for_a_token_and_keep_the_dashboard_inside():
    cluster = read_yaml(RAYJOB)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False

    config = read_yaml(RAY_UP)
    assert any("RAY_AUTH_MODE=token" in c for c in config["initialization_commands"])
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in c for c in config["head_start_ray_commands"])


def test_no_secret_is_written_into_a_manifest():
    cluster = read_yaml(RAYJOB)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for variable in group["template"]["spec"]["containers"][0]["env"]:
            is_secret = re.search("TOKEN|PASSWORD|KEY", variable["name"])
            assert not is_secret or "secretKeyRef" in variable["valueFrom"]


def test_the_rayjob_runs_files_that_are_in_the_image():
    words = read_yaml(RAYJOB)["spec"]["entrypoint"].split()
    copied = re.findall(r"^COPY .*? (\S+) \./", (ROOT / "cluster/Containerfile").read_text(), re.M)

    paths = [Path(word) for word in words if "/" in word]
    assert len(paths) == 2
    assert all((ROOT / path).is_file() and path.parts[0] in copied for path in paths)


def test_every_place_names_the_ray_of_requirements_txt():
    requirements = (ROOT / "requirements.txt").read_text()
    (pinned,) = re.findall(r"^ray\[[\w,]+\]==(\S+)$", requirements, re.M)

    assert read_yaml(RAYJOB)["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    containerfile = (ROOT / "cluster" / "Containerfile").read_text()
    (base,) = re.findall(r"^FROM docker\.io/rayproject/ray:(\S+)$", containerfile, re.M)
    assert base == f"{pinned}-py311-gpu"
    assert "pip install --no-cache-dir -r requirements.txt" in containerfile
    config = read_yaml(RAY_UP)
    assert config["file_mounts"]["/home/ubuntu/requirements.txt"] == "requirements.txt"
    assert any(
        c.endswith("pip install --quiet -r ~/requirements.txt") for c in config["setup_commands"]
    )
    assert not re.search(r"\bray(\[.*?\])?==", RAY_UP.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_parse(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script):
    # -x and -P: follow what a script sources, which lies beside it.
    command = ["shellcheck", "--shell=bash", "-x", "-P", "SCRIPTDIR", script]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load(recipe):
    config = read_recipe(recipe)

    assert config.run.name == recipe.stem.replace("_", "-")
    assert parse_config(config.to_dict()) == config


def test_the_hub_recipe_writes_conversations_as_the_built_in_template_does():
    template = read_recipe(RECIPES / "debug_hub.yaml").data.chat_template
    # The environment of transformers' apply_chat_template.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "\n Hi "},
        {"role": "assistant", "content": " Hello.\n"},
    ]
    for prompt_only in (False, True):
        given = {
            "messages": messages[:-1] if prompt_only else messages,
            "add_generation_prompt": prompt_only,
            "eos_token": "<eos>",
        }
        ours, built_in = (
            environment.from_string(source).render(**given) for source in (template, CHAT_TEMPLATE)
        )
        assert ours == built_in
        assert ours.endswith("<|assistant|>\n" if prompt_only else " Hello.\n<eos>")
