"""What goes to a cluster agrees with the schemas, the recipes and the pinned versions."""

import copy
import functools
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from rm_ray.cluster.ray_cluster import fit_to_machines
from rm_ray.config.recipe import parse_config, read_recipe
from rm_ray.config.serving import Server
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE
from rm_ray.serving.app import TOKEN

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
RAYJOB = CLUSTER / "kuberay-rayjob.yaml"
RAYCLUSTER = CLUSTER / "kuberay-raycluster.yaml"
REDIS = CLUSTER / "kuberay-redis.yaml"
RAYSERVICE = CLUSTER / "kuberay-rayservice.yaml"
NETWORK_POLICY = CLUSTER / "kuberay-network-policy.yaml"
RAY_UP = CLUSTER / "ray-up.yaml"
SLURM = CLUSTER / "slurm.sh"
RECIPES = ROOT / "jobs" / "recipes"
SCHEMAS = ROOT / "tests" / "schemas"
"""KubeRay's custom resource definitions (ray-project/kuberay at feeaf72fa, Apache-2.0)."""

SCRIPTS = sorted(
    p for folder in ("jobs", "tests", "cluster") for p in (ROOT / folder).rglob("*.sh")
)

SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


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


@functools.cache
def kuberay_schema(plural: str) -> dict[str, Any]:
    """The schema by which Kubernetes would check a custom resource of KubeRay, without gaps."""
    packed = (SCHEMAS / f"ray.io_{plural}.yaml.gz").read_bytes()
    definition = yaml.load(gzip.decompress(packed), Loader=yaml.CSafeLoader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    return refuse_unknown_fields(versions["v1"]["schema"]["openAPIV3Schema"])


def rayservice_schema() -> dict[str, Any]:
    """The schema of a RayService: a cluster's, and beside it the fields that we use.

    They are those of ``RayServiceSpec`` in KubeRay 1.6's ``rayservice_types.go``.
    """
    strategies = ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]
    spec = {
        "serveConfigV2": {"type": "string"},
        "rayClusterConfig": kuberay_schema("rayclusters")["properties"]["spec"],
        "upgradeStrategy": closed({"type": {"enum": strategies}}),
        "rayClusterDeletionDelaySeconds": {"type": "integer", "minimum": 0},
    }
    metadata = {"type": "object"}
    kinds = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayService"}}
    return closed({**kinds, "metadata": metadata, "spec": closed(spec)})


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def schema_of(path: Path) -> jsonschema.Draft202012Validator:
    """What KubeRay checks a manifest against."""
    if path == RAYSERVICE:
        return jsonschema.Draft202012Validator(rayservice_schema())
    plural = {RAYJOB: "rayjobs", RAYCLUSTER: "rayclusters"}[path]
    return jsonschema.Draft202012Validator(kuberay_schema(plural))


def schema_at(*path: str) -> jsonschema.Draft202012Validator:
    """A schema of Kubernetes' own, which the one of a RayCluster holds at a path."""
    inner = kuberay_schema("rayclusters")
    for name in ("spec", *path):
        inner = inner["properties"][name]
    return jsonschema.Draft202012Validator(inner)


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


@pytest.mark.parametrize("path", [RAYJOB, RAYCLUSTER, RAYSERVICE], ids=lambda path: path.stem)
def test_the_manifests_are_what_kuberay_accepts(path):
    manifest = read_yaml(path)

    assert manifest["apiVersion"] == "ray.io/v1"
    assert faults(schema_of(path), manifest) == []


