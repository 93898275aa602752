"""The loss, every gradient and one optimizer step agree with Stable-Baselines3's PPO on the same batch and weights."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3
from stable_baselines3.common import policies
from stable_baselines3.common.logger import configure
from torch import Tensor

from proximo.advantages import gae, standardize
from proximo.algorithms.ppo import PPO, PPOConfig
from proximo.batch import Batch
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network

STEPS, LANES = 32, 4
CONFIG = PPOConfig(
    horizon=STEPS,
    epochs=1,
    minibatches=1,
    lr=1e-3,
    anneal_lr=False,
    value_coef=1.0,  # of half the squared error: what SB3 calls vf_coef 0.5
    entropy_coef=0.01,
    max_grad_norm=1e9,
)


class Blank(gym.Env):
    """Spaces alone; it is never stepped."""

    def __init__(self, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = gym.spaces.Box(-9, 9, (5,), np.float64), action_space


def sb3_with_the_weights_of(policy: ActorCritic, action_space: gym.Space) -> SB3:
    """SB3's PPO with our numbers, in float64."""
    theirs = SB3(
        "MlpPolicy", Blank(action_space), n_steps=STEPS * LANES, batch_size=STEPS * LANES,
        n_epochs=1, learning_rate=CONFIG.lr, gamma=CONFIG.gamma, gae_lambda=CONFIG.lam, clip_range=CONFIG.clip,
        ent_coef=CONFIG.entropy_coef, vf_coef=CONFIG.value_coef / 2, max_grad_norm=CONFIG.max_grad_norm,
        policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64])), device="cpu",
    )  # fmt: skip
    theirs.policy.double()
    with torch.no_grad():
        for ours, name in paired(policy, theirs):
            theirs.policy.get_parameter(name).copy_(ours)
    theirs.set_logger(configure(format_strings=[]))
    # Its buffer hands out float32 actions, and a Bernoulli's log-probability of them is float32 (2e-7 away).
    evaluate = theirs.policy.evaluate_actions
    theirs.policy.evaluate_actions = lambda observation, action: evaluate(  # pyright: ignore[reportAttributeAccessIssue]
        observation, action.double() if action.is_floating_point() else action
    )
    return theirs


def paired(policy: ActorCritic, theirs: SB3) -> list[tuple[Tensor, str]]:
    """Our parameters and the names of theirs."""
    trunk, head = "mlp_extractor.policy_net", "action_net"
    names = [f"{trunk}.0", f"{trunk}.2", head], ["mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"]
    pairs = []
    for tower, theirs_names in zip((policy.actor, policy.critic), names, strict=True):
        for layer, name in zip((tower[0], tower[2], tower[4]), theirs_names, strict=True):
            pairs += [(layer.weight, f"{name}.weight"), (layer.bias, f"{name}.bias")]
    if hasattr(policy.head, "log_std"):
        pairs.append((policy.head.log_std, "log_std"))
    assert len(pairs) == len(list(theirs.policy.parameters())) == len(list(policy.parameters()))
    return pairs


def collected(policy: ActorCritic) -> Batch:
    """A random collection, with the weights moved a little afterwards so that ratios differ from one."""
    observation = torch.randn(STEPS, LANES, 5, dtype=torch.float64)
    action = policy.act(observation, policy.noise(STEPS, LANES))[0]
    action = action.float().double() if action.is_floating_point() else action
    no = torch.zeros(STEPS, LANES, dtype=torch.bool)
    ends = torch.rand(STEPS, LANES) < 0.1
    batch = Batch(observation=observation, action=action, mask=~no, terminated=ends, truncated=no)
    reward, next_value = torch.randn(2, STEPS, LANES, dtype=torch.float64)
    with torch.no_grad():
        opinion = policy.evaluate(batch)
        batch = batch.replace(logp=opinion.logp, value=opinion.value, reward=reward, next_value=next_value)
        for parameter in policy.parameters():
            parameter.add_(0.06 * torch.randn_like(parameter))
    return batch


def learn_theirs(theirs: SB3, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Run SB3's own train() on the batch; its gradients by name, and what it logged."""
    rows = gae(batch, CONFIG.gamma, CONFIG.lam)
    buffer = theirs.rollout_buffer
    buffer.reset()
    column = lambda x: x.reshape(STEPS * LANES, 1, -1).numpy()  # noqa: E731
    buffer.observations, buffer.actions = column(rows.observation), column(rows.action)
    names = {"values": "value", "log_probs": "logp", "advantages": "advantage", "returns": "returns"}
    for theirs_name, name in names.items():
        setattr(buffer, theirs_name, getattr(rows, name).reshape(STEPS * LANES, 1).numpy())
    buffer.full = True
    theirs._current_progress_remaining = 1.0
    theirs.train()
    gradients = {name: p.grad.clone() for name, p in theirs.policy.named_parameters() if p.grad is not None}
    return gradients, dict(theirs.logger.name_to_value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "space",
    [gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,)), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3)],
    ids=lambda s: type(s).__name__,
)
def test_loss_gradients_and_step_agree(space: gym.Space, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # SB3 casts observations to float32 on their way in; here it must compute in float64 from end to end.
    monkeypatch.setattr(policies, "preprocess_obs", lambda observation, *_, **__: observation)
    torch.manual_seed(seed)
    policy = ActorCritic(gym.spaces.Box(-9, 9, (5,)), space, Network()).double()
    batch = collected(policy)
    theirs = sb3_with_the_weights_of(policy, space)
    ours = PPO(policy, CONFIG)
    rows = standardize(gae(batch, CONFIG.gamma, CONFIG.lam))
    loss, _ = ours.objective(policy.evaluate(rows), rows)
    parameters = dict(policy.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    by_identity = {id(parameters[name]): gradient for name, gradient in gradients.items()}

    wanted, logged = learn_theirs(theirs, batch)
    for parameter, name in paired(policy, theirs):
        got = by_identity[id(parameter)]
        assert (got - wanted[name]).norm() <= 1e-10 * wanted[name].norm(), name
        assert wanted[name].norm() > 0
    assert loss.item() == pytest.approx(logged["train/loss"], rel=1e-10)

    report = ours.step(batch, progress=0.0)
    assert report["policy_loss"] == pytest.approx(logged["train/policy_gradient_loss"], rel=1e-10)
    assert 2 * report["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-10)  # theirs has no ½
    assert -report["entropy"] == pytest.approx(logged["train/entropy_loss"], rel=1e-10)
    assert report["kl"] == pytest.approx(logged["train/approx_kl"], rel=1e-10)
    assert report["clip_fraction"] == pytest.approx(logged["train/clip_fraction"], rel=1e-10)
    assert report["clip_fraction"] > 0
    assert report["explained_variance"] == pytest.approx(logged["train/explained_variance"], rel=1e-10)
    for parameter, name in paired(policy, theirs):
        other = theirs.policy.get_parameter(name)
        assert (parameter - other).norm() <= 1e-10 * other.norm(), name
