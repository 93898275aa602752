"""Plasticity: the rank of features and the share of dead units, what is logged of them, and Adam's betas."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: mujoco.py there must not hide the package

from plasticity_table import looks, table

import proximo
from benchmarks import plasticity as benchmark
from proximo import compiler
from proximo.algorithms import ALGORITHMS
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.errors import ConfigError
from proximo.models.actor_critic import ACTIVATIONS, ActorCritic
from proximo.models.network import Network
from proximo.objectives import clip, entropy, value_error
from proximo.plasticity import ROWS, dead_units, feature_rank, in_use, sample
from proximo.policy import blank
from proximo.run.checkpoint import all_of
from proximo.run.config import from_json, resolved
from proximo.run.folder import read_rows
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd
from tests.test_variants import collected
from tests.toys import Cue, Everything, Recall

SMALL: dict[str, Any] = dict(envs=4, horizon=32, epochs=2, minibatches=4, quiet=True, eval_every=0, eval_episodes=1)
PARTS = ("feature_rank", "dead_units")
needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))


# --- the two numbers, by hand


@pytest.mark.parametrize(
    ("spectrum", "rank"),
    [
        ((1.0, 1.0, 1.0), 3),
        ((5.0, 0.0, 0.0), 1),
        ((0.0, 0.0, 0.0), 0),
        ((10.0, 1.1, 0.1), 2),  # 100 of 101.22, and 101.21
        ((10.0, 0.9, 0.1), 1),  # 100 of 100.82
        ((3.0, 3.0, 0.4), 2),  # the third has 4.7 % of the values' sum, and 0.9 % of the squares'
    ],
)
@pytest.mark.parametrize("shape", [(8, 3), (3, 3), (3, 8)])
def test_the_rank_of_a_known_spectrum(spectrum: tuple[float, ...], rank: int, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((size, size)))[0] for size in shape)
    middle = np.zeros(shape)
    np.fill_diagonal(middle, spectrum)
    features = torch.from_numpy(left @ middle @ right)
    assert feature_rank(features) == rank
    assert feature_rank(1e-3 * features) == rank


def test_the_rank_is_not_of_centred_features() -> None:
    """As its sources have it: what all rows share is a direction too, and here the only one."""
    apart = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
    assert feature_rank(apart) == 2
    assert feature_rank(3 + apart) == 1


def slow_rank(features: np.ndarray) -> int:
    squares = np.linalg.svd(features.astype(np.float64), compute_uv=False) ** 2
    for k in range(len(squares) + 1):
        if squares[:k].sum() >= 0.99 * squares.sum():
            return k
    raise AssertionError


def slow_dead(layers: list[np.ndarray]) -> float:
    dead = []
    for layer in layers:
        scale = np.mean([abs(x) for x in layer.astype(np.float64).flat])
        for unit in layer.T.astype(np.float64):
            deviation = np.sqrt(np.mean([(x - unit.mean()) ** 2 for x in unit]))
            dead.append(deviation <= 0.001 * scale)
    return sum(dead) / len(dead)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=st.integers(2, 40), units=st.integers(1, 12), rank=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_both_agree_with_a_slow_reference(rows: int, units: int, rank: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    decay = generator.uniform(0.1, 1) ** np.arange(rank)
    features = (generator.standard_normal((rows, rank)) * decay @ generator.standard_normal((rank, units))).astype("f4")
    still = generator.random(units) < 0.3
    other = np.where(still, 0.7 + 1e-6 * features, np.maximum(features, 0)).astype("f4")
    assert feature_rank(torch.from_numpy(features)) == slow_rank(features)
    assert dead_units([torch.from_numpy(x) for x in (features, other)]) == pytest.approx(slow_dead([features, other]))


DRIVE = torch.linspace(-1, 1, 9).unsqueeze(1)
DEAD = {"relu": -5.0, "elu": -40.0, "silu": -120.0, "tanh": 20.0}  # where no input moves a unit any more


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_unit_that_is_stuck_is_dead_whatever_the_activation(activation: str, scale: float) -> None:
    shift = torch.tensor([0.0, DEAD[activation], 0.1, DEAD[activation]])
    layer = scale * ACTIVATIONS[activation]()(DRIVE + shift)
    assert dead_units([layer]) == 0.5
    assert dead_units([layer, layer[:, :1]]) == pytest.approx(2 / 5), "of all units, not the mean of layers"
    assert dead_units([layer[:, [1, 3]]]) == 1.0, "a layer of which nothing is left"


def test_a_busy_unit_is_not_dead_beside_a_saturated_layer() -> None:
    """Sokar's score alone would have it the other way round: a tanh at its bound is the most active of all."""
    layer = torch.cat([torch.ones(9, 3), 0.05 * DRIVE], 1)
    assert dead_units([layer]) == 0.75


