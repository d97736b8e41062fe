"""Forward passes through megatron-core's schedules: micro-batches for training, document scores.

A batch is cut for context parallelism, goes through this process's chunks with its angles and
softmax scale, and the outputs of all shares are joined again on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.data.zigzag import context_share, whole_from_shares
from megatron_longrope.errors import InputError
from megatron_longrope.model.attention.context_exchange import choose_exchange
from megatron_longrope.model.attention.packed import LongRopePackedParams, packed_params
from megatron_longrope.model.gpt import OutputKind
from megatron_longrope.model.longrope_model import LongRopeModel
from megatron_longrope.model.schedule import filled_up, run_schedule

Tokens = NDArray[np.integer[Any]]
FILLER: Tokens = np.zeros(2, dtype=np.int64)
"""A document for passes that only fill up the schedule; their output is thrown away."""


@dataclass(frozen=True)
class DocumentScores:
    """What the model makes of one document: entry i concerns token i + 1 given tokens ≤ i."""

    nll: NDArray[np.float32]
    """Negative log-likelihood of each token in nats [tokens − 1]."""
    correct: NDArray[np.bool_]
    """Whether each token is the model's first choice [tokens − 1]; ties go to the lowest id."""


def share_of(model: LongRopeModel, batch: DocumentBatch) -> DocumentBatch:
    """Returns this context-parallel rank's share of a whole batch; one rank alone has it all."""
    group = model.runtime.groups.cp
    return context_share(batch, group.rank(), group.size())


def run_stage(model: LongRopeModel, stage: torch.nn.Module, batch: DocumentBatch) -> Tensor:
    """Returns the output of one chunk of the model for this rank's share of a micro-batch.

    `stage` is the chunk, bare or wrapped for data parallelism; `batch` comes from `share_of`. The
    factors in force apply. The last chunk returns what `set_output` chose, over the share's tokens;
    others return hidden states.
    """
    packed = packed_params(
        batch, model.factor_set, model.angle_precision, model.runtime.device, model.dtype
    )
    return forward_stage(model, stage, batch, packed)


def forward_stage(
    model: LongRopeModel, stage: torch.nn.Module, batch: DocumentBatch, packed: LongRopePackedParams
) -> Tensor:
    """Does what `run_stage` does, with the angles and softmax scale of `packed`."""
    size, device = model.runtime.groups.cp.size(), model.runtime.device
    assert batch.context_size == size, "a whole batch is cut by share_of(model, batch) first"
    model.backend.check_batch(batch)
    packed.context_exchange = choose_exchange(
        model.runtime.layout.context_exchange, batch.tokens.numel(), size
    )
    output: Tensor = stage(
        input_ids=batch.tokens[None].to(device),
        position_ids=batch.positions[None].to(device),
        attention_mask=None,
        labels=batch.labels[None].to(device),
        packed_seq_params=packed,
    )
    return output


def score_documents(
    model: LongRopeModel, documents: Sequence[Tokens], *, max_batch_tokens: int = 16384
) -> list[DocumentScores]:
    """Returns each document's scores, the same on every rank of the model-parallel group.

    Neighbouring documents that use the same factors share a forward pass, up to `max_batch_tokens`
    together; a longer document goes alone. Raises InputError for a document of fewer than two
    tokens, and for a token beyond the model's vocabulary.

    >>> scores = score_documents(model, documents)
    >>> [len(score.nll) - len(document) for score, document in zip(scores, documents)]
    [-1, -1]
    """
    for index, document in enumerate(documents):
        check_document(model, document, index)
    batches = share_passes(model, documents, max_batch_tokens)
    outputs = _forward_only(model, [to_batch(model, batch) for batch in batches], "scores")
    scores: list[DocumentScores] = []
    for batch, output in zip(batches, outputs, strict=True):
        scores += _split_scores(model, batch, output)
    return scores


def document_logits(model: LongRopeModel, document: Tokens) -> NDArray[np.float32]:
    """Returns logits [tokens, vocab_size] on every rank, for comparisons over short inputs.

    >>> document_logits(model, documents[0]).shape == (len(documents[0]), model.shape.vocab_size)
    True
    """
    check_document(model, document, 0)
    (output,) = _forward_only(model, [to_batch(model, [document])], "logits")
    return output[: len(document)].astype(np.float32)


def check_document(model: LongRopeModel, document: Tokens, index: int) -> None:
    """Raises InputError for a document too short to score, or with tokens the model lacks."""
    if len(document) < 2:
        raise InputError(
            f"documents[{index}]", f"{len(document)} tokens", "a document needs at least 2 tokens"
        )
    if int(document.max()) >= model.shape.vocab_size or int(document.min()) < 0:
        raise InputError(
            f"documents[{index}]",
            f"token {int(document.max())}",
            f"the model's vocabulary has {model.shape.vocab_size} entries: wrong tokenizer?",
        )


