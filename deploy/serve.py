"""Serve an exported model over HTTP with Ray Serve: POST an image file, get JSON.

    python deploy/serve.py bottle_60_int8.xml --port 8000
    curl --data-binary @photo.png http://127.0.0.1:8000/

Needs Ray Serve and what the command of detect.py needs, with its files beside this one. README.md says what it answers.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # of a file
MAX_PIXELS = 2**26  # of an image: a small file can hold a very large one


class Service:
    """One process with the model, which Ray Serve starts: a replica."""

    def __init__(self, model: str, threshold: float | None, queue: int):
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # before OpenCV is imported
        sys.path.insert(0, str(Path(__file__).parent))
        import decoding
        from detect import Detector

        self._read, self._detector, self._turn = decoding.read, Detector(model, threshold), asyncio.Lock()
        self._queue, self._accepted, self._is_open, self._white = queue, 0, True, self._detector.metadata["white_level"]

    def reconfigure(self, config: dict[str, bool]) -> None:
        """Called by Ray Serve with the deployment's `user_config`, also of a replica that runs."""
        self._is_open = config["is_open"]

    async def __call__(self, request: Any) -> Any:
        """The answer to a request; both are of starlette, which Ray Serve brings."""
        from starlette.responses import JSONResponse

        if request.method != "POST":
            return JSONResponse({"error": "POST an image file"}, 405, {"Allow": "POST"})
        if not 0 < int(request.headers.get("content-length", 0)) <= MAX_BYTES:
            return JSONResponse({"error": f"needs a Content-Length of 1 to {MAX_BYTES}"}, 413)
        if not self._is_open or self._accepted > self._queue:  # one of them is not waiting
            return JSONResponse({"error": "try again later"}, 503, {"Retry-After": "1"})
        self._accepted += 1
        try:
            content = await request.body()
            async with self._turn:  # in a thread: meanwhile other requests are read, or refused
                return JSONResponse(await asyncio.to_thread(self._answer, content))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        finally:
            self._accepted -= 1

    def _answer(self, content: bytes) -> dict[str, Any]:
        found, limit = self._detector(self._read(content, self._white, refuses_dark=True)), self._detector.threshold
        answer = {"score": found.score, "verdict": found.verdict, "threshold": None if limit == float("inf") else limit}
        return answer | {"regions": [region._asdict() for region in found.regions]}


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="the .onnx or .xml file")
    parser.add_argument("--threshold", type=float, help="image threshold (default: that of the model's file)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all networks; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--replicas", type=int, default=1, help="processes with the model; default: %(default)s")
    parser.add_argument("--queue", type=int, default=32, help="images that wait in each; default: %(default)s")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports over the network
    try:
        if asked.replicas < 1 or asked.queue < 0:
            raise ValueError("--replicas must be at least 1, --queue at least 0")
        with socket.create_server((asked.host, asked.port)):  # Ray says of a port that is taken only that it failed
            model = str(Path(asked.model).resolve())
        Service(model, asked.threshold, asked.queue)  # its errors are printed here, not in a replica's log
        from ray import serve
    except (ValueError, OSError, OverflowError, ImportError) as error:
        parser.error(str(error))
    # A replica itself refuses what is too many; it has a minute to answer what it has accepted.
    options = {"max_ongoing_requests": asked.queue + 100, "graceful_shutdown_timeout_s": 60}

    def run(is_open: bool) -> None:
        deployment = serve.deployment(num_replicas=asked.replicas, user_config={"is_open": is_open}, **options)
        serve.run(deployment(Service).bind(model, asked.threshold, asked.queue))

    ended = threading.Event()
    serve.start(http_options={"host": asked.host, "port": asked.port})
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    run(is_open=True)
    print(f"serving: http://{asked.host}:{asked.port}/", flush=True)
    ended.wait()
    run(is_open=False)
    serve.shutdown()  # waits for the accepted images


if __name__ == "__main__":
    main()