# --- of policies


def space_of(name: str) -> gym.Space:
    picture, mask = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), gym.spaces.MultiBinary(3)
    return {
        "box": gym.spaces.Box(-1, 1, (5,), np.float32),
        "image": picture,
        "dict": gym.spaces.Dict(picture=picture, number=gym.spaces.Box(-1, 1, (2,)), action_mask=mask),
    }[name]  # fmt: skip


WIDTHS = {  # of the layers of actor and critic
    "plain": ("box", dict(hidden=(7, 6)), [7, 6], [7, 6]),
    "norm": ("box", dict(hidden=(7, 6), layer_norm=True, activation="relu"), [7, 6], [7, 6]),
    "linear": ("box", dict(hidden=()), [], []),
    "image": ("image", dict(hidden=(6,)), [256, 6], [6]),
    "image-separate": ("image", dict(hidden=(), trunk="separate"), [256], [256]),
    "dict": ("dict", dict(hidden=(6,)), [6], [6]),
    "lstm": ("box", dict(hidden=(6,), memory="lstm", memory_size=5, sequence=4), [5, 6], [6]),
    "separate": ("dict", dict(hidden=(6,), memory="gru", memory_size=5, sequence=4, trunk="separate"), [5, 6], [5, 6]),
    "transformer": ("box", dict(hidden=(6,), memory="transformer", memory_size=8, sequence=4), [8, 6], [6]),
}  # fmt: skip


def policy_of(name: str) -> tuple[ActorCritic, Batch, list[int], list[int]]:
    """A policy, a random collection of it with dead rows, and the widths of its layers."""
    torch.manual_seed(0)
    kind, network, actor, critic = WIDTHS[name]
    policy = ActorCritic(space_of(kind), gym.spaces.Discrete(3), Network(**network))
    rows = blank(policy, space_of(kind), 8, 4)
    batch = rows.map(
        lambda x: torch.randint(2, x.shape).to(x.dtype) if not x.is_floating_point() else torch.randn_like(x)
    )
    return policy, batch.replace(start=torch.zeros(8, 4, dtype=torch.bool)), actor, critic  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_the_layers_are_those_that_the_policy_acts_with(name: str) -> None:
    policy, batch, *widths = policy_of(name)
    layers = policy.layers(batch)
    assert [[layer.shape[-1] for layer in each] for each in layers] == widths
    assert all(layer.shape[:2] == (8, 4) and not layer.requires_grad for each in layers for layer in each)
    evaluation: Any = policy.evaluate(batch)
    if widths[1]:
        torch.testing.assert_close(policy.critic[-1](layers[1][-1]).squeeze(-1), evaluation.value)
    if widths[0]:
        logits = policy.actor[-1](layers[0][-1])
        again = policy.head(logits, batch.observation["action_mask"]) if policy.masked else policy.head(logits)
        torch.testing.assert_close(again.logp(batch.action), evaluation.logp)


@pytest.mark.parametrize("name", WIDTHS)
def test_what_is_in_use_is_of_live_rows_alone_and_draws_nothing(name: str) -> None:
    policy, batch, *widths = policy_of(name)
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]
    found = in_use(policy, batch)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]
    if not widths[0]:
        assert found == {}
        return
    actor, critic = ([layer[batch.mask] for layer in layers] for layers in policy.layers(batch))
    assert found == {
        "feature_rank": slow_rank(actor[-1].numpy()),
        "dead_units": pytest.approx(slow_dead([layer.numpy() for layer in (*actor, *critic)])),
    }
    policy.double()
    assert in_use(policy, batch)["feature_rank"] == found["feature_rank"]


