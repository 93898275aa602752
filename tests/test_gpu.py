"""On a CUDA device: training, exact resume and loading work as on the CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import proximo
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.replay import Replay
from proximo.run.checkpoint import all_of
from proximo.sources.cartpole import CartPole
from proximo.sources.tensors import TensorSource
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd
from tests.test_compiled import OBJECTIVE, SPACES, batch_for, policy_for
from tests.toys import Recall

pytestmark = pytest.mark.gpu


def test_train_save_resume_and_load_on_the_gpu(tmp_path: Path) -> None:
    settings = dict(device="cuda", envs=4, horizon=32, checkpoint_every=512, eval_every=0, quiet=True)
    settings |= dict(normalize_observation=True, normalize_reward=True, lr=3e-3)
    whole = proximo.train(Recall, steps=2048, out=tmp_path / "whole", **settings)
    assert whole.policy.device.type == "cuda"
    broken = proximo.train(Recall, steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, env=Recall, quiet=True)
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
    assert proximo.load(whole.folder).act([1.0]) == whole.agent.act([1.0])


def test_a_compiled_update_on_the_gpu_is_the_cpus() -> None:
    """Three updates, all of whose gradient steps are played from a CUDA graph; in one minibatch, as orders differ."""
    found = []
    for device, compile in (("cpu", False), ("cuda", False), ("cuda", True)):
        policy = policy_for(SPACES["box"])
        batch = batch_for(policy).to(device)
        optimizer = Adam(policy.to(device), lr=3e-3, eps=1e-5)
        with compiling(compile):
            for _ in range(3):
                report = sgd(policy, optimizer, OBJECTIVE, batch, epochs=2, minibatches=1, max_grad_norm=0.5)
        assert bool(optimizer.graphs) == compile
        found.append((optimizer.state["vector"].cpu(), {name: value.cpu() for name, value in report.items()}))
    for vector, report in found[1:]:
        torch.testing.assert_close(vector, found[0][0], rtol=0, atol=1e-4)
        for name, value in report.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-3, atol=1e-4)


def collections(compile: bool, synchronous: str = "default", count: int = 3) -> list[Batch]:
    """Collections of CartPole on the GPU, lanes that are truncated too; the first is before any check."""
    torch.manual_seed(0)
    env = CartPole(64, device="cuda", limit=20)
    source = TensorSource(lambda seed: env, 32)
    policy = ActorCritic(env.single_observation_space, env.single_action_space, Network(hidden=(32, 32))).to("cuda")
    batches = []
    with compiling(compile):
        source.restart(1)
        for k in range(count):
            torch.manual_seed(k)
            if k:
                source.walk = unsynchronised(source.walk, synchronous)
            batches.append(source.collect(policy))
    return batches


def unsynchronised(walk: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """The walk, in which waiting for the GPU is an error."""

    def watched(*tensors: torch.Tensor) -> Any:
        torch.cuda.set_sync_debug_mode(mode)
        try:
            return walk(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


def test_played_collections_are_the_uncompiled_ones() -> None:
    """Up to rounding, in which a draw between two actions may fall otherwise once in a while."""
    eager, played = collections(False), collections(True)
    for one, other in zip(eager, played, strict=True):
        same = (one.action == other.action).all(0)
        assert same.float().mean() > 0.95
        for name in ("observation", "reward", "logp", "value", "next_value"):
            here, there = (getattr(batch, name)[:, same] for batch in (one, other))
            torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)
        for name in ("terminated", "truncated", "start"):
            assert torch.equal(getattr(one, name)[:, same], getattr(other, name)[:, same])
    assert any(batch.truncated.any() for batch in eager)


@pytest.mark.parametrize("compile", [False, True])
def test_no_step_waits_for_the_gpu(compile: bool) -> None:
    collections(compile, "error")


@pytest.mark.parametrize("compile", ["off", "on"])
def test_tensor_environments_resume_exactly_on_the_gpu(compile: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(backend="tensor", device="cuda", compile=compile, envs=4, horizon=32, quiet=True)
    settings |= dict(checkpoint_every=512, eval_every=0, eval_episodes=1, epochs=2, minibatches=4)
    settings |= dict(normalize_observation=True, normalize_reward=True)
    whole = proximo.train("CartPole-v1", steps=2048, out=tmp_path / "whole", **settings)
    broken = proximo.train("CartPole-v1", steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, quiet=True)
    assert len(all_of(whole.folder)) == 5
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_recording_leaves_state_and_generator_alone(caplog: pytest.LogCaptureFixture) -> None:
    def noisy(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor]:
        state.add_(x)
        return (state + torch.rand(4, device="cuda"),)

    replay, state = Replay(noisy, [1]), torch.zeros(4, device="cuda")
    found = []
    for _ in range(2):  # it is recorded in the first round alone
        torch.manual_seed(0)
        state.zero_()
        found.append([replay(torch.ones(4, device="cuda"), state)[0].tolist() for _ in range(3)])
        assert state.tolist() == [3, 3, 3, 3]
    assert found[0] == found[1]
    assert len({str(drawn) for drawn in found[0]}) == 3
    assert not caplog.records, "it was not recorded"
