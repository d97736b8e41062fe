"""How keys, values and their gradients travel between context-parallel ranks: around a ring, or
gathered at once."""

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
"""Whole sequences up to this length are gathered, longer ones go around the ring
(docs/context_parallelism.md)."""


def choose_exchange(setting: ContextExchange, tokens: int, size: int) -> ExchangeKind:
    """Returns the exchange for a batch of `tokens` per rank on `size` ranks."""
    if setting != "auto":
        return setting
    return "all_gather" if tokens * size <= ALL_GATHER_TOKENS else "ring"


class Exchange(Protocol):
    """One attention call's traffic, on every rank of the group alike."""

    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        """Yields (source rank, index of the piece, keys and values): `own` first, then each piece
        of all others.

        `pieces` are made one by one when their turn comes, of equal shapes on every rank; [own]
        travels whole. With `overwrite` they may be lost, and own where it is one of them. What was
        yielded holds until the next is.
        """
        ...

    def give(self, source: int, gradients: Pair) -> None:
        """Takes the gradients of what `source` lent, in the order visited; they may be
        overwritten."""
        ...

    def collect(self) -> Pair:
        """Returns the gradients all ranks gave for this rank's own."""
        ...


def exchange_over(group: dist.ProcessGroup, kind: ExchangeKind) -> Exchange:
    """Returns the exchange of one forward or one backward pass; a group of one exchanges
    nothing."""
    if group.size() == 1:
        return _Alone()
    return _Ring(group) if kind == "ring" else _AllGather(group)


class _Alone:
    def visit(
        self, own: Pair, pieces: Iterable[Pair], overwrite: bool
    ) -> Iterator[tuple[int, int, Pair]]:
        yield 0, 0, own

    def give(self, source: int, gradients: Pair) -> None:
        self.gradients = gradients

    def collect(self) -> Pair:
        return self.gradients


class _Ring:
    """Each rank sends to the next while it computes with what it has. So at most three pieces of
    K/V are held beside its own: one to compute with, one that leaves, one that arrives. Whole K/V
    that may be lost need one beside them.

    Gradients follow one step behind on the same way and are home after the last step.
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
        """The next transfer, of a new piece too, is always under way while what came before is
        computed with."""
        ready, spare = (self.rank, 0, own), None
        for piece, here in enumerate(pieces):
            for step in range(self.size - 1):
                coming = spare if spare and _same_shape(spare, here) else _empty_like(here)
                works = self._pass_on(here, coming)
                yield ready
                _wait(works)
                spare = here if step > 0 or overwrite else None
                here = coming
                ready = (self.rank - step - 1) % self.size, piece, here
        yield ready

    def give(self, source: int, gradients: Pair) -> None:
        summed, spare = gradients, None
        if self.arriving is not None:
            _wait(self.works)
            summed, spare = self.arriving, self.sent
            for total, part in zip(summed, gradients, strict=True):
                total += part
        coming = spare or _empty_like(summed)
        self.works = self._pass_on(summed, coming)
        self.sent, self.arriving = summed, coming

    def collect(self) -> Pair:
        _wait(self.works)
        assert self.arriving is not None
        return self.arriving

    def _pass_on(self, leaving: Pair, coming: Pair) -> list[dist.Work]:
        sends = [dist.P2POp(dist.isend, tensor, self.next, self.group) for tensor in leaving]
        receives = [dist.P2POp(dist.irecv, tensor, self.previous, self.group) for tensor in coming]
        return dist.batch_isend_irecv(sends + receives)


class _AllGather:
    """A piece of all ranks' K/V at once, or the whole: fewer, larger messages, where they fit with
    ease."""

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
            yield from ready
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
