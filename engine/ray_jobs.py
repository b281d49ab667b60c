"""Jobs on Ray: one task each, on this machine or a cluster; tasks whose node dies run again elsewhere."""

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
POLL_SECONDS = 0.5  # seconds between two looks at the tasks
REACHED = 5  # seconds for an address to answer
TIMEOUT_SECONDS = 60  # seconds that cancelled tasks have to save their state


class Options(NamedTuple):
    """address: `local`, `auto` or that of a cluster. gpus, cpus: of each job, None: one GPU where there are any."""

    address: str
    gpus: float | None = None
    cpus: float = 1
    retries: int = 3


def options_of(flags: Any) -> Options | None:
    """What a command line asks for (`cli.add_ray_flags`); None without --ray."""
    if not flags.ray:
        return None
    gpus = flags.gpus_per_job
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise UserError(f"--gpus_per_job {gpus:g}", "out of range", "set 0, a share below 1, or a whole number")
    if flags.cpus_per_job <= 0:
        raise UserError(f"--cpus_per_job {flags.cpus_per_job:g}", "out of range", "set a number above 0")
    if flags.max_retries < 0:
        raise UserError(f"--max_retries {flags.max_retries}", "out of range", "set 0 or more")
    if flags.ray.startswith("ray://"):
        raise UserError(
            f"--ray {flags.ray}", "clients outside the cluster are not supported", "run this on a node, with --ray auto"
        )
    return Options(flags.ray, gpus, flags.cpus_per_job, flags.max_retries)


class Outcome(NamedTuple):
    """What came of a job. error: in a line, None where there was none. value: what its function has returned."""

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
            wanted = f"--gpus_per_job {self.gpus:g} --cpus_per_job {options.cpus:g}"
            raise UserError(wanted, "no node of the cluster has both", "lower one of them")

    def run(
        self, function: Callable[..., Any], jobs: dict[str, tuple], folders: Sequence[Path]
    ) -> Iterator[tuple[str, Outcome]]:
        """Run function(*arguments) for every job; each with what came of it, as they end.

        Args:
            jobs: label -> arguments. folders: on storage that all nodes must see.

        Raises Interrupted when told to stop, after the tasks have had time to save what they have done.
        """
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node, which outlives the others; not by its address, which several can share.
        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        events = Queue(actor_options={"scheduling_strategy": here, "num_cpus": 0})
        task = self._ray.remote(_task).options(
            num_gpus=self.gpus, num_cpus=self._options.cpus, max_retries=self._options.retries, retry_exceptions=False
        )
        paths = [str(folder.resolve()) for folder in (Path.cwd(), *folders)]
        pending = {task.remote(events, label, paths, function, jobs[label]): label for label in jobs}
        started: set[str] = set()
        # Deferred, as an interrupted call of Ray does not tell by which signal.
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
            except signals.Interrupted as stopped:
                for ref in pending:
                    self._ray.cancel(ref, force=False)
                _, left = self._ray.wait(list(pending), num_returns=len(pending), timeout=TIMEOUT_SECONDS)
                text = "stopped; jobs have saved what they have done, and the same command goes on from there"
                if left:
                    names = "; ".join(pending[ref] for ref in left)
                    text = f"interrupted; still running after {TIMEOUT_SECONDS} s, to be resumed from an earlier state: {names}"
                raise signals.Interrupted(stopped.number, text) from None

    def _outcome(self, ref: Any) -> Outcome:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:  # its node died more often than it is tried again
            return Outcome(" ".join(str(error).split())[:200], None, "")


def _task(events: Any, label: str, folders: Sequence[str], function: Callable[..., Any], arguments: tuple) -> Outcome:
    """In a process of a node: a job, with what it fails for told in a line. Ray tries only what has died again."""
    setup()
    node = socket.gethostname()
    events.put((label, node))
    for folder in folders:  # the first is the driver's own, which paths can be relative to
        if not Path(folder).is_dir():
            return Outcome(f"{folder}: not there on node {node}; put it on storage that all nodes see", None, node)
    os.chdir(folders[0])
    try:
        return Outcome(None, function(*arguments), node)
    except Exception as error:
        return Outcome(format_error(error), None, node)


@contextmanager
def connected(options: Options) -> Iterator[Cluster]:
    """Ray, for the length of the block.

    Raises:
        UserError: Ray is not installed, not at the address, or has no node large enough.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise UserError("--ray", "Ray is not installed", "run: pip install -r requirements-cluster.txt") from error
    environment = {"PYTHONPATH": str(ROOT), BATCH: secrets.token_hex(8)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here tells nobody
    try:
        if host := re.fullmatch(r"([^/:]+):(\d+)", options.address):  # Ray would try for minutes
            socket.create_connection((host[1], int(host[2])), timeout=REACHED).close()
        ray.init(
            address=options.address,
            runtime_env={"env_vars": environment},
            logging_level="ERROR",
            log_to_driver=False,
            include_dashboard=False if options.address == "local" else None,
        )
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError too
        text = " ".join(str(error).split())[:160]
        raise UserError(
            f"--ray {options.address}", f"no Ray there ({text})", "start one, or use --ray local"
        ) from error
    signals.interrupts()  # Ray puts a handler of its own
    try:
        yield Cluster(ray, options)
    finally:
        ray.shutdown()