def share_passes(
    model: LongRopeModel, documents: Sequence[Tokens], max_tokens: int
) -> list[list[Tokens]]:
    """Returns the documents grouped by forward pass.

    A group holds neighbours that use the same factors, up to `max_tokens` together or one document.
    """
    batches: list[list[Tokens]] = []
    room, serving = 0, None
    for document in documents:
        factors = model.factor_set.for_length(len(document))
        if factors is not serving or len(document) > room:
            batches.append([])
            room, serving = max_tokens, factors
        batches[-1].append(document)
        room -= len(document)
    return batches


def to_batch(model: LongRopeModel, documents: Sequence[Tokens]) -> DocumentBatch:
    """Returns the documents as one batch, padded for the layout and the engine.

    Each document is padded to a multiple of what context and sequence parallelism cut it into. The
    whole batch is padded to a multiple of what FP8 needs: a single document by itself, so that it
    stays the only one; after several a masked document follows.
    """
    layout, multiple = model.runtime.layout.sequence_divisor, model.backend.token_multiple
    if len(documents) == 1 or multiple == 1:
        return DocumentBatch.from_documents(documents, pad_to_multiple=math.lcm(layout, multiple))
    padded = sum(-(-len(document) // layout) * layout for document in documents)
    return DocumentBatch.from_documents(
        documents, pad_to_multiple=layout, total=model.backend.padded_total(padded)
    )


@torch.no_grad()
def _forward_only(
    model: LongRopeModel, batches: Sequence[DocumentBatch], kind: OutputKind
) -> list[NDArray[np.floating[Any]]]:
    """Returns the last stage's output for each batch, on every pipeline stage."""
    passes = filled_up(model, batches, lambda: to_batch(model, [FILLER]))
    with model.running(training=False, output=kind):
        outputs = run_schedule(model, _scoring_step(model), passes, forward_only=True)
    return from_last_stage(model, outputs)[: len(batches)]


def _scoring_step(model: LongRopeModel) -> Callable[..., tuple[Tensor, Callable[..., Any]]]:
    """Returns the step that makes the whole batch's output, as a numpy array on the CPU.

    In forward-only runs megatron-core calls the returned function with `non_loss_data=True` and
    keeps any value it returns.
    """

    def step(
        batches: Iterator[DocumentBatch], stage: torch.nn.Module
    ) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(batches)
        output = run_stage(model, stage, share_of(model, batch))
        dim = 0 if model.output_kind == "logits" else -1
        return (
            output,
            lambda result, non_loss_data: (
                whole_output(model, batch, result.float(), dim).cpu().numpy()
            ),
        )

    return step


def whole_output(model: LongRopeModel, batch: DocumentBatch, share: Tensor, dim: int) -> Tensor:
    """Returns the output over the whole batch on every context-parallel rank.

    `share` is this rank's part of it, and `dim` the dimension of the tokens.
    """
    group = model.runtime.groups.cp
    if group.size() == 1:
        return share
    shares = [torch.empty_like(share) for _ in range(group.size())]
    dist.all_gather(shares, share.contiguous(), group=group)
    return whole_from_shares(shares, batch.cu_seqlens, dim)


def from_last_stage(model: LongRopeModel, outputs: list[Any]) -> list[NDArray[np.floating[Any]]]:
    """Returns the last pipeline stage's outputs on every stage."""
    group = model.runtime.groups.pp
    if group.size() == 1:
        return outputs
    box = [outputs]
    dist.broadcast_object_list(box, src=dist.get_process_group_ranks(group)[-1], group=group)
    return box[0]


def _split_scores(
    model: LongRopeModel, documents: Sequence[Tokens], output: NDArray[np.floating[Any]]
) -> list[DocumentScores]:
    nats = split_by_document(model, documents, output[0])
    hits = split_by_document(model, documents, output[1])
    return [DocumentScores(a.astype(np.float32), b > 0.5) for a, b in zip(nats, hits, strict=True)]


def split_by_document(
    model: LongRopeModel, documents: Sequence[Tokens], output: NDArray[np.floating[Any]]
) -> list[NDArray[np.floating[Any]]]:
    """Returns one pass's output [total] cut into its documents, each [tokens − 1].

    Padding and each document's last position have no label and are left out.
    """
    divisor = model.runtime.layout.sequence_divisor
    parts, start = [], 0
    for document in documents:
        parts.append(output[start : start + len(document) - 1])
        start += -(-len(document) // divisor) * divisor
    return parts
