"""Packed rows as tensors, and the reproducible order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megatron_longrope.data.packed import PackedDataset
from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class DocumentBatch:
    """Documents laid end to end; attention and positions restart at each of them.

    A batch is whole, or a context-parallel share of a whole one (data/zigzag.py): then `tokens`,
    `labels`, `loss_mask` and `positions` are this rank's, and all else describes the whole batch.

    >>> batch = DocumentBatch.from_documents([np.array([7, 8, 9]), np.array([5, 6])])
    >>> batch.labels.tolist(), batch.loss_mask.tolist()
    ([8, 9, 0, 6, 0], [1.0, 1.0, 0.0, 1.0, 0.0])
    >>> batch.positions.tolist(), batch.cu_seqlens.tolist()
    ([0, 1, 2, 0, 1], [0, 3, 5])
    """

    tokens: torch.Tensor
    """Token ids, [total] int64."""
    labels: torch.Tensor
    """The next token of the same document, [total] int64; 0 where there is none."""
    loss_mask: torch.Tensor
    """1 where there is a label that counts, else 0, [total] float32."""
    positions: torch.Tensor
    """Position of each token in its document, [total] int64."""
    cu_seqlens: torch.Tensor
    """Start of each document, and the end, padding included, [documents + 1] int32."""
    max_length: int
    """Tokens of the longest document, padding included."""
    longest: int
    """Tokens of the longest document without padding, and so the same under every layout.

    Factors are selected by it.
    """
    context_size: int = 1
    """Number of context-parallel shares the batch was cut in; 1 for a whole batch."""

    @classmethod
    def from_documents(
        cls, pieces: Sequence[np.ndarray], pad_to_multiple: int = 1, total: int | None = None
    ) -> DocumentBatch:
        """Returns `pieces`, each [tokens] of integers, as one batch.

        Each piece is padded at its end, with masked zeros, to a multiple of `pad_to_multiple`, so
        that context parallelism can cut it in equal chunks. `total` fills the batch up to that many
        tokens with one masked document: kernels are then prepared for one size only. Labels are
        shifted here, before any cut: afterwards a token's successor may be on another rank.
        """
        if not pieces or min(len(piece) for piece in pieces) == 0:
            raise InputError(
                "documents", len(pieces), "a batch needs one document or more, none of them empty"
            )
        if pad_to_multiple < 1:
            raise InputError("pad_to_multiple", pad_to_multiple, "must be 1 or more")
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        padded = -(-lengths // pad_to_multiple) * pad_to_multiple
        missing = 0 if total is None else total - int(padded.sum())
        if missing > 0:
            filler = -(-missing // pad_to_multiple) * pad_to_multiple
            lengths, padded = np.append(lengths, 0), np.append(padded, filler)
        starts = np.concatenate(([0], np.cumsum(padded)))
        size = int(starts[-1])
        if size > np.iinfo(np.int32).max:
            raise InputError(
                "documents", len(pieces), f"{size} tokens in one batch; cu_seqlens are 32-bit"
            )
        tokens, labels = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        loss_mask = np.zeros(size, dtype=np.float32)
        for piece, start, length in zip(pieces, starts, lengths, strict=False):
            tokens[start : start + length] = piece
            labels[start : start + length - 1] = piece[1:]
            loss_mask[start : start + length - 1] = 1.0
        positions = np.arange(size, dtype=np.int64) - np.repeat(starts[:-1], padded)
        return cls(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            loss_mask=torch.from_numpy(loss_mask),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
            max_length=int(padded.max()),
            longest=int(lengths.max()),
        )

    @property
    def num_documents(self) -> int:
        """Number of documents, with the one that only fills up the batch."""
        return len(self.cu_seqlens) - 1

    def to(self, device: torch.device | str) -> DocumentBatch:
        """Returns the batch with its tensors on `device`."""
        names = ("tokens", "labels", "loss_mask", "positions", "cu_seqlens")
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names}
        )


_BEFORE_IT_WAS_SAVED = {"balanced_steps": 1}
"""What settings were in checkpoints older than the settings themselves."""


class PackedBatches:
    """Endless training steps over the rows of a dataset, the same for any number of ranks.

    Epochs follow each other without a gap; each is a permutation of all rows drawn from (seed,
    epoch). A step takes the next `global_batch_size` rows of that stream over all ranks, and rank r
    of n gets those at r, r + n, r + 2n, … of them, as micro-batches of `micro_batch_size` rows.
    `next()` returns this rank's micro-batches of one step.

    A row of one long document takes longer than a row of many short ones, and all ranks wait for
    the slowest. With `balanced_steps` above 1 the rows of that many steps are distributed over
    these steps again, so that rows of similar cost share a step.

    >>> batches = PackedBatches(
    ...     dataset, global_batch_size=32, data_parallel_rank=0, data_parallel_size=4, seed=1
    ... )
    >>> len(next(batches))  # micro-batches of this rank
    8
    """

    def __init__(
        self,
        dataset: PackedDataset,
        global_batch_size: int,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        seed: int = 0,
        micro_batch_size: int = 1,
        pad_to_multiple: int = 1,
        balanced_steps: int = 1,
    ) -> None:
        """Raises InputError for sizes that do not divide, and for values out of range.

        Args:
            dataset: Where the rows come from.
            global_batch_size: Rows of one step over all ranks.
            data_parallel_rank: Number of this rank among the data-parallel ones, from 0.
            data_parallel_size: Number of data-parallel ranks.
            seed: Of the order of the rows.
            micro_batch_size: Rows of one micro-batch.
            pad_to_multiple: What each document's tokens are padded to a multiple of.
            balanced_steps: Number of steps among which rows of similar cost are put together.
        """
        if (
            global_batch_size < 1
            or micro_batch_size < 1
            or global_batch_size % (data_parallel_size * micro_batch_size)
        ):
            rule = (
                f"must be a multiple of {data_parallel_size} ranks × {micro_batch_size} rows per "
                "micro-batch"
            )
            raise InputError("global_batch_size", global_batch_size, rule)
        if not 0 <= data_parallel_rank < data_parallel_size:
            raise InputError(
                "data_parallel_rank", data_parallel_rank, f"must be below {data_parallel_size}"
            )
        if balanced_steps < 1:
            raise InputError("balanced_steps", balanced_steps, "must be 1 or more")
        if seed < 0:
            raise InputError("seed", seed, "must be 0 or more")
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.data_parallel_rank, self.data_parallel_size = data_parallel_rank, data_parallel_size
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.pad_to_multiple = pad_to_multiple
        self.balanced_steps = balanced_steps
        self.step = 0
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __iter__(self) -> Iterator[list[DocumentBatch]]:
        return self

    def __next__(self) -> list[DocumentBatch]:
        rows = self.step_rows(self.step)[self.data_parallel_rank :: self.data_parallel_size]
        self.step += 1
        groups = [
            rows[i : i + self.micro_batch_size] for i in range(0, len(rows), self.micro_batch_size)
        ]
        return [self._batch(group) for group in groups]

    def step_rows(self, step: int) -> list[int]:
        """Returns the row numbers of one global step, over all ranks."""
        first = step * self.global_batch_size
        return [self._row_at(place) for place in range(first, first + self.global_batch_size)]

    @property
    def epoch(self) -> float:
        """Number of times that the dataset has been read so far, with its fraction."""
        return self.step * self.global_batch_size / self.dataset.num_rows

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to continue exactly here.

        The values are JSON, and equal on all ranks.
        """
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the step in `state`.

        Raises InputError where data, seed or batch size were others: the rows would be too.
        """
        if "rows_per_step" in state:  # in checkpoints written before it was renamed
            state = {**state, "global_batch_size": state["rows_per_step"]}
        for name, value in self._identity().items():
            if state.get(name, _BEFORE_IT_WAS_SAVED.get(name)) != value:
                raise InputError(
                    name, value, f"this run's data position was saved with {state.get(name)}"
                )
        self.step = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        checksum = self.dataset.manifest.bin_sha256
        return {
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "balanced_steps": self.balanced_steps,
            "dataset_sha256": checksum,
        }

    def _row_at(self, place: int) -> int:
        epoch, index = divmod(place, self.dataset.num_rows)
        if self._order[0] != epoch:
            self._order = (epoch, self._order_of(epoch))
        return int(self._order[1][index])

    def _order_of(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.dataset.num_rows)
        if self.balanced_steps == 1:
            return order
        # The first rows may belong to a step that the last epoch began; they stay where they are.
        begun = -epoch * self.dataset.num_rows % self.global_batch_size
        size = self.global_batch_size * self.balanced_steps
        for first in range(begun, len(order) - self.global_batch_size + 1, size):
            steps = min(self.balanced_steps, (len(order) - first) // self.global_batch_size)
            window = order[first : first + steps * self.global_batch_size]
            # Sorted by cost and cut into steps, in an order that is drawn: training must not go
            # from cheap rows to dear ones.
            alike = window[np.argsort([self._cost(row) for row in window], kind="stable")]
            window[:] = random.permutation(alike.reshape(steps, self.global_batch_size)).ravel()
        return order

    def _cost(self, row: int) -> int:
        """Returns what attention costs over a row; everything else costs the same in all rows."""
        return sum(len(piece) ** 2 for piece in self.dataset.row(row))

    def _batch(self, rows: Sequence[int]) -> DocumentBatch:
        pieces = [piece for row in rows for piece in self.dataset.row(row)]
        row_length = self.dataset.manifest.sequence_length
        return DocumentBatch.from_documents(
            pieces, self.pad_to_multiple, total=row_length * len(rows) if row_length else None
        )
