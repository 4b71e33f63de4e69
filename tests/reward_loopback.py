"""A plain HTTP server of all reward routes on loopback, with a made-up reward of token ids."""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
from transformers import PreTrainedTokenizerBase

from rm_ray.errors import InputError
from rm_ray.serving.protocols.routes import ROUTES
from rm_ray.serving.question import Rewards
from rm_ray.serving.tokens import ConversationTokens


def reward_of(ids: np.ndarray) -> float:
    """Return a float32 between -4 and 4 that tells token ids apart."""
    checksum = zlib.crc32(np.asarray(ids, dtype=np.int32).tobytes())
    return float(np.float32(checksum / 2**29 - 4))


@contextmanager
def handling(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve with a handler; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class JsonHandler(BaseHTTPRequestHandler):
    """Reads JSON and answers JSON."""

    protocol_version = "HTTP/1.1"

    def body(self) -> object:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, found: object, **headers: str) -> None:
        data = json.dumps(found).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving_rewards(
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: Callable[[np.ndarray], float] = reward_of,
    max_length: int = 4096,
) -> Iterator[str]:
    """Serve every route; yield the address."""
    tokens = ConversationTokens.of(tokenizer, max_length)

    class Handler(JsonHandler):
        def do_POST(self) -> None:
            body, protocol = self.body(), ROUTES[self.path]
            try:
                question = protocol.read(body)
                ids = tokens.encode_all(question)
                found = [*map(reward, ids)]
                reference = found.pop() if question.has_reference else None
                rewards = Rewards(
                    rewards=tuple(one - (reference or 0) for one in found),
                    num_tokens=tuple(map(len, ids))[: len(found)],
                    model="loopback",
                    reference=reference,
                )
                content = protocol.answer(question, rewards)
            except InputError as error:
                self.answer(400, {"error": {"message": str(error)}})
            else:
                self.answer(200, content)

    with handling(Handler) as url:
        yield url
