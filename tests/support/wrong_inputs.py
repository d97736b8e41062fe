"""Recipes and commands that are wrong, each in one way, for a tiny model and its documents."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope.config import apply_settings, write_yaml
from tests.support.tiny_run import TARGET, TUNED, WINDOW, make_model, make_texts, recipe_values

_TUNE = "extension.0.fine_tune"
_HYBRID = {"name": "hybrid"}
_RECOVERY = {"length": 64, "search": {"attention_factor": "inherited"}}
Settings = dict[str, Any]
Cases = dict[str, tuple[Settings, str]]

LENGTHS: Cases = {
    "target-inside-window": ({"extension.0.length": 64}, "extension.0.length=64: a target must"),
    "steps-descend": ({"extension.1.length": 200}, "extension lengths must ascend"),
    "recovery-at-tuned": ({"recovery.0.length": TUNED}, "recovery.0.length=256: a recovery is for"),
    "recovery-above-tuned": ({"recovery.0.length": TARGET}, "recovery.0.length=512"),
    "recovery-twice": ({"recovery": [_RECOVERY, _RECOVERY]}, "recovery.1.length=64: recoveries"),
    "recovery-descends": (
        {"recovery": [{**_RECOVERY, "length": 96}, _RECOVERY]},
        "recovery.1.length=64: recoveries ascend",
    ),
    "target-not-measured": ({"evaluation.lengths": [32, TUNED]}, "the target length 512 must be"),
    "nothing-measured": ({"evaluation.lengths": []}, "evaluation.lengths=none"),
    "measured-beyond-target": ({"evaluation.lengths": [TARGET, "1k"]}, "evaluation.lengths=1k"),
    "measured-twice": ({"evaluation.lengths": [TARGET, TARGET]}, "512: is given twice"),
    "measured-at-one-token": ({"evaluation.lengths": [1, TARGET]}, "needs 2 tokens or more"),
    "stride-of-a-window": ({"evaluation.sliding_stride": WINDOW}, "evaluation.sliding_stride=128"),
    "mixture-of-its-length": ({"recovery.0.search.mixture": {WINDOW: 1.0}}, "weight 1 already"),
    "upper-below-one": ({"recovery.0.upper": 0.5}, "recovery.0.upper=0.5: must be 1 or more"),
}
TASKS: Cases = {
    "passkey-too-short": (
        {"evaluation.tasks.passkey.lengths": [8]},
        "evaluation.tasks.passkey.length=8: too short for a passkey",
    ),
    "passkey-beyond-target": (
        {"evaluation.tasks.passkey.lengths": ["2k"]},
        "evaluation.tasks.passkey.lengths=2k: must not exceed the target",
    ),
    "passkey-twice": ({"evaluation.tasks.passkey.lengths": [TUNED, TUNED]}, "is given twice"),
    "too-many-questions": (
        {"evaluation.tasks": {"key-value": {"questions": 60, "lengths": [TARGET]}}},
        "evaluation.tasks.key-value.length=512: too short for 60 questions",
    ),
    "no-such-task": ({"evaluation.tasks": {"needle": {}}}, "needle"),
    "method-twice": (
        {"evaluation.second_interpolations": ["yarn", "yarn"]},
        "evaluation.second_interpolations=yarn: is given twice",
    ),
}
TRAINING: Cases = {
    "rows-longer-than-step": ({f"{_TUNE}.data.sequence_length": TARGET}, "sequence_length=512"),
    "rows-shorter-than-step": (
        {
            f"{_TUNE}.data.sequence_length": 128,
            f"{_TUNE}.data.retrieval.max_length": 128,
        },
        "sequence_length=128: the longest piece",
    ),
    "piece-longer-than-row": ({f"{_TUNE}.data.piece_length": TARGET}, "piece_length=512: must not"),
    "key-beyond-row": ({f"{_TUNE}.data.retrieval.max_length": TARGET}, "max_length=512: must not"),
    "key-too-short": (
        {f"{_TUNE}.data.retrieval.min_length": 20},
        f"{_TUNE}.data.retrieval.min_length=20: too short for a passkey",
    ),
    "all-warm-up": ({f"{_TUNE}.training.warmup_steps": 4}, "must be below steps=4"),
    "rate-rises": ({f"{_TUNE}.training.final_learning_rate": 1.0}, "must not exceed learning_rate"),
    "micro-batches": ({f"{_TUNE}.training.micro_batch_size": 4}, "global_batch_size=2: must be"),
    "too-little-text": (
        {f"{_TUNE}.training.global_batch_size": 512},
        f"{_TUNE}.training.global_batch_size=512: one step takes 131,072 tokens",
    ),
    "two-controls": (
        {"extension.1.fine_tune": {"control": True}},
        "extension.1.fine_tune.training=",
    ),
}
SEARCHES: Cases = {
    "more-windows-than-text": (
        {"extension.0.search.windows_per_document": 99},
        "extension.0.search=",
    ),
    "mixture-beyond-text": ({"extension.0.search.mixture": {"64k": 1.0}}, "65,536 of each"),
    "key-in-a-short-search": (
        {"recovery.0.length": 8, "recovery.0.search.retrieval_documents": 1},
        "recovery.0.search.retrieval_documents.length=8: too short",
    ),
    "no-such-searcher": ({"extension.0.search.searcher": "annealing"}, "annealing"),
    "gradients-of-hf-angles": (
        {"angle_precision": "hf", "extension.0.search.searcher": _HYBRID},
        "angle_precision: hf has no gradients",
    ),
    "ladder-too-long": (
        {"extension.0.search.early_stopping": {"ladder": [TUNED]}},
        "extension.0.search.early_stopping.ladder",
    ),
    "critical-pair": (
        {"extension.0.search.space": "longrope2", "extension.0.search.critical_pair": 99},
        "extension.0.search.critical_pair=99: lies between",
    ),
    "nothing-to-inherit": (
        {"extension.0.search.attention_factor": "inherited"},
        "nothing is fine-tuned yet",
    ),
    "start-tokens-exported": (
        {"extension.1.search.search_start_tokens": True},
        "extension.1.search.search_start_tokens=true: Hugging Face's format has no n̂",
    ),
}
MACHINE: Cases = {
    "heads-not-divided": ({"parallel.tensor_parallel": 3}, "tensor_parallel"),
    "no-such-engine-here": ({"backend.engine": "transformer-engine"}, "engine"),
    "fp8-on-a-cpu": ({"backend.fp8": "delayed"}, "fp8"),
    "one-document-per-row": ({"backend.packed": False}, "backend.packed=false"),
    "offload-of-nothing": ({"offload": True}, "recompute=full"),
    "no-such-dtype": ({"dtype": "float16"}, "dtype=float16"),
    "unknown-key": ({"evaluation.lenghts": [TARGET]}, "evaluation.lenghts"),
}
DOCUMENTS: Cases = {
    "no-model": ({"model": "{folder}/gone"}, "gone: no such folder"),
    "no-tokenizer": ({"model": "{folder}/without-tokenizer"}, "no tokenizer.json there"),
    "unknown-family": ({"model": "{folder}/gpt"}, "gpt_neox"),
    "no-text": ({"corpus.documents": ["{folder}/gone.txt"]}, "corpus.documents={folder}/gone.txt"),
    "not-utf-8": ({"corpus.documents": ["{folder}/latin.txt"]}, "not UTF-8"),
    "too-few-texts": ({"corpus.num_search": 11}, "corpus.documents=12 of 12: reach 512 tokens"),
    "searched-and-measured": (
        {
            "corpus": {
                "train": ["{folder}/texts/text-0.txt"],
                "search": ["{folder}/texts/text-1.txt", "{folder}/texts/text-2.txt"],
                "evaluation": ["{folder}/texts/text-2.txt"],
            }
        },
        "text-2.txt: holds the same text as",
    ),
    "trained-and-measured": (
        {
            "corpus": {
                "train": ["{folder}/texts/text-0.txt", "{folder}/texts/text-2.txt"],
                "search": ["{folder}/texts/text-1.txt"],
                "evaluation": ["{folder}/texts/text-2.txt"],
            }
        },
        "corpus.train={folder}/texts/text-2.txt: holds the same text",
    ),
}
RECIPES: Cases = {**LENGTHS, **TASKS, **TRAINING, **SEARCHES, **MACHINE, **DOCUMENTS}
"""Settings that make the tiny recipe wrong, and what the error says."""

_FITTED = ("extend", "--model", "{folder}/model", "--text", "{folder}/texts", "--target", "512")
_SMALL = ("--set", "corpus.num_search=3", "--set", "corpus.num_evaluation=2")
_SEARCH = ("search", "--model", "{folder}/model", "--text", "{folder}/texts", "--out", "out")
_PPL = ("eval", "ppl", "--model", "{folder}/model", "--text", "{folder}/texts")
_KEYS = ("eval", "passkey", "--model", "{folder}/model")
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "recipe-and-model": (("extend", "demo", "--model", "x"), "give either RECIPE"),
    "target-inside-the-window": ((*_FITTED[:-1], "128"), "--target=128: must exceed the 128"),
    "target-is-no-length": ((*_FITTED[:-1], "soon"), "--target=soon"),
    "texts-too-short": ((*_FITTED[:-1], "64k", *_SMALL), "--text=0 of 12: reach 64k tokens"),
    "no-such-text": ((*_FITTED[:4], "gone/*.txt", *_FITTED[5:]), "--text=gone/*.txt"),
    "no-such-model": (("extend", "--model", "gone", *_FITTED[3:]), "gone"),
    "set-fewer-steps": (
        (*_FITTED, *_SMALL, "--set", f"{_TUNE}.training.steps=10"),
        f"--set {_TUNE}.training.steps=10: warmup_steps=20 must be below steps=10",
    ),
    "set-an-unknown-key": ((*_FITTED, "--set", "sede=1"), "--set sede=1: unknown key"),
    "set-a-step-that-is-not": ((*_FITTED, "--set", "extension.7.length=4k"), "extension.7.length"),
    "set-without-value": ((*_FITTED, "--set", "seed"), "--set=seed"),
    "set-two-that-disagree": (
        ("extend", "{folder}/recipe.yaml", "--set", "offload=true"),
        "--set=offload=true: offload moves",
    ),
    "fitted-and-too-little-text": (
        (*_FITTED, *_SMALL, "--set", f"{_TUNE}.training.global_batch_size=999"),
        f"--set {_TUNE}.training.global_batch_size=999: one step takes",
    ),
    "run-directory-is-a-file": (
        ("extend", "{folder}/recipe.yaml", "--run-dir", "{folder}/recipe.yaml"),
        "--run-dir={folder}/recipe.yaml",
    ),
    "run-of-another-model": (
        ("extend", "{folder}/recipe.yaml", "--run-dir", "{folder}/begun"),
        "stage import=model: this input changed",
    ),
    "damaged-marker": (
        ("extend", "{folder}/recipe.yaml", "--run-dir", "{folder}/damaged"),
        "damaged marker",
    ),
    "no-such-stage": (("extend", "{folder}/recipe.yaml", "--stage", "tune"), "stage=tune: one of"),
    "stage-too-early": (
        ("extend", "{folder}/recipe.yaml", "--stage", "evaluate"),
        "stage=import: not complete",
    ),
    "no-folder-for-json": (
        ("extend", "demo", "--json", "gone/x.json"),
        "its folder does not exist",
    ),
    "search-inside-window": ((*_SEARCH, "--target", "128"), "--target=128"),
    "search-beyond-the-texts": ((*_SEARCH, "--target", "64k"), "fewer than the length 64k"),
    "search-held-out-too": (
        (*_SEARCH, "--target", "512", "--held-out", "{folder}/texts"),
        "--held-out={folder}/texts/text-0.txt",
    ),
    "search-without-texts": (
        (*_SEARCH[:4], "gone", *_SEARCH[5:], "--target", "512"),
        "--text=gone: no such file",
    ),
    "search-critical-pair-of-no-space": (
        (*_SEARCH, "--target", "130", "--retrieval-documents", "1", "--critical-pair", "3"),
        "--critical-pair=3",
    ),
    "eval-at-a-length-twice": ((*_PPL, "--lengths", "64,64"), "--lengths=64,64"),
    "eval-beyond-the-texts": ((*_PPL, "--lengths", "64k"), "fewer than the length 64k"),
    "eval-no-such-method": ((*_PPL, "--lengths", "64", "--method", "yarm"), "yarm"),
    "eval-a-key-too-short": ((*_KEYS, "--lengths", "8"), "too short for a passkey"),
    "train-without-texts": (("train", "{folder}/train.yaml"), "documents=gone.txt: no such file"),
    "train-rows-too-short": (
        (
            *("train", "{folder}/train.yaml"),
            *("--set", "data.piece_length=512", "--set", "documents=[{folder}/texts/text-0.txt]"),
        ),
        "--set data.piece_length=512: must not exceed sequence_length",
    ),
}
"""Arguments of wrong commands, and what the error says."""


@dataclass(frozen=True)
class WrongInput:
    """One command that must be refused."""

    name: str
    arguments: tuple[str, ...]
    said: str
    """A part of the one line that it is answered with."""


def names() -> list[str]:
    """Returns the names of all cases."""
    return [*RECIPES, *COMMANDS]


def write_inputs(folder: Path) -> None:
    """Writes to `folder` the model, the documents and the files that all cases name."""
    texts = make_texts(folder / "texts")
    model = make_model(folder / "model", texts)
    write_yaml(recipe_values(model, texts), folder / "recipe.yaml")
    shutil.copytree(model, folder / "without-tokenizer")
    (folder / "without-tokenizer" / "tokenizer.json").unlink()
    shutil.copytree(model, folder / "gpt")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    other = json.dumps({**config, "model_type": "gpt_neox"})
    (folder / "gpt" / "config.json").write_text(other, encoding="utf-8")
    (folder / "latin.txt").write_bytes("größer".encode("latin-1"))
    training = {"steps": 4, "global_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    train = {
        "name": "tiny-training",
        "model": str(model),
        "documents": ["gone.txt"],
        "data": {"sequence_length": WINDOW},
        "training": training,
    }
    write_yaml(train, folder / "train.yaml")
    for name, marker in (
        ("begun", '{"status": "done", "inputs": {"model": "another"}, "seconds": 1.0}'),
        ("damaged", '{"status": "do'),
    ):
        (folder / name / "stages").mkdir(parents=True)
        (folder / name / "stages" / "import.json").write_text(marker, encoding="utf-8")
        (folder / name / "config.yaml").write_text("name: before\n", encoding="utf-8")
    (folder / "wrong").mkdir()
    values = recipe_values(model, texts)
    for name, (settings, _) in RECIPES.items():
        here = _filled(settings, folder)
        write_yaml(apply_settings(values, here.items()), folder / "wrong" / f"{name}.yaml")


def wrong_input(name: str, folder: Path) -> WrongInput:
    """Returns a case by name, for the files that `write_inputs` left in `folder`."""
    if name in RECIPES:
        arguments: tuple[str, ...] = ("extend", str(folder / "wrong" / f"{name}.yaml"))
        said = RECIPES[name][1]
    else:
        arguments, said = COMMANDS[name]
    return WrongInput(name, tuple(_filled(arguments, folder)), _filled(said, folder))


def _filled(value: Any, folder: Path) -> Any:
    """Returns `value` with the folder put into every text in it."""
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, dict):
        return {key: _filled(each, folder) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, folder) for each in value]
    return value
