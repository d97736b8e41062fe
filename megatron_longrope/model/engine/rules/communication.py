"""Rules on how context parallelism may communicate."""

from __future__ import annotations

from megatron_longrope.model.engine.rules.rule import (
    Rule,
    communicates_by,
    cp_comm_type_of,
    is_older,
    uses_te,
)

COMMUNICATION: tuple[Rule, ...] = (
    Rule(
        setting="cp_comm_type",
        case="given without transformer-engine",
        why="it is Transformer Engine's; leave it at auto",
        refuses=lambda w, s: w.settings.cp_comm_type != "auto" and not uses_te(w),
        value=cp_comm_type_of,
    ),
    Rule(
        setting="cp_comm_type",
        case="given with context_parallel=1",
        why="there is nobody to communicate with; leave it at auto",
        refuses=lambda w, s: w.settings.cp_comm_type != "auto" and w.layout.context_parallel == 1,
        value=cp_comm_type_of,
    ),
    Rule(
        setting="context_exchange",
        case="given with transformer-engine",
        why="it is our own attention's; choose cp_comm_type instead",
        refuses=lambda w, s: w.layout.context_exchange != "auto" and uses_te(w),
        value=lambda w, s: w.layout.context_exchange,
    ),
    Rule(
        setting="context_parallel_a2a",
        case="above 1 without cp_comm_type=a2a+p2p",
        why="it is the size of that kind's inner groups",
        refuses=lambda w, s: (
            w.layout.context_parallel_a2a > 1 and w.settings.cp_comm_type != "a2a+p2p"
        ),
        value=lambda w, s: w.layout.context_parallel_a2a,
    ),
    Rule(
        setting="context_parallel_a2a",
        case="1 or context_parallel itself, with a2a+p2p",
        why="a2a+p2p has two levels; use p2p or a2a for one",
        source="TE:context_parallel.py:3993",
        refuses=lambda w, s: (
            communicates_by(w, "a2a+p2p")
            and w.layout.context_parallel_a2a in (1, w.layout.context_parallel)
        ),
        value=lambda w, s: w.layout.context_parallel_a2a,
    ),
    Rule(
        setting="cp_comm_type",
        case="a2a where K/V heads per tensor-parallel process are no multiple of context_parallel",
        why="all-to-all deals whole K/V heads out to the processes",
        source="TE:context_parallel.py:3366",
        refuses=lambda w, s: (
            communicates_by(w, "a2a") and w.kv_heads_per_rank % w.layout.context_parallel > 0
        ),
        value=cp_comm_type_of,
    ),
    Rule(
        setting="cp_comm_type",
        case=(
            "a2a+p2p where K/V heads per tensor-parallel process are no multiple of "
            "context_parallel_a2a"
        ),
        why="all-to-all deals whole K/V heads out to the inner group",
        source="TE:context_parallel.py:417",
        refuses=lambda w, s: (
            communicates_by(w, "a2a+p2p")
            and w.kv_heads_per_rank % w.layout.context_parallel_a2a > 0
        ),
        value=cp_comm_type_of,
    ),
    Rule(
        setting="cp_comm_type",
        case="all_gather or a2a+p2p with packed rows",
        why="takes one document per row: packed=false, p2p or a2a",
        source="TE:context_parallel.py:2842, :3990",
        refuses=lambda w, s: communicates_by(w, "all_gather", "a2a+p2p") and w.settings.packed,
        value=cp_comm_type_of,
    ),
    Rule(
        setting="cp_comm_type",
        case="a2a with packed rows under Transformer Engine 2.9",
        why="takes packed rows from version 2.10 on",
        source="TE 2.9:context_parallel.py:3193",
        refuses=lambda w, s: (
            communicates_by(w, "a2a")
            and w.settings.packed
            and is_older(s.transformer_engine, "2.10")
        ),
        value=cp_comm_type_of,
    ),
    Rule(
        setting="cp_comm_type",
        case="p2p or a2a+p2p with sliding-window attention",
        why="only all_gather and a2a know the window",
        source="TE:context_parallel.py:4026",
        refuses=lambda w, s: communicates_by(w, "p2p", "a2a+p2p") and w.sliding_window,
        value=cp_comm_type_of,
    ),
)
