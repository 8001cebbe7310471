"""The processes that learn together: this one alone, or those that torchrun started.

Each rank has its own hosts, streams and replay, and all have the same weights: what is learned from is summed over
the ranks. Two ranks are as one process with both their batches, because

- every mean in a loss is over the tokens of all ranks: its weights are divided by their sum over the ranks, so
  that the gradients of the ranks add up to that of the whole batch;
- :class:`~agentgpt_remote.trainer.optimizer.FlatAdam` adds them up with one ``all_reduce`` of its one vector, before
  the norm is clipped. That is what ``DistributedDataParallel`` computes, which wraps one module with one
  ``backward``; here an update takes gradients of two or three with ``torch.autograd.grad``, in two losses that
  read each other's models, and a flat gradient needs no buckets;
- normalisers, the scale of advantages and every decision (how many gradient steps, when an epoch is the last one,
  when the run ends) come from all ranks' numbers.

Nothing that is received is unpickled: numbers and texts travel as JSON, states as ``torch.load(weights_only=True)``
reads them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from agentgpt_remote.errors import AgentGPTError, ConfigError, TrainingFailed

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT_VARIABLE = "AGENTGPT_RANK_TIMEOUT_S"
_TIMEOUT_S = 600.0
_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_APART = 1_000_000_007
_SHORT = 1016
_T = TypeVar("_T")


class Ranks:
    """A process that learns alone: it agrees with itself, at no cost.

    Attributes:
        rank: its number among those that learn together, from 0.
        local_rank: its number on this machine.
        size: how many they are.
    """

    rank = local_rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes what there is only one of."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Return a seed of this rank's own; the first rank's is the run's."""
        return seed + _APART * self.rank

    def share(self, value: Any) -> list[Any]:
        """Return every rank's value, in their order; what JSON holds.

        Raises:
            RankLost: a rank has ended, or did not answer in time.
        """
        return [value]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, which takes this one's place.

        Raises:
            RankLost: a rank has ended, or did not answer in time.
        """
        return tensor

    def first(self, state: Any) -> Any:
        """Return the first rank's state: a nest of tensors, numbers, texts, lists and dicts.

        Raises:
            RankLost: a rank has ended, or did not answer in time.
        """
        return state

    def decided(self, decide: Callable[[], _T]) -> _T:
        """Return what the first rank decides; what JSON holds.

        Raises:
            AgentGPTError: there, what ``decide`` raises; elsewhere TrainingFailed with its text.
            RankLost: a rank has ended, or did not answer in time.
        """
        if self.size == 1:
            return decide()
        told: list[Any] = [None, None]
        if self.leads:
            try:
                told[0] = decide()
            except AgentGPTError as error:
                self.share([None, str(error)])
                raise
        decision: _T
        decision, failure = self.share(told)[0]
        if failure is not None:
            raise TrainingFailed(f"rank 0: {failure}")
        return decision


ALONE = Ranks()


class RankLost(TrainingFailed):
    """Another rank has ended, or did not answer in time."""


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Yield the ranks that torchrun's environment variables name, or this process alone; leave them at the end.

    Gradients travel by NCCL on GPUs, all else by gloo. No wait is longer than AGENTGPT_RANK_TIMEOUT_S, ten minutes
    unless it is set.

    Raises:
        ConfigError: AGENTGPT_RANK_TIMEOUT_S is not a number of seconds.
        RankLost: the others did not come.
    """
    if not all(os.environ.get(name) for name in _SET_BY_TORCHRUN) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by the caller, who also leaves it
        yield TorchRanks(_timeout_s())
        return
    # A wait for GPUs then ends with an error at its deadline, where the whole process would be ended otherwise.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    if gpus and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    timeout_s = _timeout_s()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise RankLost(f"rank {os.environ['RANK']} did not meet the other ranks: {error}") from error
    try:
        yield TorchRanks(timeout_s)
    finally:
        with contextlib.suppress(RuntimeError):  # of a rank that is gone
            dist.destroy_process_group()


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text or _TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={text!r}: expected a number of seconds of more than 0")
    return seconds


class TorchRanks(Ranks):
    """Processes that learn together, over the default group of ``torch.distributed``.

    Args:
        timeout_s: of the group; told where it runs out.
    """

    def __init__(self, timeout_s: float) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK") or self.rank)
        self._timeout_s = timeout_s
        self._dist = dist

    def share(self, value: Any) -> list[Any]:
        """Return every rank's value, in their order; see :meth:`Ranks.share`."""
        data = json.dumps(value).encode()
        # What is short needs one message: its length, then the text.
        heads = self._gather(len(data).to_bytes(8, "big") + data[:_SHORT], 8 + _SHORT)
        lengths = [int.from_bytes(head[:8], "big") for head in heads]
        texts = [head[8:] for head in heads] if max(lengths) <= _SHORT else self._gather(data, max(lengths))
        return [json.loads(text[:length]) for text, length in zip(texts, lengths, strict=True)]

    def _gather(self, data: bytes, length: int) -> list[bytes]:
        """Return every rank's bytes, filled up to a length."""
        import torch

        own = torch.frombuffer(bytearray(data.ljust(length)), dtype=torch.uint8)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with self._answered():
            self._dist.all_gather(gathered, own)
        return [each.numpy().tobytes() for each in gathered]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors; see :meth:`Ranks.sum_`."""
        with self._answered():
            self._dist.all_reduce(tensor)
        return tensor

    def first(self, state: Any) -> Any:
        """Return the first rank's state; see :meth:`Ranks.first`."""
        import torch

        buffer = io.BytesIO()
        if self.leads:
            torch.save(state, buffer)
        length = self.share(buffer.tell())[0]
        data = torch.frombuffer(bytearray(buffer.getvalue() or length), dtype=torch.uint8)
        with self._answered():
            self._dist.broadcast(data, 0)
        if self.leads:
            return state
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                f"rank {self.rank} of {self.size} waited for the others in vain: one has ended, or did not answer "
                f"for {self._timeout_s:g} s ({str(error).splitlines()[0]}). Start all ranks again with --resume: the "
                "run goes on from the last checkpoint that all of them have"
            ) from error