SPEC = ("spec", "rayClusterSpec")
WORKERS = (*SPEC, "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*SPEC, "authOptions", "mode"), "tokens"),
        ((*SPEC, "authOption"), {"mode": "token"}),
        ((*SPEC, "headGroupSpec"), None),
        ((*WORKERS, "replicas"), "eight"),
        ((*WORKERS, "maxReplicas"), None),
        ((*WORKERS, "template", "spec", "containers"), None),
        ((*WORKERS, "template", "spec", "containers", 0, "resource"), {}),
        ((*WORKERS, "rayStartParams", "num-gpus"), 8),
    ],
)
def test_a_broken_rayjob_is_refused(path, value):
    assert faults(schema_of(RAYJOB), set_at(read_yaml(RAYJOB), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("gcsFaultToleranceOptions", "redisPassword"), "hunter2"),
        (("gcsFaultToleranceOptions", "redisAdress"), "rm-ray-redis:6379"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_a_broken_raycluster_is_refused(path, value):
    assert faults(schema_of(RAYCLUSTER), set_at(read_yaml(RAYCLUSTER), ("spec", *path), value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("serveConfigV2",), {"applications": []}),
        (("serveConfig",), "applications: []"),
        (("upgradeStrategy", "type"), "Rolling"),
        (("rayClusterConfig", "enableInTreeAutoscaling"), "yes"),
        (("rayClusterConfig", "workerGroupSpecs", 0, "maxReplicas"), None),
    ],
)
def test_a_broken_rayservice_is_refused(path, value):
    assert faults(schema_of(RAYSERVICE), set_at(read_yaml(RAYSERVICE), ("spec", *path), value))


def serve_config() -> dict[str, Any]:
    """What KubeRay hands to Ray Serve."""
    config: dict[str, Any] = yaml.safe_load(read_yaml(RAYSERVICE)["spec"]["serveConfigV2"])
    return config


def test_ray_serve_accepts_the_application_with_the_options_of_the_command(monkeypatch):
    config = serve_config()
    assert config.keys() <= ServeDeploySchema.model_fields.keys()  # it ignores others
    assert config["applications"][0].keys() <= ServeApplicationSchema.model_fields.keys()
    (served,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = served.import_path.partition(":")
    monkeypatch.setenv(TOKEN, "secret")
    made = getattr(importlib.import_module(module), name)(served.args)
    server, digest = made._bound_deployment.init_args[1:]
    assert isinstance(server, Server)
    assert served.args["num_replicas"] == server.num_replicas
    assert digest is not None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("applications", 0, "import_path"), 5),
        (("proxy_location",), "Everywhere"),
        (("http_options", "port"), "http"),
    ],
)
def test_a_broken_serve_config_is_refused(path, value):
    with pytest.raises(ValueError, match=str(path[-1])):
        ServeDeploySchema.model_validate(set_at(serve_config(), path, value))


