"""Training on several processes, as torchrun and other launchers start them.

Each process has a share of every batch. Statistics of batch norm, losses, the dynamic range of SSIM and gradients are
those of the whole batch, as with a single process.
"""

import atexit
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import RankLostError, UserError
from runtime.signals import Interrupted, deferred

POLL_SECONDS = 0.05  # between two checks of the store
HEARTBEAT_SECONDS = 1.0  # between two heartbeats of a process
SILENT_SECONDS = 20.0  # without a heartbeat a process counts as lost
ALIVE_SECONDS = 5.0  # for the others to report after a failed exchange
TIMEOUT = timedelta(minutes=30)  # for one process to decode and draw while the others wait


class ProcessGroup:
    """This process within the group that was started together.

    Attributes:
        rank: from 0. count: of processes. local_rank: on this machine. is_first: whether it has rank 0, which writes.
        statistics: torch's process group for batch norm and losses.

    Raises:
        UserError: more processes on a machine than GPUs, or an incomplete environment.
    """

    def __init__(self, uses_cuda: bool):
        self.count = _number("WORLD_SIZE", 1)
        self.rank, self.local_rank = _number("RANK", 0, self.count - 1), _number("LOCAL_RANK", 0, self.count - 1, "0")
        _number("MASTER_PORT", 0, 65535)
        _check_address(_environment("MASTER_ADDR"))
        self.is_first, self._turns = self.rank == 0, 0
        if uses_cuda:
            gpus = torch.cuda.device_count()
            if self.local_rank >= gpus:
                raise UserError(
                    "torchrun",
                    f"{self.local_rank + 1} processes or more on a machine with {gpus} GPUs",
                    f"start {gpus}",
                )
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if uses_cuda else "gloo", timeout=TIMEOUT)
        store: Any = dist.distributed_c10d._get_default_store()  # its stubs lack `clone`
        self._store = store
        # Apart: signals and objects never wait for a GPU, statistics never queue behind gradients.
        self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.statistics = dist.new_group(timeout=TIMEOUT)
        self._ends = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(store.clone(),), daemon=True)
        self._heart.start()
        atexit.register(self._stop_beating)

    def _beat(self, store: Any) -> None:
        """Write heartbeats to the store, however long the work takes."""
        with suppress(RuntimeError):  # the store ends with the first process
            while True:
                store.add(f"beat/{self.rank}", 1)
                if self._ends.wait(HEARTBEAT_SECONDS):
                    return

    def _stop_beating(self) -> None:
        """End the heartbeats before Python ends: a thread within the store would then abort the process."""
        self._ends.set()
        self._heart.join(ALIVE_SECONDS)

    @contextmanager
    def rank_ordered(self) -> Iterator[None]:
        """Enter the block in turn: rank 0, then the first process of every other machine, then the rest.

        So files are decoded once on each machine, and a user's mistake is reported once.
        """
        self._turns += 1
        own = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        self._store.set(f"turn/{self._turns}/{self.rank}", str(own))
        turns = [int(self._wait(f"turn/{self._turns}", rank)) for rank in range(self.count)]
        for rank, turn in enumerate(turns):
            if turn < own:
                self._wait(f"left/{self._turns}", rank)
        yield
        self._store.set(f"left/{self._turns}/{self.rank}", "")

    def _wait(self, key: str, rank: int) -> bytes:
        """Wait for the value of a rank under a key. RankLostError where its heartbeats stop."""
        beats, since = None, time.monotonic()
        while not self._store.check([f"{key}/{rank}"]):  # polled, since a blocking call cannot be interrupted
            time.sleep(POLL_SECONDS)
            if time.monotonic() - since > SILENT_SECONDS:
                now = self._store.add(f"beat/{rank}", 0)
                if now == beats:
                    raise self._lost([rank])
                beats, since = now, time.monotonic()
        return self._store.get(f"{key}/{rank}")

    def _lost(self, ranks: Sequence[int]) -> RankLostError:
        names = ", ".join(f"rank {rank}" for rank in ranks)
        text = f"{names} of {self.count} has ended; start all again: a training resumes from its last state"
        return RankLostError(text)

    def barrier(self) -> None:
        """Wait for all others."""
        with self.rank_ordered():
            pass
        for rank in range(self.count):
            self._wait(f"left/{self._turns}", rank)

    def any(self, number: int | None) -> int | None:
        """The largest number of all processes; None where none has one."""
        largest = torch.tensor(number or 0)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._control)
        return int(largest.item()) or None

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        dist.all_reduce(values, group=self.statistics)
        return values

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum over all processes, as torch.aminmax returns them."""
        infinity = values.new_tensor(float("inf"))
        low, high = torch.aminmax(values) if values.numel() else (infinity, -infinity)
        both = torch.stack((-low, high))
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.statistics)
        return -both[0], both[1]

    def share(self, keys: list[Any]) -> list[Any]:
        """The share of a batch of this process; can be empty."""
        size, rest = divmod(len(keys), self.count)
        start = self.rank * size + min(self.rank, rest)
        return keys[start : start + size + (self.rank < rest)]

    def wrap_ddp(self, model: nn.Module) -> DistributedDataParallel:
        """The model wrapped for training: batch norms are synchronized (in place), gradients are summed."""
        synchronize(model, self.statistics)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a new name of this option
            together = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        together.register_comm_hook(None, _add_up)
        return together

    def send(self, content: Any) -> None:
        """Send to rank 0."""
        dist.send_object_list([content], dst=0, group=self._control)

    def receive(self, rank: int) -> Any:
        """Receive from a rank."""
        content = [None]
        dist.recv_object_list(content, src=rank, group=self._control)
        return content[0]

    def gather(self, content: Any) -> list[Any]:
        """The contents of all processes, by rank, for all of them."""
        found = [None] * self.count
        dist.all_gather_object(found, content, group=self._control)
        return found

    def lost(self) -> list[int]:
        """After a failed exchange: the ranks that do not answer."""
        missing = [rank for rank in range(self.count) if rank != self.rank]
        try:
            self._store.set(f"alive/{self.rank}", "")
            end = time.monotonic() + ALIVE_SECONDS
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not self._store.check([f"alive/{rank}"])]
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # the store has ended with rank 0
            return [0]
        return missing

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        """Leave the group. Where an exchange has failed, RankLostError names the ranks that have ended."""
        if isinstance(error, UserError) and not self.is_first:
            time.sleep(ALIVE_SECONDS)  # rank 0 most likely reports the same, and the launcher then ends this process
        # A launcher interrupts all others when one has ended, perhaps while their exchange with it fails.
        first = error.__context__ if isinstance(error, Interrupted) and error.__context__ else error
        if isinstance(first, RuntimeError) and (isinstance(first, dist.DistError) or "gloo" in str(first)):
            lost = []
            with suppress(Interrupted), deferred():
                lost = self.lost()
            if lost:
                raise self._lost(lost) from error
        if isinstance(error, Interrupted) and not self.is_first:
            sys.exit(error.status)
        if error is None:
            dist.destroy_process_group()


def _environment(name: str, default: str | None = None) -> str:
    """A variable that a launcher sets."""
    if (value := os.environ.get(name, default)) is None:
        raise UserError(
            name,
            "is not set, although RANK and WORLD_SIZE are",
            "start with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process",
        )
    return value


def _number(name: str, low: int, high: int = 10**9, default: str | None = None) -> int:
    value = _environment(name, default)
    if not re.fullmatch(r"\d{1,10}", value) or not low <= int(value) <= high:
        problem = f"must be a whole number from {low} to {high}"
        raise UserError(f"{name} = {value[:40]}", problem, "set it as torchrun does")
    return int(value)


def _check_address(name: str) -> None:
    """UserError for a name that no machine has: the others would wait for half an hour."""
    try:
        socket.getaddrinfo(name or "-", None)
    except (OSError, UnicodeError) as error:
        problem = f"no machine of this name ({error})"
        raise UserError(f"MASTER_ADDR = {name[:40]}", problem, "set it to the machine of rank 0") from error


def _add_up(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum gradients over all processes. Torch's default would also divide them, in a pass of its own."""
    added = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return added.then(lambda done: done.value()[0])


