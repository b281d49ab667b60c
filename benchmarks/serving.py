"""A server of deploy/serve.py under load."""

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks import common

Answer = tuple[int, float]  # HTTP status, seconds


def _client(url: str, content: bytes, end: float) -> list[Answer]:
    """Post an image over one connection, again and again, until `end`."""
    address, answers = urlsplit(url), []
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    while time.perf_counter() < end:
        start = time.perf_counter()
        connection.request("POST", address.path, content)
        answer = connection.getresponse()
        answer.read()
        answers.append((answer.status, time.perf_counter() - start))
    connection.close()
    return answers


def bench_load() -> None:
    """Images per second and the time of an answer, with several clients that each wait for their answer."""
    flags = common.parser()
    flags.add_argument("url")
    flags.add_argument("image", type=Path)
    flags.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="default: 1 8 32")
    flags.add_argument("--seconds", type=int, default=20, help="with each number of clients; default: %(default)s")
    asked = flags.parse_args()
    content = asked.image.read_bytes()
    print(f"# {asked.url}, {asked.image.name}\n# {common.machine()}")
    _client(asked.url, content, time.perf_counter() + 2)
    for count in asked.clients:
        end = time.perf_counter() + asked.seconds
        with ThreadPoolExecutor(count) as pool:
            clients = [pool.submit(_client, asked.url, content, end) for _ in range(count)]
        answers = [one for client in clients for one in client.result()]
        times = np.array([taken for status, taken in answers if status == 200]) * 1000
        median, high = np.quantile(times, (0.5, 0.99))
        full = sum(status == 503 for status, _ in answers)
        failed = sum(status not in (200, 503) for status, _ in answers)
        print(
            f"{count:3} clients  {len(times) / asked.seconds:7.1f} images/s  median {median:7.1f} ms  "
            f"99 % {high:7.1f} ms  queue full (503) {full}  failed {failed}",
            flush=True,
        )


if __name__ == "__main__":
    common.run({"load": bench_load})
