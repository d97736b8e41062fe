"""Interleaved pipeline stages: checkpoints without a trace of them, resumes to the bit, weights
from Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from checkpoints_tools.load_any import load_model
from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.data.manifest import TokenizerIdentity
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.checkpoints.checkpoint import load_weights, save_checkpoint
from megatron_longrope.runtime import ParallelLayout, Runtime, start_runtime
from megatron_longrope.runtime.runtime import divide_processes
from megatron_longrope.training import Trainer, TrainingConfig, resume_training, save_training
from tests.support.formats.hf_folders import SHAPE, random_hf_folder
from tests.support.one_world import joined_processes
from tests.support.spawn import run_distributed
from tests.support.tiny_models import HfWeights, our_model, random_documents, tiny_hf_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

PLAIN = ParallelLayout(pipeline_parallel=2)
INTERLEAVED = ParallelLayout(pipeline_parallel=2, virtual_pipeline=2)
CONFIG = TrainingConfig(steps=4, global_batch_size=4, learning_rate=1e-2, warmup_steps=1)
Weights = dict[str, torch.Tensor]


class Seen(NamedTuple):
    """What one of two ranks saw."""

    losses: list[float]
    """Of four undisturbed steps."""
    resumed: dict[str, list[float]]
    """Of the last two after a resume, by the layouts that saved and that went on."""
    loaded: dict[str, Weights]
    """This rank's weights after loading, by what was loaded and the layout."""
    final: dict[str, Weights]
    """This rank's weights after the last step."""
    refusal: str


def weights_of(model: LongRopeModel) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trainer(
    runtime: Runtime, weights: HfWeights, dataset: Path, config: TrainingConfig = CONFIG
) -> Trainer:
    batches = PackedBatches(PackedDataset(dataset), config.global_batch_size, seed=3)
    return Trainer(our_model(weights, runtime), batches, config)


def train_save_and_resume(weights: HfWeights, folder: Path) -> Seen:
    """Runs on each of two ranks: training with interleaved stages and without, each resumed by
    either."""
    resumed, loaded, final, losses, refusal = {}, {}, {}, {}, ""
    with joined_processes() as store:
        for name, layout in (("plain", PLAIN), ("interleaved", INTERLEAVED)):
            with divide_processes(layout, torch.device("cpu"), store) as runtime:
                whole = trainer(runtime, weights, folder / "train")
                losses[name] = [whole.step().loss, whole.step().loss]
                save_training(whole, folder / name)
                losses[name] += [whole.step().loss, whole.step().loss]
                final[name] = weights_of(whole.model)
        for name, layout in (("plain", PLAIN), ("interleaved", INTERLEAVED)):
            with divide_processes(layout, torch.device("cpu"), store) as runtime:
                for source in ("plain", "interleaved"):
                    again = trainer(runtime, weights, folder / "train")
                    assert resume_training(again, folder / source)
                    loaded[f"{source} to {name}"] = weights_of(again.model)
                    resumed[f"{source} to {name}"] = [again.step().loss, again.step().loss]
                    final[f"{source} to {name}"] = weights_of(again.model)
                one = our_model(weights, runtime)
                load_weights(one, folder / "one")
                loaded[f"one to {name}"] = weights_of(one)
                loaded[f"hf to {name}"] = weights_of(load_model(folder / "hf", runtime).model)
                if layout.is_interleaved:
                    refusal = refusal_of_three_rows(runtime, weights, folder / "train")
    return Seen(losses["interleaved"], resumed, loaded, final, refusal)


def refusal_of_three_rows(runtime: Runtime, weights: HfWeights, dataset: Path) -> str:
    with pytest.raises(InputError) as caught:
        trainer(runtime, weights, dataset, CONFIG.model_copy(update={"global_batch_size": 3}))
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a checkpoint written by one process, and a Hugging Face folder."""
    path = tmp_path_factory.mktemp("interleaved")
    documents = [
        TokenDocument.generated(str(i), d)
        for i, d in enumerate(random_documents(40, 24, 64, 10, 54, 30, 34))
    ]
    write_packed(
        path / "train",
        documents,
        64,
        TokenizerIdentity(name="none", sha256="0" * 64),
        SHAPE.vocab_size,
    )
    random_hf_folder(
        path / "hf", SHAPE.model_copy(update={"num_layers": 4, "tie_embeddings": False})
    )
    return path


def test_checkpoints_know_nothing_of_interleaving_and_resume_to_the_bit(folder: Path) -> None:
    weights = HfWeights.of(tiny_hf_model(num_hidden_layers=4))
    with start_runtime(threads=1) as runtime:
        save_checkpoint(
            our_model(tiny_hf_model(seed=9, num_hidden_layers=4), runtime), folder / "one"
        )
    ranks = run_distributed(2, train_save_and_resume, weights, folder)
    with start_runtime(threads=1) as runtime:
        alone = {"hf": weights_of(load_model(folder / "hf", runtime).model)}
        for name in ("plain", "interleaved", "one"):
            model = our_model(weights, runtime)
            load_weights(model, folder / name)
            alone[name] = weights_of(model)
        trained = trainer(runtime, weights, folder / "train")
        expected = [trained.step().loss for _ in range(4)]
    for seen in ranks:
        np.testing.assert_allclose(seen.losses, expected, rtol=2e-6)
        assert "global_batch_size=3" in seen.refusal and "virtual_pipeline=2" in seen.refusal
        for case, losses in seen.resumed.items():
            np.testing.assert_allclose(losses, expected[2:], rtol=2e-6, err_msg=case)
        assert seen.resumed["interleaved to interleaved"] == seen.losses[2:]
        assert_equal(seen.final["interleaved to interleaved"], seen.final["interleaved"])
        assert_equal(seen.final["plain to plain"], seen.final["plain"])
    for case in ranks[0].loaded:
        source, layout = case.split(" to ")
        held = [set(seen.loaded[case]) - {"output_layer.weight"} for seen in ranks]
        assert not held[0] & held[1], case
        assert held[0] | held[1] == set(alone[source]) - {"output_layer.weight"}, case
        layers = {name.split(".")[2] for name in held[0] if "layers" in name}
        assert layers == ({"0", "1"} if layout == "plain" else {"0", "2"})
        for seen in ranks:
            for name, weight in seen.loaded[case].items():
                whole = alone[source].get(name, alone[source]["embedding.word_embeddings.weight"])
                assert torch.equal(weight, whole), (case, name)


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
