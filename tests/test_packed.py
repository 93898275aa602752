"""An image network that keeps laid-out weights gives what it gives, only where these stay, and looks once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from proximo.compiler import compiling
from proximo.models import packed as kept
from proximo.models.actor_critic import ActorCritic
from proximo.models.images import ImageEncoder
from proximo.models.network import Network
from proximo.models.packed import keep
from proximo.sources.envs import EnvSource
from tests.test_compiled import needs_compiler
from tests.test_lanes import Bytes

needs_onednn = pytest.mark.skipif(not kept.at_hand(torch.zeros(1)), reason="torch was built without oneDNN")


def encoder(network: str, precision: str = "float32") -> tuple[ImageEncoder, Tensor]:
    torch.manual_seed(0)
    shape = (4, 84, 84) if network == "nature" else (3, 20, 24)
    return ImageEncoder(shape, network, precision=precision), torch.randint(0, 256, (6, *shape), dtype=torch.uint8)


@pytest.fixture
def made() -> Any:
    """What is kept while a test lasts."""
    made = kept.Layouts()
    keep(made)
    yield made
    keep(None)


@needs_onednn
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["nature", "impala"])
@torch.no_grad()
def test_kept_weights_give_what_the_network_gives(network: str, precision: str, made: kept.Layouts) -> None:
    if precision == "bfloat16" and not kept.at_hand(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip("no bfloat16 here")
    model, images = encoder(network, precision)
    first, again, fewer = model(images), model(images), model(images[:2])
    assert {rows for _, rows in made} == {6, 2}
    keep(None)
    wanted = model(images)
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for found in (first, again):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fewer, wanted[:2], rtol=tolerance, atol=tolerance)


@needs_onednn
def test_nothing_is_kept_where_somebody_learns(made: kept.Layouts) -> None:
    model, images = encoder("impala")
    model(images).sum().backward()
    assert not made
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_nothing_is_kept_where_nobody_says_that_weights_stay() -> None:
    model, images = encoder("impala")
    before = model(images)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    assert not torch.allclose(model(images), before)


def source_and_policy(env: Any = Bytes, **network: Any) -> tuple[EnvSource, ActorCritic]:
    torch.manual_seed(0)
    source = EnvSource(lambda seed: SyncVectorEnv([env] * 3), 16)
    policy = ActorCritic(env.observation_space, env.action_space, Network(hidden=(8,), sequence=8, **network))
    source.restart(3)
    return source, policy


LOOKING: dict[str, dict[str, Any]] = {
    "shared": {},
    "separate": dict(trunk="separate"),
    "stack": dict(frame_stack=3),
    "lstm": dict(memory="lstm", memory_size=8),
    "lstm, separate": dict(memory="lstm", memory_size=8, trunk="separate"),
    "nature": dict(images="nature"),
    "bfloat16": dict(precision="bfloat16"),
}


@pytest.mark.parametrize("network", LOOKING)
def test_what_was_seen_while_acting_is_judged_as_whole_lanes_are(network: str) -> None:
    """In a second collection too, with other weights: nothing that was kept outlives its collection."""
    source, policy = source_and_policy(Larger if network == "nature" else Bytes, **LOOKING[network])
    assert policy.looks
    tolerance = 2e-2 if network == "bfloat16" else 1e-5
    for _ in range(3):
        batch = source.collect(policy)
        assert "features" not in vars(batch)
        with torch.no_grad():
            opinion = policy.evaluate(batch)
            torch.testing.assert_close(batch.logp, opinion.logp, rtol=0, atol=tolerance)
            torch.testing.assert_close(batch.value, opinion.value, rtol=0, atol=tolerance)
            followed = batch.mask[1:] & ~batch.start[1:]
            torch.testing.assert_close(
                batch.next_value[:-1][followed], batch.value[1:][followed], rtol=0, atol=tolerance
            )
            for parameter in policy.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert source.actor is not None
    assert not source.actor.layouts
    source.close()


def test_the_network_looks_once_at_what_it_acts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    source, policy = source_and_policy()
    source.collect(policy)
    looked, forward = list[int](), ImageEncoder.forward

    def counted(self: ImageEncoder, observation: Tensor) -> Tensor:
        looked.append(observation.numel() // (16 * 16))
        return forward(self, observation)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    source.collect(policy)
    source.close()
    assert looked == [3] * 16 + [3], "every step's pictures, and what came after the last"


@needs_onednn
@torch.no_grad()
def test_other_weights_that_are_lent_are_other_weights(made: kept.Layouts) -> None:
    model, images = encoder("impala")
    before = model(images)
    others = {name: 2 * parameter for name, parameter in model.named_parameters()}
    lent = torch.func.functional_call(model, others, images)
    keep(None)
    torch.testing.assert_close(lent, torch.func.functional_call(model, others, images), rtol=1e-3, atol=1e-3)
    keep(made)
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    assert not torch.allclose(model(images), before)


def test_who_overrides_act_is_asked_by_that_name() -> None:
    """A policy that begins from ours, and explores in a way of its own, does so where it sees images too."""

    class Always(ActorCritic):
        def act(self, observation: Any, noise: Any, memory: Any = (), start: Tensor | None = None) -> tuple[Any, Any]:
            action, memory = super().act(observation, noise, memory, start)
            return torch.ones_like(action), memory

    source, _ = source_and_policy()
    batch = source.collect(Always(Bytes.observation_space, Bytes.action_space, Network(hidden=(8,))))
    source.close()
    assert batch.action[batch.mask].eq(1).all()


class Larger(Bytes):
    """The same for NatureCNN."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _seen(self) -> np.ndarray:
        return super()._seen().repeat(9, 0).repeat(9, 1)[::4, ::4]


@needs_compiler
def test_compiled_policies_keep_nothing_and_judge_the_same(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for on in (False, True):
        with compiling(on):
            source, policy = source_and_policy(Larger, images="nature")
            found.append([source.collect(policy)])
            laid = layouts_while_acting(source)
            found[-1].append(source.collect(policy))
            source.close()
        assert set(laid) == {0 if on else 1}
    assert not caplog.records
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.action, other.action)
        torch.testing.assert_close(one.logp, other.logp, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.next_value, other.next_value, rtol=0, atol=1e-5)


def layouts_while_acting(source: EnvSource) -> list[int]:
    """A list that gets, after each act, how many layouts are kept."""
    assert source.actor is not None
    laid, act = list[int](), source.actor.act

    def counted(*tensors: Tensor) -> Any:
        made = act(*tensors)
        laid.append(len(kept._layouts.get() or ()))
        return made

    source.actor.act = counted
    return laid


def test_nothing_stays_kept_when_acting_fails() -> None:
    source, policy = source_and_policy()
    source.collect(policy)
    assert source.actor is not None

    def fail(*tensors: Tensor) -> Any:
        assert kept._layouts.get() is not None
        raise RuntimeError("out of memory")

    source.actor.act = fail
    with pytest.raises(RuntimeError):
        source.collect(policy)
    assert kept._layouts.get() is None
    source.close()