def synchronize(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Synchronize the batch norms of a model, in place; names and weights stay."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronizedBatchNorm
    SynchronizedBatchNorm.group = group


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, which may differ in size; on CPUs too, unlike torch's own.

    The group belongs to the class, so that models can be copied.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalized."""
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            running_mean, running_var, momentum = self.running_mean, self.running_var, self.momentum
            assert running_mean is not None and running_var is not None and momentum is not None  # as DRAEM has them
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
        return y


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup) -> tuple:
        channels = x.shape[1]
        all_ranks = torch.zeros(dist.get_world_size(group), 2 * channels + 1, dtype=weight.dtype, device=x.device)
        if len(x):
            # Unused float32 running statistics: without them the statistics of bfloat16 would be rounded to it.
            unused = weight.new_zeros(channels), weight.new_ones(channels)
            mean, var = torch.ops.aten.batch_norm_update_stats(x, *unused, 0.0)
            own = torch.cat((mean, var, weight.new_tensor([x.numel() / channels])))
            all_ranks[dist.get_rank(group)] = own
        dist.all_reduce(all_ranks, group=group)
        means, variances, counts = all_ranks.split((channels, channels, 1), dim=1)
        count = counts.sum()
        shares = counts / count
        mean = (means * shares).sum(0)
        var = ((variances + (means - mean) ** 2) * shares).sum(0)
        ctx.group, ctx.eps = group, eps
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.mark_non_differentiable(mean, var, count)
        return _affine(x, weight, bias, mean, var, eps), mean, var, count

    @staticmethod
    def backward(ctx, dy: Tensor, *_: Tensor) -> tuple:
        x, weight, mean, var, count = ctx.saved_tensors
        if len(x):
            dx, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            dx, of_weight, of_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        # The part of the gradient that goes through mean and variance: -w / s * (mean(dy) + x_hat * mean(dy * x_hat)),
        # means over the whole batch.
        total = torch.stack((of_bias, of_weight))
        dist.all_reduce(total, group=ctx.group)
        through_mean, through_deviation = total * (-weight * torch.rsqrt(var + ctx.eps) / count)
        dx = dx.add_(_affine(x, through_deviation, through_mean, mean, var, ctx.eps))
        return dx, of_weight, of_bias, None, None


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """weight (x - mean) / deviation + bias in one pass."""
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps) if len(x) else x.clone()