def test_the_cluster_grows_as_far_as_the_replicas_and_drains_before_a_pod_ends():
    (served,) = serve_config()["applications"]
    options = {k: v for k, v in served["args"].items() if k != "model"}
    server = Server(**options)
    cluster = read_yaml(RAYSERVICE)["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    assert server.replica_bounds == (group["minReplicas"], group["maxReplicas"])
    for pod in pods(cluster):
        (container,) = pod["spec"]["containers"]
        assert server.drain_s < pod["spec"]["terminationGracePeriodSeconds"]
        (token,) = (each for each in container["env"] if each["name"] == TOKEN)
        assert token["valueFrom"]["secretKeyRef"] == {"name": "rm-ray-serve", "key": "token"}
        assert not any("TOKEN" in each["name"] and "value" in each for each in container["env"])
    (worker,) = group["template"]["spec"]["containers"]
    limits = worker["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert int(limits["cpu"]) >= server.cpus_per_replica
    assert serve_config()["http_options"]["port"] in {
        port["containerPort"]
        for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == read_yaml(RAYCLUSTER)["spec"]["rayVersion"]


def test_the_two_clusters_of_kuberay_differ_where_they_must():
    in_job = read_yaml(RAYJOB)["spec"]["rayClusterSpec"]
    lasting = read_yaml(RAYCLUSTER)["spec"]

    dashboards = [
        c["headGroupSpec"]["rayStartParams"].pop("dashboard-host") for c in (in_job, lasting)
    ]
    assert dashboards == ["0.0.0.0", "127.0.0.1"]
    assert lasting.pop("gcsFaultToleranceOptions")
    assert lasting == in_job


def test_redis_is_where_the_head_looks_for_it_with_the_password_of_the_same_secret():
    service, stateful_set = yaml.safe_load_all(REDIS.read_text())
    template = stateful_set["spec"]["template"]
    (container,) = template["spec"]["containers"]
    wanted = read_yaml(RAYCLUSTER)["spec"]["gcsFaultToleranceOptions"]

    # The claim is made from a template beside the pod's.
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {c["metadata"]["name"] for c in stateful_set["spec"]["volumeClaimTemplates"]}
    assert faults(schema_at("headGroupSpec", "template"), template) == []
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"] == stateful_set["spec"]["selector"]["matchLabels"] == labels
    (port,) = service["spec"]["ports"]
    assert wanted["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    (password,) = container["env"]
    assert password["valueFrom"] == wanted["redisPassword"]["valueFrom"]
    assert f"$({password['name']})" in container["args"]
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_network_policies_are_for_the_pods_there_are_and_let_in_those_who_must():
    cluster, redis = yaml.safe_load_all(NETWORK_POLICY.read_text())
    for policy in (cluster, redis):
        assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        rules = policy["spec"]["ingress"]
        assert faults(schema_at("networkPolicy", "head", "ingressRules"), rules) == []
    ours = cluster["spec"]["podSelector"]
    for spec in kuberay_clusters():
        assert all({"matchLabels": pod["metadata"]["labels"]} == ours for pod in pods(spec))
    among_themselves, of_the_job, prometheus = cluster["spec"]["ingress"]
    assert prometheus["ports"] == [{"protocol": "TCP", "port": 8080}]  # which KubeRay gives Ray
    assert among_themselves == {"from": [{"podSelector": ours}]}
    operator, submitter = of_the_job["from"]
    assert operator["namespaceSelector"] == {}
    job_name = read_yaml(RAYJOB)["metadata"]["name"]
    assert submitter == {"podSelector": {"matchLabels": {"job-name": job_name}}}
    _, stateful_set = yaml.safe_load_all(REDIS.read_text())
    assert redis["spec"]["podSelector"] == stateful_set["spec"]["selector"]
    assert [rule["from"] for rule in redis["spec"]["ingress"]] == [[{"podSelector": ours}]]


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


def kuberay_clusters() -> list[dict[str, Any]]:
    """The specification of a cluster in each of KubeRay's manifests."""
    return [read_yaml(RAYJOB)["spec"]["rayClusterSpec"], read_yaml(RAYCLUSTER)["spec"]]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of the head and of each group of workers."""
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def kuberay_machines(cluster: dict[str, Any]) -> list[dict[str, float]]:
    """What KubeRay tells ``ray start`` of each pod that it has."""
    found = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        limits, told = container["resources"]["limits"], group["rayStartParams"]
        resources = {
            "CPU": float(told.get("num-cpus", limits["cpu"])),
            "GPU": float(told.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        }
        found += [resources] * group.get("replicas", 1)
    return found


def ray_up_machines() -> list[dict[str, float]]:
    config = read_yaml(RAY_UP)
    found = []
    for name, node in config["available_node_types"].items():
        count = 1 if name == config["head_node_type"] else node["min_workers"]
        found += [node["resources"]] * count
    return found


def slurm_options() -> dict[str, str]:
    """The options of ``sbatch`` that the script holds."""
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SLURM.read_text(), re.M)
    assert len(options) == len(dict(options)) == SLURM.read_text().count("#SBATCH")
    return dict(options)


def slurm_machines() -> list[dict[str, float]]:
    options = slurm_options()
    each = {"CPU": float(options["cpus-per-task"]), "GPU": float(options["gpus-per-node"])}
    return [each] * int(options["nodes"])


@pytest.mark.parametrize(
    "machines",
    [
        pytest.param(lambda: kuberay_machines(kuberay_clusters()[0]), id="rayjob"),
        pytest.param(lambda: kuberay_machines(kuberay_clusters()[1]), id="raycluster"),
        pytest.param(ray_up_machines, id="ray up"),
        pytest.param(slurm_machines, id="slurm"),
    ],
)
def test_a_cluster_has_room_for_the_recipe_and_cpus_for_ray_data_on_each_machine(machines):
    asked = tulu3_recipe().cluster
    with_gpus = [machine for machine in machines() if machine.get("GPU")]

    assert fit_to_machines(asked, machines()) == asked
    assert fit_to_machines(replace(asked, num_workers=None, use_gpu=None), machines()) == asked
    assert len(with_gpus) == 8
    for machine in with_gpus:
        assert machine["GPU"] * 8 == asked.num_workers
        assert machine["CPU"] > machine["GPU"] * asked.cpus_per_worker


def test_groups_of_kuberay_keep_their_size_and_get_what_they_may_use():
    for cluster in kuberay_clusters():
        assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["gpu", "cpu"]
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        for pod in pods(cluster):
            (container,) = pod["spec"]["containers"]
            requests = dict(container["resources"]["requests"])
            has_gpus = "nvidia.com/gpu" in requests
            # Room for staging is asked for; to evict who takes more would help nobody.
            assert (requests.pop("ephemeral-storage", None) is not None) == has_gpus
            assert requests == container["resources"]["limits"]
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["spec"]["automountServiceAccountToken"] is False


def test_a_pod_outlives_its_announcement_that_it_ends():
    for cluster in kuberay_clusters():
        for pod in pods(cluster):
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            environment = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
            assert 0 < int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < grace


def test_the_recipe_keeps_its_runs_on_the_shared_storage():
    storage_path = tulu3_recipe().run.storage_path

    for cluster in kuberay_clusters():
        for pod in (template["spec"] for template in pods(cluster)):
            claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
            mounts = {
                m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims
            }
            assert any(storage_path.startswith(f"{mount}/") for mount in mounts)
    mounting = [c for c in read_yaml(RAY_UP)["setup_commands"] if "sudo mount " in c]
    assert [storage_path.startswith(f"{command.split()[-1]}/") for command in mounting] == [True]


def test_models_are_downloaded_to_the_same_shared_place_everywhere():
    wanted = f"{Path(tulu3_recipe().run.storage_path).parent}/huggingface"

    for cluster in kuberay_clusters():
        for pod in pods(cluster):
            env = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
            assert env["HF_HOME"] == wanted
    for path in (RAY_UP, SLURM):
        assert re.findall(r"HF_HOME(?::-|=)([^\s}\"$]+)", path.read_text()) == [wanted]


def test_a_job_that_is_stopped_has_as_long_for_its_checkpoint_everywhere():
    given = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", RAY_UP.read_text())
    for cluster in kuberay_clusters():
        for pod in pods(cluster):
            env = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
            given.append(env["RAY_JOB_STOP_WAIT_TIME_S"])

    assert given == ["600"] * (1 + 2 * 3)


def test_clusters_ask_for_a_token_and_keep_the_dashboard_inside():
    for cluster in kuberay_clusters():
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert cluster["headGroupSpec"]["enableIngress"] is False

    config = read_yaml(RAY_UP)
    assert any("RAY_AUTH_MODE=token" in c for c in config["initialization_commands"])
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in c for c in config["head_start_ray_commands"])

    assert "export RAY_AUTH_MODE=token" in SLURM.read_text()
    assert "dashboard-host" not in SLURM.read_text()  # loopback is Ray's own default


def test_slurm_runs_the_recipe_under_the_name_that_kuberay_gives_it():
    words = SLURM.read_text().split()
    entrypoint = read_yaml(RAYJOB)["spec"]["entrypoint"].split()

    assert any(words[i : i + len(entrypoint)] == entrypoint for i in range(len(words)))
    assert slurm_options()["job-name"] == read_yaml(RAYJOB)["metadata"]["name"]
    assert slurm_options()["signal"].startswith("B:USR1@")


def test_no_secret_is_written_into_a_manifest():
    _, stateful_set = yaml.safe_load_all(REDIS.read_text())
    templates = [pod for cluster in kuberay_clusters() for pod in pods(cluster)]
    for pod in (*templates, stateful_set["spec"]["template"]):
        for variable in pod["spec"]["containers"][0]["env"]:
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

    assert [cluster["rayVersion"] for cluster in kuberay_clusters()] == [pinned] * 2
    containerfile = (ROOT / "cluster" / "Containerfile").read_text()
    (base,) = re.findall(r"^FROM docker\.io/rayproject/ray:(\S+)$", containerfile, re.M)
    assert base == f"{pinned}-py311-gpu"
    assert "pip install --no-cache-dir -r requirements.txt" in containerfile
    config = read_yaml(RAY_UP)
    assert config["file_mounts"]["/home/ubuntu/requirements.txt"] == "requirements.txt"
    assert any(
        c.endswith("pip install --quiet -r ~/requirements.txt") for c in config["setup_commands"]
    )
    assert not any(re.search(r"\bray(\[.*?\])?==", path.read_text()) for path in (RAY_UP, SLURM))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_parse(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script):
    # -x and -P: follow what a script sources, which lies beside it.
    command = [SHELLCHECK, "--shell=bash", "-x", "-P", "SCRIPTDIR", script]
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
