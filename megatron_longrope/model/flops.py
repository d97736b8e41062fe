"""Floating-point operations of passes through a model, in closed form.

A product of a [m, k] with a [k, n] matrix counts 2·m·k·n. Only matrix products are counted, and of
attention's scores only those that the mask leaves. Of one layer, for L tokens, hidden size h, H
heads and K/V heads G of size d, MLP size f, and r keys that a query attends to on average:

    q, k, v          2·L·h·(H + 2G)·d       projection      2·L·H·d·h
    gated MLP        2·L·3·h·f              attention       4·L·H·d·r (half for q·kᵀ, half for p·v)

and the output layer of vocabulary V: 2·L·h·V. Embedding rows are looked up, not multiplied.

**Backward.** For y = x·W there are two products of the forward one's size: ∂x = ∂y·Wᵀ, and ∂W =
xᵀ·∂y where W is trained. Attention has five of them where forward it has two, hence 2.5 times: the
scores once more, ∂v, ∂p, ∂q, ∂k; all kernels make all of them. From the last layer ∂x is needed
down to the first thing that has a gradient. Where weights are trained that is the first layer,
whose q, k, v have their ∂x made too, whether the embedding is trained or not (megatron-core's
linear layers do not ask). Where only factors have gradients it is the first rotated q and k: q, k
and v of that layer need no ∂x, and layers before it no backward pass.

**Output layer.** Trained, its logits are computed once more in the backward pass: three products
besides the forward one. Frozen, ∂x is made in the forward pass, one product, and none follows
(layers/token_loss.py).

**Recomputation.** Selective: attention once more. Full: every layer once more, but not the output
layer. Either way the first layer's input has a gradient (gpt.py), so that every layer has all its
∂x.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from megatron_longrope.model.engine.settings import Recompute
    from megatron_longrope.model.shape import ModelShape

Trained = Literal["all", "attention", "factors"]
"""What a backward pass is for: all weights, those of attention, or none but the factors λ and t."""
_ATTENTION_BACKWARD = 2.5
"""Attention's backward pass over its forward pass: five products over two."""


class LayerFlops(NamedTuple):
    """Operations of one layer forward."""

    qkv: float
    """The products that make queries, keys and values."""
    attention: float
    """Scores, and the weighted sums of values."""
    projection: float
    """The product that attention's output goes through."""
    mlp: float


class PassFlops:
    """Operations of the passes over one text of `length` tokens.

    >>> flops = PassFlops(model.shape, 1024)
    >>> factors = flops.with_backward("factors", "none") / flops.forward
    >>> 2 < factors < flops.with_backward("all", "none") / flops.forward < 4.5
    True
    """

    def __init__(self, shape: ModelShape, length: int) -> None:
        self._shape, self._length = shape, length

    @cached_property
    def layers(self) -> list[LayerFlops]:
        """Operations of each layer forward; layers differ where their windows do."""
        shape, per_weight = self._shape, 2.0 * self._length
        hidden, of_heads = shape.hidden_size, shape.num_heads * shape.head_dim
        qkv = hidden * (of_heads + 2 * shape.num_kv_heads * shape.head_dim)
        return [
            LayerFlops(
                per_weight * qkv,
                2 * per_weight * of_heads * mean_reach(self._length, shape.window(layer)),
                per_weight * of_heads * hidden,
                per_weight * 3 * hidden * shape.ffn_hidden_size,
            )
            for layer in range(shape.num_layers)
        ]

    @property
    def output_layer(self) -> float:
        """Operations of the output layer forward."""
        return 2.0 * self._length * self._shape.hidden_size * self._shape.vocab_size

    @property
    def forward(self) -> float:
        """Operations of a forward pass without gradients."""
        return sum(map(sum, self.layers)) + self.output_layer

    def with_backward(self, trained: Trained, recompute: Recompute) -> float:
        """Returns the operations of a forward and a backward pass, recomputation included.

        See the top of the module for how they are derived.
        """
        input_has_gradient = trained != "factors" or recompute != "none"
        first = 0 if input_has_gradient else self._first_rotated
        total = self.forward + self.output_layer * (3 if trained == "all" else 1)
        for number, layer in enumerate(self.layers[first:], first):
            products = layer.projection + layer.mlp
            if input_has_gradient or number > first:
                products += layer.qkv
            if trained != "factors":
                products += layer.qkv + layer.projection
            if trained == "all":
                products += layer.mlp
            again = {"none": 0.0, "selective": layer.attention, "full": sum(layer)}[recompute]
            total += products + _ATTENTION_BACKWARD * layer.attention + again
        return total

    @property
    def _first_rotated(self) -> int:
        """The first layer, from 0, whose queries and keys depend on the factors."""
        unrotated = self._shape.rope_free_layers
        rotated = (i for i in range(self._shape.num_layers) if i not in unrotated)
        return next(rotated, self._shape.num_layers)


def mean_reach(length: int, window: int | None) -> float:
    """Returns how many keys a query attends to on average over `length` tokens, itself included.

    Query i (from 1 on) attends to min(i, window) keys.

    >>> mean_reach(4, None), mean_reach(4, 2)
    (2.5, 1.75)
    """
    reach = length if window is None else min(window, length)
    return reach - reach * (reach - 1) / (2 * length)
