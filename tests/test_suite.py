"""Ring three: the common suite, which every algorithm in the registry passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.errors import ConfigError
from proximo.run.checkpoint import all_of
from tests.toys import Recall, RecallContinuous

PASSES = dict(horizon=32, epochs=4, minibatches=4, lr=3e-3)
SMALL: dict[str, dict[str, Any]] = dict.fromkeys(ALGORITHMS, PASSES)
SMALL |= {
    "reinforce": dict(horizon=32, lr=1e-2),
    "a2c": dict(horizon=32, lr=3e-3),
    "unconstrained": dict(horizon=32, epochs=4, minibatches=4, lr=1e-3),  # nothing holds it
    "natural": dict(horizon=32, epochs=4, minibatches=4, lr=3e-3, fisher_fraction=0.5),
    "trpo": dict(horizon=32, epochs=4, minibatches=4, lr=3e-3, fisher_fraction=0.5),
    "trpo_reuse": dict(horizon=32, epochs=4, minibatches=4, lr=3e-3, fisher_fraction=0.5, rollouts=2),
    "reuse": dict(horizon=32, epochs=4, minibatches=4, lr=3e-3, rollouts=3),
}
QUIET = dict(quiet=True, eval_every=0, eval_episodes=50, envs=4)
both = pytest.mark.parametrize("env", [Recall, RecallContinuous])
every = pytest.mark.parametrize("algo", ALGORITHMS)


@every
@both
def test_a_step_changes_every_weight(algo: str, env: type, tmp_path: Path) -> None:
    run = proximo.train(env, algo, steps=128, out=tmp_path / "run", **QUIET, **SMALL[algo])
    first = proximo.load(all_of(run.folder)[0]).policy.state_dict()
    assert run.update == 1
    for name, tensor in run.policy.named_parameters():
        assert tensor.isfinite().all()
        assert not torch.equal(tensor, first[name]), name


@every
@both
def test_it_learns_a_tiny_problem(algo: str, env: type, tmp_path: Path) -> None:
    run = proximo.train(env, algo, steps=20_000, out=tmp_path / "run", **QUIET, **SMALL[algo])
    assert run.score is not None
    assert run.score.mean >= 0.95


@every
@both
def test_save_and_exact_resume(algo: str, env: type, tmp_path: Path) -> None:
    settings = dict(checkpoint_every=512, **QUIET, **SMALL[algo])
    whole = proximo.train(env, algo, steps=2048, out=tmp_path / "whole", **settings)
    broken = proximo.train(env, algo, steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    resumed = proximo.resume(broken.folder, env=env, quiet=True)
    assert resumed.step == whole.step
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


@every
def test_the_loaded_agent_acts_as_the_trained_one(algo: str, tmp_path: Path) -> None:
    run = proximo.train(RecallContinuous, algo, steps=512, out=tmp_path / "run", **QUIET, **SMALL[algo])
    loaded = proximo.load(run.folder)
    for sign in (-1, 1):
        assert loaded.act([sign]) == run.agent.act([sign])


@every
def test_bad_numbers_are_refused(algo: str) -> None:
    config = ALGORITHMS[algo].Config
    numbers = [field.name for field in dataclasses.fields(config) if type(field.default) in (int, float)]
    assert len(numbers) > 3
    for name in numbers:
        for bad in (-1, float("nan"), float("inf"), "much"):
            with pytest.raises(ConfigError, match=name):
                config(**{name: bad})
