"""Servers on loopback, for tests: Ray nodes with a token, MLflow, a Hub, Prometheus."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hub_server import TOKEN

RAY = str(Path(sys.executable).with_name("ray"))
PROMETHEUS = shutil.which("prometheus")

PATIENCE_S = 120.0
"""How long a server may take to answer on a busy machine."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now, outside 10002-19999, which Ray gives to its workers."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def wait_for_answer(url: str, **headers: str) -> None:
    """Ask until a server answers with success."""
    deadline = time.monotonic() + PATIENCE_S
    request = urllib.request.Request(url, headers=headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    tree = psutil.Process(process.pid).children(recursive=True)
    for child in [*tree, process]:
        child.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=30)


@dataclass
class RayMachines:
    """A head and other nodes, each a ``ray start`` of its own."""

    folder: Path
    """Ray's own files and logs; a short path, since sockets lie in it."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    head_port: int = field(default_factory=lambda: free_ports(1)[0])
    dashboard_port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def auth(self) -> dict[str, str]:
        """What a node or client needs in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use the cluster."""
        return {"RAY_ADDRESS": f"127.0.0.1:{self.head_port}", **self.auth}

    @contextmanager
    def node(
        self, *, num_cpus: int, is_head: bool = False, **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A node, for as long as it is entered; then it is lost, with all that runs on it.

        Gives the ``ray start`` that holds it, with the environment that is named beside the token.
        """
        agent, agent_grpc, metrics, client = free_ports(4)
        role = [f"--address=127.0.0.1:{self.head_port}"]
        if is_head:
            role = [
                "--head", f"--port={self.head_port}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}",
                f"--ray-client-server-port={client}",
            ]  # fmt: skip
        command = [
            RAY, "start", *role, "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}",
            # Of its own: a node deletes a job's working directory once it needs it no more.
            f"--temp-dir={self.folder / str(agent)}",
            "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
        ]  # fmt: skip
        with (self.folder / f"node-{agent}.log").open("w") as log:
            its_own = without_ray() | self.auth | environment
            node = subprocess.Popen(command, env=its_own, stdout=log, stderr=log)
        try:
            yield node
        finally:
            if node.poll() is None:
                end(node)

    def ask(self, expression: str) -> str:
        """What an expression over ``nodes``, those of ``ray.nodes()`` that are alive, gives."""
        code = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
            "nodes = [n for n in ray.nodes() if n['Alive']];"
            f"print({expression})"
        )
        command = [sys.executable, "-c", code]
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many have joined."""
        deadline = time.monotonic() + PATIENCE_S
        while self.ask("len(nodes)") != str(count):
            assert time.monotonic() < deadline, f"{count} nodes did not join"


def without_ray() -> dict[str, str]:
    """The environment without any Ray that it may point to."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@dataclass
class MlflowServer:
    """A real MLflow server, which may be away."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def address(self) -> str:
        """Where it listens, whether it runs or not."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[list[psutil.Process]]:
        """Give its processes, which are killed in the end."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quick)
        try:
            wait_for_answer(f"{self.address}/health")
            process = psutil.Process(server.pid)
            yield [process, *process.children(recursive=True)]
        finally:
            end(server)


@dataclass
class HubServer:
    """A loopback Hub in a process of its own, which may be killed and started again."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens, whether it runs or not."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use it."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        """Start it, and kill it in the end."""
        self.start()
        try:
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        """Start it with what it kept."""
        server = Path(__file__).with_name("hub_server.py")
        command = [sys.executable, str(server), str(self.folder), str(self.port)]
        self._process = subprocess.Popen(command)
        wait_for_answer(f"{self.address}/_log")

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        assert self._process is not None
        end(self._process)


@dataclass
class PrometheusServer:
    """Debian's Prometheus, which keeps what it scrapes in a folder."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def address(self) -> str:
        """Where it listens, whether it runs or not."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, config: Path) -> Iterator["PrometheusServer"]:
        """Scrape what a configuration file says, and end it after."""
        assert PROMETHEUS
        command = [
            PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip
        with (self.folder / "prometheus.log").open("a") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_answer(f"{self.address}/-/ready")
            yield self
        finally:
            end(server)

    def ask(self, what: str, **arguments: str | float) -> Any:
        """What its HTTP API answers, such as to ``query`` or ``label/NAME/values``."""
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.address}/api/v1/{what}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]
