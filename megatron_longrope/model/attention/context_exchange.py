"""How keys, values and their gradients travel between ranks: around a ring, or all gathered.

Every rank needs the K/V of all ranks of its context-parallel group in the forward pass, and every
rank's K/V collect gradients from all ranks in the backward pass. An `Exchange` hides how they get
there. Attention only sees "these K/V belong to rank s" and hands back "these gradients are for s".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrope.runtime.layout import ContextExchange

Pair = tuple[Tensor, Tensor]
"""Keys and values, or their gradients: each [kv_heads, tokens, head_dim], contiguous."""
ExchangeKind = Literal["ring", "all_gather"]


ALL_GATHER_TOKENS = 1024
"""With `auto`, K/V of sequences up to this length are gathered, of longer ones sent in a ring.

The length is that of the whole sequence, over all ranks; docs/context_parallelism.md has timings.
"""


def choose_exchange(setting: ContextExchange, tokens: int, size: int) -> ExchangeKind:
    """Returns the exchange for a batch of `tokens` per rank on `size` ranks.

    >>> choose_exchange("auto", tokens=256, size=4), choose_exchange("auto", tokens=512, size=4)
    ('all_gather', 'ring')
    """
    if setting != "auto":
        return setting
    return "all_gather" if tokens * size <= ALL_GATHER_TOKENS else "ring"


class Exchange(Protocol):
    """The traffic of one attention call; all ranks of the group make the same calls in order."""

    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        """Yields (source rank, index of the piece, K/V): first `own`, then all other ranks' pieces.

        What is yielded is valid only until the next item is asked for: its memory may then receive
        the next transfer.

        Args:
            own: This rank's whole keys and values.
            pieces: The parts in which `own` travels, with the same shapes on every rank. Each part
                is taken from the iterable only when its turn to be sent comes, so that copies are
                made one at a time. `[own]` sends everything at once.
            overwrite: Whether the memory of the pieces may be reused for incoming data. With
                `[own]` that means `own` is lost.
        """
        ...

    def give(self, source: int, gradients: Pair) -> None:
        """Takes this rank's gradients for the K/V of rank `source`; they may be overwritten.

        Called once per source, in the order in which `visit` yielded them.
        """
        ...

    def collect(self) -> Pair:
        """Returns the gradients of this rank's own K/V, summed over all ranks."""
        ...


def exchange_over(group: dist.ProcessGroup, kind: ExchangeKind) -> Exchange:
    """Returns a new exchange for one forward or backward pass; one rank alone exchanges nothing."""
    if group.size() == 1:
        return _Alone()
    return _Ring(group) if kind == "ring" else _AllGather(group)


class _Alone:
    """The exchange of a group of one: K/V and gradients stay where they are."""

    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        yield 0, 0, own

    def give(self, source: int, gradients: Pair) -> None:
        self.gradients = gradients

    def collect(self) -> Pair:
        return self.gradients


class _Ring:
    """Each rank sends K/V to the next rank while it computes with what it has.

    With n ranks, rank r holds the K/V of rank (r − step) mod n at step = 0 … n − 1: its own first,
    then those of the rank before it, last those of the rank after it. At most three pieces of K/V
    exist beside its own: one it computes with, one that leaves, one that arrives. Where whole K/V
    travel and may be overwritten, a single one beside them is enough.

    In the backward pass the gradients of rank s's K/V follow the K/V on the same way, one step
    behind. When rank r passes them on, they are the sum of the parts of ranks s, s + 1, … r (mod
    n). After n steps they hold every rank's part and arrive at s, where they belong.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()
        ranks = dist.get_process_group_ranks(group)
        self.next, self.previous = ranks[(self.rank + 1) % self.size], ranks[self.rank - 1]
        self.sent: Pair | None = None
        self.arriving: Pair | None = None
        self.works: list[dist.Work] = []

    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        """Yields as `Exchange.visit` says; the next transfer runs while the caller computes.

        That holds across pieces too: the first transfer of a new piece starts before the last K/V
        of the piece before it are yielded.
        """
        ready, spare = (self.rank, 0, own), None
        for piece, here in enumerate(pieces):
            for step in range(self.size - 1):
                # `here` belongs to rank (r − step) mod n. It leaves for rank r + 1 while the K/V of
                # rank (r − step − 1) mod n arrive from rank r − 1.
                coming = spare if spare and _same_shape(spare, here) else _empty_like(here)
                works = self._pass_on(here, coming)
                yield ready  # K/V that arrived earlier; `ready` may be `here`: sending only reads
                _wait(works)
                # What has left is free memory for a later arrival. At step 0 it is the caller's.
                spare = here if step > 0 or overwrite else None
                here = coming
                ready = (self.rank - step - 1) % self.size, piece, here
        yield ready

    def give(self, source: int, gradients: Pair) -> None:
        # First call: source is this rank, and its own part begins the sum for its K/V. Later calls:
        # the sum for rank `source`'s K/V has come from the previous rank, without our part yet.
        summed, spare = gradients, None
        if self.arriving is not None:
            _wait(self.works)
            summed, spare = self.arriving, self.sent  # what was sent has left: memory to reuse
            for total, part in zip(summed, gradients, strict=True):
                total += part
        coming = spare or _empty_like(summed)
        self.works = self._pass_on(summed, coming)
        self.sent, self.arriving = summed, coming

    def collect(self) -> Pair:
        # The previous rank's last source was this rank: what it passed on is our complete sum.
        _wait(self.works)
        assert self.arriving is not None
        return self.arriving

    def _pass_on(self, leaving: Pair, coming: Pair) -> list[dist.Work]:
        sends = [dist.P2POp(dist.isend, tensor, self.next, self.group) for tensor in leaving]
        receives = [dist.P2POp(dist.irecv, tensor, self.previous, self.group) for tensor in coming]
        return dist.batch_isend_irecv(sends + receives)


class _AllGather:
    """Every rank receives one piece of all ranks' K/V at once: fewer, larger messages.

    This costs memory for a piece of the whole sequence (n shares), and saves the latency of n − 1
    ring steps. The backward pass is a reduce-scatter: rank s ends with the sum for its own K/V.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self.given: dict[int, Pair] = {}

    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        ready = [(self.rank, 0, own)]
        for piece, here in enumerate(pieces):
            whole = [x.new_empty(self.size, *x.shape) for x in here]
            works = [
                dist.all_gather(list(to.unbind()), x, group=self.group, async_op=True)
                for to, x in zip(whole, here, strict=True)
            ]
            yield from ready  # the piece before this one is computed with while this one arrives
            _wait(works)
            sources = [(self.rank - step) % self.size for step in range(1, self.size)]
            ready = [(source, piece, (whole[0][source], whole[1][source])) for source in sources]
        yield from ready

    def give(self, source: int, gradients: Pair) -> None:
        self.given[source] = gradients

    def collect(self) -> Pair:
        sums = _empty_like(self.given[self.rank])
        for part, total in enumerate(sums):
            dist.reduce_scatter(
                total, [self.given[source][part] for source in range(self.size)], group=self.group
            )
        return sums


def _empty_like(pair: Pair) -> Pair:
    return torch.empty_like(pair[0]), torch.empty_like(pair[1])


def _same_shape(pair: Pair, other: Pair) -> bool:
    return pair[0].shape == other[0].shape


def _wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()