def test_dead_rows_do_not_count() -> None:
    policy, batch, *_ = policy_of("plain")
    wild = batch.replace(observation=torch.where(batch.mask.unsqueeze(-1), batch.observation, 1e3))
    assert in_use(policy, wild) == in_use(policy, batch)
    assert in_use(policy, batch.replace(mask=torch.zeros_like(batch.mask))) == {}


def test_numbers_that_are_not_finite_are_not_told() -> None:
    policy, batch, *_ = policy_of("plain")
    next(policy.critic.parameters()).detach()[0, 0] = torch.nan
    assert in_use(policy, batch.replace(observation=torch.ones_like(batch.observation))) == {}


@pytest.mark.parametrize(("steps", "lanes"), [(8, 4), (300, 8), (2000, 1)])
def test_a_sample_is_of_so_many_rows_and_always_the_same(steps: int, lanes: int) -> None:
    place = torch.arange(steps * lanes).view(steps, lanes)
    batch = Batch(observation=place, mask=torch.ones_like(place).bool(), action=place, reward=place)
    some = sample(batch).observation
    assert len(some) == len(some.unique()) == min(ROWS, steps * lanes)
    assert torch.equal(some, sample(batch).observation)
    if lanes > 1:
        assert len((some % lanes).unique()) == lanes
    sequences = sample(batch.replace(memory=(torch.zeros(steps // 4, lanes, 2),), start=batch.mask))
    many = min(ROWS // 4, steps * lanes // 4)
    assert sequences.observation.shape == (4, many)
    assert (sequences.observation.diff(dim=0) == lanes).all(), "whole sequences in the order of time"
    assert sequences.memory[0].shape == (1, many, 2)


class Hidden(nn.Module):
    """A policy that shows no layers."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def evaluate(self, batch: Batch) -> Any:
        return self.policy.evaluate(batch)


def test_a_policy_that_shows_no_layers_is_none_the_worse() -> None:
    policy, batch, *_ = policy_of("plain")
    assert in_use(Hidden(policy), batch) == {}


# --- in a run


def looked(folder: Path) -> list[int]:
    """The updates at which the network was looked at."""
    rows = read_rows(folder / "metrics.jsonl")
    assert all((PARTS[0] in row) == (PARTS[1] in row) for row in rows)
    assert all(row["feature_rank"] >= 1 and 0 <= row["dead_units"] <= 1 for row in rows if PARTS[0] in row)
    return [row["update"] for row in rows if PARTS[0] in row]


def weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(all_of(folder)[-1].glob("*.safetensors"))]


@pytest.mark.parametrize(("env", "network"), [(Recall, {}), (Cue, dict(memory="gru"))])
def test_a_run_tells_it_on_schedule_and_learns_the_same(env: Any, network: dict[str, Any], tmp_path: Path) -> None:
    every: dict[int, Path] = {}
    for steps in (0, 1, 256):
        every[steps] = tmp_path / str(steps)
        proximo.train(env, steps=600, features_every=steps, out=every[steps], hidden=(8,), **network, **SMALL)
    ends = {steps: len(read_rows(folder / "metrics.jsonl")) for steps, folder in every.items()}
    assert looked(every[0]) == [ends[0]]
    assert looked(every[1]) == list(range(1, ends[1] + 1))
    assert 2 <= len(looked(every[256])) < ends[256]
    assert weights(every[0]) == weights(every[1]) == weights(every[256])


def test_a_run_with_images_texts_and_choices_tells_it(tmp_path: Path) -> None:
    run = proximo.train(Everything, steps=128, out=tmp_path / "run", hidden=(8,), **SMALL)
    assert looked(run.folder) == [1]
    assert 1 <= run.metrics["feature_rank"] <= 8


def test_a_resumed_run_tells_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    plan = dict(steps=2048, checkpoint_every=512, features_every=300, betas=(0.99, 0.99))
    proximo.train(Recall, out=whole, **plan, **SMALL)
    shutil.copytree(whole, broken)
    for late in all_of(broken)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken, env=Recall, quiet=True)
    told = [[[row.get(name) for name in PARTS] for row in read_rows(x / "metrics.jsonl")] for x in (whole, broken)]
    assert told[0] == told[1]
    assert weights(whole) == weights(broken)


# --- Adam's betas

OBJECTIVE = clip(0.2) + 0.5 * value_error() - 0.01 * entropy()
BETAS = (0.99, 0.99)


def small_policy() -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), Network(hidden=(16, 16)))


def batch_of(policy: ActorCritic) -> Batch:
    batch = collected(policy)
    return batch.replace(advantage=batch.reward, returns=batch.reward)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_an_update_with_other_betas_is_torchs(compiled: bool) -> None:
    """Two epochs of four minibatches, against torch.optim.Adam and torch's clipping on the same minibatches."""
    ours, theirs = small_policy(), small_policy()
    batch = batch_of(ours)
    start = torch.nn.utils.parameters_to_vector(ours.parameters()).detach().clone()
    optimizer = Adam(ours, lr=1e-3, eps=1e-5, betas=BETAS)
    torch.manual_seed(7)
    with compiling(compiled):
        sgd(ours, optimizer, OBJECTIVE, batch, 2, 4, 0.5)
    assert all((graph.graph is not None) == compiled for graph in optimizer.graphs.values())

    reference, rows = torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1e-5, betas=BETAS), batch.units()
    torch.manual_seed(7)
    for order in [torch.randperm(64) for _ in range(2)]:
        for part in order.view(4, -1):
            reference.zero_grad()
            OBJECTIVE(theirs.evaluate(rows.part(part)), rows.part(part))[0].backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            reference.step()
    end: Tensor = torch.nn.utils.parameters_to_vector(theirs.parameters()).detach()
    assert (end - start).abs().max() > 1e-3
    torch.testing.assert_close(optimizer.state["vector"], end, rtol=0, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), BETAS, (0.0, 0.9), (0.0, 0.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("epsilon_hat", [False, True])
def test_a_step_is_the_papers(betas: tuple[float, float], weight_decay: float, epsilon_hat: bool) -> None:
    """Algorithm 1 of Kingma & Ba, in float64, with the decay of Loshchilov & Hutter: five steps."""
    policy, (beta1, beta2), lr, eps = small_policy(), betas, 1e-2, 1e-3
    optimizer = Adam(policy, lr, eps, betas, weight_decay, epsilon_hat)
    theta = optimizer.state["vector"].double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t in range(1, 6):
        gradient = torch.randn(len(theta))
        optimizer.go(gradient, optimizer.state)
        g = gradient.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        correction = (1 - beta2**t) ** 0.5
        below = (v**0.5 + eps) / correction if epsilon_hat else v**0.5 / correction + eps
        theta = theta - lr * weight_decay * theta - lr * (m / (1 - beta1**t)) / below
    torch.testing.assert_close(optimizer.state["vector"], theta.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), BETAS, (0.0, 0.9), (0.5, 0.0)])
def test_how_many_steps_were_taken_is_known(betas: tuple[float, float]) -> None:
    """From βᵗ, which is what is saved; when nothing is left of it, nothing is left to correct."""
    optimizer, told = Adam(small_policy(), betas=betas), list[float]()
    for _ in range(100):
        told.append(optimizer.taken())
        optimizer.state["power1"].mul_(betas[0])
        optimizer.state["power2"].mul_(betas[1])
    assert told == list(range(100))
    optimizer.state["power1"].fill_(0)
    optimizer.state["power2"].fill_(0)
    assert max(betas) ** optimizer.taken() == 0


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_with_adam_takes_them(algo: str) -> None:
    policy = small_policy()
    if algo == "a2c":  # RMSProp
        assert not hasattr(ALGORITHMS[algo].Config(), "betas")
        return
    assert ALGORITHMS[algo].Config().betas == (0.9, 0.999)
    assert ALGORITHMS[algo](policy, ALGORITHMS[algo].Config(betas=BETAS)).optimizer.betas == BETAS


@pytest.mark.parametrize(
    "betas", [(0.9,), (0.9, 0.9, 0.9), 0.9, (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan")), ("a", 0.9)]
)
def test_betas_that_are_none(betas: Any) -> None:
    with pytest.raises(ConfigError, match=r"betas is .*: it must be") as caught:
        resolved("CartPole-v1", "ppo", "discrete", dict(betas=betas))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"betas is .*: it must be two numbers"):
        ALGORITHMS["ppo"].Config(betas=betas)


def test_betas_survive_the_configuration_file() -> None:
    asked = resolved("CartPole-v1", "ppo", "discrete", dict(betas=[0, np.float32(0.5)], hidden=[np.int64(8)]))
    assert asked.algorithm.betas == (0.0, 0.5)
    assert from_json(json.loads(json.dumps(asked.to_json()))) == asked


# --- the benchmark


def test_the_benchmarks_rewards_change_when_they_should_and_nothing_else_does() -> None:
    environment = benchmark.Relabelled(phases=3, every=4 * benchmark.LANES, seed=0)
    seen, noise = environment.reset(0), environment.noise(12)
    for step in range(12):
        which = (seen.unsqueeze(1) == environment.patterns).all(-1).nonzero()[:, 1]
        action = torch.randint(benchmark.ACTIONS, (benchmark.LANES,))
        shown, reward, terminated, truncated, final = environment.step(action, noise[step])
        assert torch.equal(reward, (action == environment.right[step // 4][which]).float())
        assert torch.equal(final, seen)
        assert terminated.all()
        assert not truncated.any()
        seen = shown.clone()
    assert (environment.right[0] != environment.right[1]).float().mean() > 0.5


def test_a_benchmark_plans_by_default_what_its_docstring_says() -> None:
    args = benchmark.arguments([])
    assert f"every {args.every:,} steps" in str(benchmark.__doc__)
    assert f"{args.changes} times in a run" in str(benchmark.__doc__)
    assert f"--seeds {args.seeds}" in str(benchmark.__doc__)
    with pytest.raises(SystemExit):
        benchmark.arguments(["--every", "51200"])


def test_a_benchmarks_run_is_looked_at_in_every_phase() -> None:
    row = benchmark.trained(benchmark.Plan("relu", "both", 0, 1, 4096, "off"))
    assert len(row["phases"]) == 2
    assert all(0 < mean <= 1 for mean in row["phases"])
    assert [look[0] for look in row["curve"]] == list(range(1024, 8193, 1024))  # as often as there are collections
    assert row["steps"] == 8192


def test_a_benchmark_goes_on_where_it_was_and_writes_its_table(tmp_path: Path) -> None:
    plan = benchmark.Plan("relu", "both", 0, 11, 4096, "off")
    curve = [[512 * i, 0.5, 64 - i, i / 192] for i in range(1, 97)]
    row = {**{name: getattr(plan, name) for name in benchmark.PLACE}, "settings": json.loads(json.dumps(plan.settings))}
    row |= dict(phases=[0.9, 0.8, *[0.5] * 10], curve=curve, every=4096, steps=49_152, command="the command")
    row |= dict(machine="a machine", versions={"torch": "2"})
    assert benchmark.done([row], plan)
    assert not benchmark.done([row], plan._replace(every=8192))
    assert not benchmark.done([row], plan._replace(seed=1))
    first, last = looks(row)
    assert first.tolist() == [56, 8 / 192]
    assert last.tolist() == pytest.approx([64 - 56.5, 56.5 / 192])
    [line] = [line for line in table([row]).splitlines() if line.startswith("| ReLU")]
    assert "| 0.90 | **0.50** | 0.50 | 56.0 → 7.5 | 4.2% → 29.4% |" in line
    path = tmp_path / "plasticity.json"
    path.write_text(json.dumps([row]))
    benchmark.write_table(path)
    assert path.with_suffix(".png").stat().st_size > 1000
