"""The common suite of language's algorithms: each trains, writes what belongs into its folder, and goes on exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proximo import language
from proximo.algorithms.language import LANGUAGE
from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.models.language.hub import causal_model
from proximo.models.language.policy import LanguagePolicy
from proximo.run.checkpoint import all_of
from proximo.run.language.build import LanguageTrain
from tests.conftest import rest_slow
from tests.language.conftest import Train, letters, online
from tests.test_resume import without_times

pytestmark = pytest.mark.usefixtures("quick")
Finished = Callable[[str], LanguageTrain]
every = pytest.mark.parametrize("algo", LANGUAGE)
FILES = ("model.safetensors", "state.safetensors")
LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "drift.jsonl")


def cut(run: Path, kept: int) -> None:
    """Take away all checkpoints but the first ones, as if the run had been killed before the others."""
    for late in all_of(run)[kept:]:
        shutil.rmtree(late)


def assert_same_run(one: Path, other: Path) -> None:
    """The same checkpoints and logs, byte for byte, clocks aside."""
    pairs = list(zip(all_of(one), all_of(other), strict=True))
    assert [here.name for here, _ in pairs] == [there.name for _, there in pairs]
    for here, there in pairs:
        for file in FILES:
            assert (here / file).read_bytes() == (there / file).read_bytes(), f"{here.name}/{file}"
    for log in LOGS:
        assert (one / log).exists() == (other / log).exists()
        if (one / log).exists():
            assert without_times(one / log) == without_times(other / log), log


def resumed(run: Path, **more: Any) -> LanguageTrain:
    own = dict(reward=letters) if "reward" in json.loads((run / "config.json").read_text())["yours"] else {}
    return language.resume(run, quiet=True, **own, **more)


@every
def test_the_folder_is_complete(algo: str, finished: Finished) -> None:
    run = finished(algo)
    assert (run.step, run.update, run.finished) == (6, 6, True)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["tokens"] > rows[0]["tokens"] > 0
    assert all(isinstance(row["loss"], float) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)  # where nothing scored and nothing moved yet, there is none
    evaluations = [json.loads(line) for line in (run.folder / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert all(len(row["returns"]) == 6 for row in evaluations)
    assert [path.name for path in all_of(run.folder)] == [f"{step:012d}" for step in (0, 2, 4, 6)]
    assert json.loads((run.folder / "config.json").read_text())["algo"] == algo


@every
def test_transformers_loads_the_model(algo: str, finished: Finished) -> None:
    run = finished(algo)
    found = AutoModelForCausalLM.from_pretrained(run.folder / "model").eval()
    ids = AutoTokenizer.from_pretrained(run.folder / "model")("a b c", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, run.agent.policy.model(ids).logits, rtol=0, atol=0)


@every
def test_every_weight_learns(algo: str, finished: Finished, model: Path) -> None:
    """But those of words that nobody read or wrote, which have rows of their own."""
    run, first = finished(algo), causal_model(model).state_dict()
    moved = [not torch.equal(tensor, first[name]) for name, tensor in run.agent.policy.model.state_dict().items()]
    assert all(moved) if algo != "reward" else sum(moved) == len(moved) - 1  # it has no head over words


@every
def test_save_and_exact_resume(algo: str, finished: Finished, tmp_path: Path) -> None:
    """From the checkpoint of the second update of six, in the middle of an epoch."""
    whole = finished(algo)
    broken = Path(shutil.copytree(whole.folder, tmp_path / "broken"))
    cut(broken, 2)
    assert resumed(broken).step == 6
    assert_same_run(whole.folder, broken)


@pytest.mark.parametrize("algo", ["sft", "ppo"])
def test_twice_as_long(algo: str, finished: Finished, train: Train, tmp_path: Path) -> None:
    """Half of the updates, then as many more: without a schedule of the learning rate, as all of them at once."""
    whole = train(algo, tmp_path / "whole", anneal_lr=False)
    half = train(algo, tmp_path / "half", anneal_lr=False, steps=4)
    assert resumed(half.folder, steps=6).step == 6
    for file in FILES:
        here, there = (all_of(run.folder)[-1] / file for run in (whole, half))
        assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("algo", rest_slow(LANGUAGE, ["sft", "reward", "ppo", "grpo", "rloo", "dpo", "ipo"]))
def test_it_learns_a_tiny_problem(algo: str, train: Train, tmp_path: Path) -> None:
    sizes = dict(batch=8, max_tokens=4, eval_every=0, checkpoint_every=1000)
    run = train(algo, tmp_path / "run", steps=40, lr=1e-2, **sizes)
    assert run.score is not None
    if online(algo):
        assert run.score.mean > 0.8
    elif algo == "sft":
        assert run.score.more["perplexity"] < 15  # of 44
    else:
        assert run.score.mean == 1


@every
def test_bad_numbers_are_refused(algo: str, train: Train, tmp_path: Path) -> None:
    numbers = [f.name for f in dataclasses.fields(LANGUAGE[algo].Config) if type(f.default) in (int, float)]
    assert len(numbers) >= 4
    for name in [*numbers, "steps", "batch", "max_tokens", "eval_prompts", "temperature"]:
        for bad in (-1, float("nan"), float("inf"), "much"):
            with pytest.raises(ConfigError, match=name):
                train(algo, tmp_path / "run", **{name: bad})
    assert not (tmp_path / "run").exists()


def collected(run: LanguageTrain) -> Batch:
    batch = run.source.collect(run.agent.policy)
    assert batch.mask.any()
    return batch


@pytest.mark.parametrize("of", ["model", "dropping"])
def test_what_was_sampled_is_what_is_learned(
    of: str, request: pytest.FixtureRequest, train: Train, tmp_path: Path
) -> None:
    """To the bit, in training mode too: nothing is dropped, and the ratio of the first gradient step is one."""
    for checkpointing in (False, True):
        settings = dict(model=request.getfixturevalue(of), steps=1, temperature=0.7, checkpointing=checkpointing)
        run = train("ppo", tmp_path / f"{checkpointing}", **settings)
        policy = run.agent.policy
        for training in (False, True):
            policy.train(training)
            batch = collected(run)
            assert torch.equal(policy.evaluate(batch).logp[batch.mask], batch.logp[batch.mask])
        row = json.loads((run.folder / "metrics.jsonl").read_text())
        assert (row["kl"], row["clip_fraction"]) == (0, 0)


@pytest.mark.parametrize("lora", [None, 4])
def test_the_reference_is_the_model_that_was_given(
    lora: int | None, dropping: Path, train: Train, tmp_path: Path
) -> None:
    """Whatever name its configuration carries; and it does not move."""
    run = train("ppo", tmp_path / "run", model=dropping, lora=lora, lr=1e-2)
    batch = collected(run)
    first = LanguagePolicy(causal_model(dropping)).evaluate(batch).logp
    torch.testing.assert_close(batch.ref_logp[batch.mask], first[batch.mask], rtol=0, atol=1e-6)
    assert (batch.ref_logp - batch.logp)[batch.mask].abs().max() > 0.01
