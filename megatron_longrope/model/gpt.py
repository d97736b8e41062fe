"""The GPT of megatron-core without rotary tables of its own, and a loss without whole logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_longrope.model.attention.packed import NoRotary
from megatron_longrope.model.layers.token_loss import (
    chunked_token_losses,
    full_logits,
    scored_tokens,
)

OutputKind = Literal["losses", "scores", "logits"]


class LongRopeGPT(GPTModel):
    """One chunk of a model: a pipeline stage, or one of the parts of an interleaved stage.

    The last chunk returns, by `output_kind`:

    - `losses`: nats per token [total], differentiable;
    - `scores`: nats, and whether the label is the arg-max, [2, total];
    - `logits`: whole logits [total, vocab_size], for comparisons over short inputs.
    """

    output_kind: OutputKind = "losses"

    def __init__(self, *args: Any, real_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocab_size = real_vocab_size
        self.rotary_pos_emb = NoRotary()

    def global_name(self, parameter: str) -> str:
        """Returns the name that a parameter of this chunk has in a model of one chunk."""
        parts = parameter.split(".")
        if parts[:2] == ["decoder", "layers"]:
            parts[2] = str(self.decoder.layers[int(parts[2])].layer_number - 1)
        return ".".join(parts)

    def _preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Called by GPTModel.forward. Returns the decoder's input [seq share, 1, hidden_size]
        (None where it comes from the pipeline stage before) and what goes with it.

        Recomputation in megatron-core and in Transformer Engine is reentrant: a layer of which no
        input requires a gradient gets no backward pass, and its weights and angles no gradient.
        Where the embedding is frozen its output has to require one itself. Input from another
        stage does already.
        """
        decoder_input, *others = super()._preprocess(*args, **kwargs)
        is_recomputed = self.training and self.config.recompute_granularity is not None
        if (
            is_recomputed
            and decoder_input is not None
            and torch.is_grad_enabled()
            and not decoder_input.requires_grad
        ):
            decoder_input = decoder_input.detach().requires_grad_()
        return decoder_input, *others

    def _postprocess(
        self, hidden_states: Tensor, *_: Any, labels: Tensor | None = None, **__: Any
    ) -> Tensor:
        """Returns what `output_kind` says; GPTModel.forward calls it after the decoder.

        `hidden_states` is [seq share, 1, hidden_size]. megatron-core would compute whole logits
        here, in float32 [seq, vocab_size].
        """
        if not self.post_process:
            return hidden_states
        assert labels is not None
        group = self.pg_collection.tp
        # The loss gives each tensor-parallel rank its part of the gradient of `hidden`. Backward,
        # the gather reduce-scatters these parts, and the copy all-reduces them.
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden_states, group=group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden_states, group=group)
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        hidden, vocab = hidden[:, 0], self.real_vocab_size
        if self.output_kind == "losses":
            return chunked_token_losses(hidden, weight, labels[0], vocab_size=vocab, group=group)
        if self.output_kind == "scores":
            return scored_tokens(hidden, weight, labels[0], vocab_size=vocab, group=group)
        return full_logits(hidden, weight, vocab_size=vocab, group=group)
