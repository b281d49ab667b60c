"""Jobs on Ray: one task each, on this machine or a cluster; tasks whose node dies run again elsewhere."""

import logging
import math
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from runtime import signals
from runtime.device import setup
from runtime.errors import UserError, format_error
from runtime.files import BATCH

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.5  # between two checks of the tasks
CONNECT_SECONDS = 5  # for an address to answer
TIMEOUT_SECONDS = 60  # for interrupted tasks to save their state


class Options(NamedTuple):
    """Options of a batch on Ray.

    Attributes:
        address: `local`, `auto`, or the address of a cluster.
        gpus, cpus: per job; gpus None: 1 if the cluster has GPUs, else 0. retries: after a node has died.
    """

    address: str
    gpus: float | None = None
    cpus: float = 1
    retries: int = 3


def options_of(flags: Any) -> Options | None:
    """The options of a command line (`cli.add_ray_flags`); None without --ray."""
    if not flags.ray:
        return None
    gpus = flags.gpus_per_job
    if gpus is not None and not (0 <= gpus <= 1 or (math.isfinite(gpus) and gpus > 1 and gpus == int(gpus))):
        raise UserError(f"--gpus_per_job {gpus:g}", "out of range", "set 0, a share below 1, or a whole number")
    if not 0 < flags.cpus_per_job < math.inf:
        raise UserError(f"--cpus_per_job {flags.cpus_per_job:g}", "out of range", "set a number above 0")
    if flags.max_retries < 0:
        raise UserError(f"--max_retries {flags.max_retries}", "out of range", "set 0 or more")
    if flags.ray.startswith("ray://"):
        raise UserError(
            f"--ray {flags.ray}", "clients outside the cluster are not supported", "run this on a node, with --ray auto"
        )
    return Options(flags.ray, gpus, flags.cpus_per_job, flags.max_retries)


class Outcome(NamedTuple):
    """The result of a job. error: in one line, None for none. value: of its function. node: its host name."""

    error: str | None
    value: Any
    node: str


class Cluster:
    """A connection to Ray. gpus: of each job."""

    def __init__(self, ray: Any, options: Options):
        self._ray, self._options = ray, options
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in ("GPU", "CPU")}
        self.gpus = options.gpus if options.gpus is not None else float(most["GPU"] >= 1)
        for flag, kind, wanted in (("--gpus_per_job", "GPU", self.gpus), ("--cpus_per_job", "CPU", options.cpus)):
            if wanted > most[kind]:
                raise UserError(
                    f"{flag} {wanted:g}", f"no node of the cluster has more than {most[kind]:g}", "lower it"
                )
        if not any(node.get("GPU", 0) >= self.gpus and node.get("CPU", 0) >= options.cpus for node in nodes):
            flags = f"--gpus_per_job {self.gpus:g} --cpus_per_job {options.cpus:g}"
            raise UserError(flags, "no node of the cluster has both", "lower one of them")

    def run(
        self, function: Callable[..., Any], jobs: dict[str, tuple], folders: Sequence[Path]
    ) -> Iterator[tuple[str, Outcome]]:
        """Run function(*arguments) for every job; labels and outcomes in the order in which jobs end.

        Args:
            jobs: label -> arguments. folders: on storage that all nodes must see.

        Raises:
            Interrupted: by a signal, after the tasks have had time to save their state.
        """
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # The queue lives on the driver's node, given by its id: several nodes can have the same address.
        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        events = Queue(actor_options={"scheduling_strategy": here, "num_cpus": 0})
        task = self._ray.remote(_task).options(
            num_gpus=self.gpus, num_cpus=self._options.cpus, max_retries=self._options.retries, retry_exceptions=False
        )
        paths = [str(folder.resolve()) for folder in (Path.cwd(), *folders)]
        pending = {task.remote(events, label, paths, function, jobs[label]): label for label in jobs}
        started: set[str] = set()
        # Deferred: a call of Ray that a signal interrupts does not tell which signal it was.
        with tqdm(total=len(jobs), desc="jobs", unit="job") as bar, signals.deferred() as stop:
            try:
                while pending:
                    done, _ = self._ray.wait(list(pending), timeout=POLL_SECONDS)
                    while not events.empty():
                        label, node = events.get()
                        bar.write(f"{label}: starts {'again ' if label in started else ''}on {node}")
                        started.add(label)
                    for ref in done:
                        label, outcome = pending.pop(ref), self._outcome(ref)
                        bar.write(
                            f"{label}: {outcome.error or 'done'}" + (f" on {outcome.node}" if outcome.node else "")
                        )
                        bar.update()
                        yield label, outcome
                    stop.check()
            except signals.Interrupted as error:
                for ref in pending:
                    self._ray.cancel(ref, force=False)
                _, left = self._ray.wait(list(pending), num_returns=len(pending), timeout=TIMEOUT_SECONDS)
                text = "interrupted; jobs have saved their state, and the same command resumes"
                if left:
                    names = "; ".join(pending[ref] for ref in left)
                    text = f"interrupted; after {TIMEOUT_SECONDS} s these had not saved their state: {names}"
                raise signals.Interrupted(error.number, text) from None

    def _outcome(self, ref: Any) -> Outcome:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:  # its node died more often than `retries`
            return Outcome(" ".join(str(error).split())[:200], None, "")


def _task(events: Any, label: str, folders: Sequence[str], function: Callable[..., Any], arguments: tuple) -> Outcome:
    """Run a job in a process of a node. An error becomes part of the outcome, so that Ray retries lost nodes only."""
    setup()
    node = socket.gethostname()
    events.put((label, node))
    for folder in folders:  # the first is the driver's working directory
        if not Path(folder).is_dir():
            return Outcome(f"{folder}: does not exist on node {node}; put it on storage that all nodes see", None, node)
    os.chdir(folders[0])
    try:
        return Outcome(None, function(*arguments), node)
    except Exception as error:
        return Outcome(format_error(error), None, node)


@contextmanager
def connected(options: Options) -> Iterator[Cluster]:
    """A connection to Ray within the block.

    Raises:
        UserError: Ray is not installed, does not answer, or has no node that is large enough.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise UserError("--ray", "Ray is not installed", "run: pip install -r requirements-cluster.txt") from error
    environment = {"PYTHONPATH": str(ROOT), BATCH: secrets.token_hex(8)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports from here
    try:
        if host := re.fullmatch(r"([^/:]+):(\d+)", options.address):  # Ray itself would try for minutes
            socket.create_connection((host[1], int(host[2])), timeout=CONNECT_SECONDS).close()
        ray.init(
            address=options.address,
            runtime_env={"env_vars": environment},
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if options.address == "local" else None,
        )
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError too
        text = " ".join(str(error).split())[:160]
        raise UserError(
            f"--ray {options.address}", f"cannot connect to Ray ({text})", "start one, or use --ray local"
        ) from error
    signals.interrupts()  # Ray has replaced the handlers
    try:
        yield Cluster(ray, options)
    finally:
        ray.shutdown()
