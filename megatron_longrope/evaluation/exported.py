"""Reads an exported Hugging Face folder through transformers alone, as its users will.

Nothing of this project's model takes part: no megatron-core, no rotary code, no factor sets. What
is measured here is therefore what the folder says, with whatever its format could not carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from megatron_longrope.data.passkey import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.documents import Tokens
from megatron_longrope.evaluation.spread import spread
from megatron_longrope.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_TOKENS = 1024
"""Tokens whose logits are held at once: whole logits of long documents exceed a GPU's memory."""


def load_exported(folder: Path, runtime: Runtime, dtype: torch.dtype) -> ExportedModel:
    """Returns the model in an exported folder, as `AutoModelForCausalLM` loads it.

    Every rank loads the whole model. Code in the folder is never run. Raises InputError where
    transformers is missing or does not take the folder.
    """
    transformers = require_transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError, OSError) as error:
        rule = f"transformers {transformers.__version__} does not load it: {_first_line(error)}"
        raise InputError("export", folder, rule) from error
    # The folder's own generation settings, such as penalties, would measure something else; passing
    # others to `generate` is not enough, as it fills in from these.
    model.generation_config = transformers.GenerationConfig()
    return ExportedModel(model.to(runtime.device).eval(), runtime)


def require_transformers() -> Any:
    """Returns the transformers package; raises InputError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        rule = (
            "measures the exported folder with transformers, which is not installed: "
            "pip install transformers, or set it to null"
        )
        raise InputError("evaluation.exported", "given", rule) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


class ExportedModel:
    """A model of transformers that documents are read with, one at a time.

    Documents are spread over the data-parallel groups; every rank returns the same.
    """

    def __init__(self, model: PreTrainedModel, runtime: Runtime) -> None:
        self._model, self._runtime = model, runtime

    def token_losses(self, documents: Sequence[Tokens]) -> list[NDArray[np.float64]]:
        """Returns the nats [tokens − 1] of each document's predictions; entry i is of token i + 1.

        A document is read in one pass from its first token, so transformers takes the factors that
        its own rule chooses for that length.
        """
        return spread(self._runtime, list(documents), self._losses)

    def answers_retrieved(self, documents: Sequence[PasskeyDocument]) -> NDArray[np.bool_]:
        """Returns booleans [documents]: whether greedy generation gives each answer exactly."""
        found = spread(self._runtime, list(documents), self._generates_answer)
        return np.array(found, dtype=np.bool_)

    @torch.inference_mode()
    def _losses(self, document: Tokens) -> NDArray[np.float64]:
        ids = self._ids(document)
        hidden = self._model.base_model(ids[None], use_cache=False).last_hidden_state[0, :-1]
        targets = ids[1:]
        head = self._model.get_output_embeddings()
        losses = [
            cross_entropy(head(part).float(), wanted, reduction="none")
            for part, wanted in zip(
                hidden.split(_CHUNK_TOKENS), targets.split(_CHUNK_TOKENS), strict=True
            )
        ]
        return torch.cat(losses).double().cpu().numpy()

    @torch.inference_mode()
    def _generates_answer(self, document: PasskeyDocument) -> bool:
        prompt = self._ids(document.tokens[: document.answer_start])
        answer = self._ids(document.tokens[document.answer_start :])
        generated = self._model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=len(answer),
            do_sample=False,
            pad_token_id=0,  # never used: there is one prompt, and it is not padded
        )
        return bool(torch.equal(generated[0, len(prompt) :], answer))

    def _ids(self, tokens: Tokens) -> Tensor:
        return torch.as_tensor(np.asarray(tokens), dtype=torch.long, device=self._runtime.device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
