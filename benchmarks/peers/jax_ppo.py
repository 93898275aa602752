"""PPO in JAX, written for the speed benchmark: what a library can hope for where environment and update compile to one.

Collect, estimate, update: the whole training is one jitted function of nested scans, as in PureJaxRL (Lu et al. 2022).
CartPole is Gymnasium's, equation by equation. `--work A-update` and `--work B-update` time one update's scan over all
minibatches on random data instead.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either
os.environ.setdefault("NPROC", "1")  # threads of XLA: a second one made nothing faster

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from measure import asked, report
from works import Work

PACKAGES = ("jax", "jaxlib", "optax", "numpy")
SHAPES = {"CartPole-v1": (4, 2), "HalfCheetah-v5": (17, 6)}  # numbers in an observation, and outputs of the policy
REPEATS = 50  # updates timed where the update is alone
LAST = 10  # updates whose episodes are the final return


class State(NamedTuple):
    """CartPole's lanes [N, …]."""

    physics: Array  # x, its speed, angle, its speed
    age: Array
    total: Array


class Rows(NamedTuple):
    """A collection [T, N, …], or rows of one."""

    observation: Array
    action: Array
    logp: Array
    advantage: Array
    value_target: Array


def begin(key: Array, lanes: int) -> State:
    """Fresh episodes."""
    physics = jax.random.uniform(key, (lanes, 4), minval=-0.05, maxval=0.05)
    return State(physics, jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes))


def moved(physics: Array, action: Array) -> Array:
    """CartPole's equations of motion (Barto, Sutton & Anderson 1983), one Euler step of 0.02 s."""
    gravity, pole, half, whole, tau = 9.8, 0.1, 0.5, 1.1, 0.02
    x, dx, angle, turn = physics.T
    force, cos, sin = jnp.where(action == 1, 10.0, -10.0), jnp.cos(angle), jnp.sin(angle)
    shared = (force + pole * half * turn**2 * sin) / whole
    spin = (gravity * sin - cos * shared) / (half * (4.0 / 3.0 - pole * cos**2 / whole))
    push = shared - pole * half * spin * cos / whole
    return jnp.stack([x + tau * dx, dx + tau * push, angle + tau * turn, turn + tau * spin], axis=-1)


def init(key: Array, work: Work) -> dict[str, Any]:
    """Two towers with orthogonal weights; a Gaussian policy's log deviation too (unused by CartPole)."""
    inputs, outputs = SHAPES[work.env]

    def tower(key: Array, last: int, gain: float) -> list[tuple[Array, Array]]:
        sizes = (inputs, *work.hidden, last)
        gains, keys = [2**0.5] * len(work.hidden) + [gain], jax.random.split(key, len(work.hidden) + 1)
        layers = zip(pairwise(sizes), gains, keys, strict=True)
        return [(jax.nn.initializers.orthogonal(gain)(key, shape), jnp.zeros(shape[1])) for shape, gain, key in layers]

    one, other = jax.random.split(key)
    return {"actor": tower(one, outputs, 0.01), "critic": tower(other, 1, 1.0), "log_std": jnp.zeros(outputs)}


def forward(layers: list[tuple[Array, Array]], x: Array) -> Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def value(params: dict[str, Any], observation: Array) -> Array:
    return forward(params["critic"], observation)[..., 0]


def log_probability(params: dict[str, Any], observation: Array, action: Array) -> Array:
    """Of a Categorical's index, or of a diagonal Gaussian's vector."""
    output = forward(params["actor"], observation)
    if action.dtype == jnp.int32:
        return jnp.take_along_axis(jax.nn.log_softmax(output), action[..., None], axis=-1)[..., 0]
    return jax.scipy.stats.norm.logpdf(action, output, jnp.exp(params["log_std"])).sum(-1)


def loss(params: dict[str, Any], rows: Rows, work: Work) -> Array:
    """The clipped surrogate and the squared error of the value."""
    advantage = (rows.advantage - rows.advantage.mean()) / (rows.advantage.std() + 1e-8)
    ratio = jnp.exp(log_probability(params, rows.observation, rows.action) - rows.logp)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - work.clip, 1 + work.clip) * advantage)
    return work.value_coef * jnp.square(value(params, rows.observation) - rows.value_target).mean() - gain.mean()


def adam(work: Work) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(work.max_grad_norm), optax.adam(work.lr, eps=work.adam_eps))


def update(work: Work, params: Any, optimizer: Any, rows: Rows, key: Array) -> tuple[Any, Any]:
    """Epochs × minibatches over rows [M, …]."""

    def minibatch(carry: Any, index: Array) -> Any:
        params, optimizer = carry
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[index], rows), work)
        change, optimizer = adam(work).update(gradient, optimizer)
        return (optax.apply_updates(params, change), optimizer), None

    orders = jax.vmap(lambda k: jax.random.permutation(k, work.rollout))(jax.random.split(key, work.epochs))
    return jax.lax.scan(minibatch, (params, optimizer), orders.reshape(-1, work.minibatch))[0]


def collect(work: Work, params: Any, state: State, key: Array) -> tuple[State, Rows, Array]:
    """One collection with its advantages (GAE); an episode's end at 500 steps is bootstrapped, a fall is not.

    Log-probabilities and values are computed once for all steps at the end.
    """

    def step(state: State, key: Array) -> Any:
        draw, reset = jax.random.split(key)
        action = jax.random.categorical(draw, forward(params["actor"], state.physics)).astype(jnp.int32)
        physics, age, total = moved(state.physics, action), state.age + 1, state.total + 1.0
        fallen = (jnp.abs(physics[:, 0]) > 2.4) | (jnp.abs(physics[:, 2]) > 12 * 2 * jnp.pi / 360)
        ended = fallen | (age >= 500)
        fresh = begin(reset, work.envs)
        after = State(*(jnp.where(ended.reshape(-1, *[1] * (x.ndim - 1)), y, x)
                        for x, y in zip((physics, age, total), fresh, strict=True)))  # fmt: skip
        return after, (state.physics, action, physics, fallen, ended, jnp.where(ended, total, 0.0))

    state, (observation, action, reached, fallen, ended, returns) = jax.lax.scan(
        step, state, jax.random.split(key, work.horizon)
    )
    now, after = value(params, observation), value(params, reached) * (1.0 - fallen)
    delta = 1.0 + work.gamma * after - now

    def backward(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        advantage = row[0] + work.gamma * work.lam * (1.0 - row[1]) * later
        return advantage, advantage

    advantage = jax.lax.scan(backward, jnp.zeros(work.envs), (delta, ended), reverse=True)[1]
    rows = Rows(observation, action, log_probability(params, observation, action), advantage, advantage + now)
    return state, rows, jnp.stack([returns.sum(), ended.sum()])


@partial(jax.jit, static_argnums=(0, 1))
def train(work: Work, updates: int, key: Array) -> tuple[Any, Array]:
    """The whole training; the weights, and returns of episodes and their number in each update [updates, 2]."""
    weights, first, loop = jax.random.split(key, 3)
    params = init(weights, work)

    def cycle(carry: Any, key: Array) -> Any:
        params, optimizer, state = carry
        gather, learn = jax.random.split(key)
        state, rows, episodes = collect(work, params, state, gather)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        return (*update(work, params, optimizer, rows, learn), state), episodes

    start = (params, adam(work).init(params), begin(first, work.envs))
    (params, _, _), episodes = jax.lax.scan(cycle, start, jax.random.split(loop, updates))
    return params, episodes


def update_alone(work: Work, seed: int) -> None:
    """Median µs of a minibatch, over REPEATS updates on random data after one to warm up."""
    inputs, outputs = SHAPES[work.env]
    keys = jax.random.split(jax.random.key(seed), 8)
    observation, m = jax.random.normal(keys[0], (work.rollout, inputs)), work.rollout
    discrete = work.env.startswith("CartPole")
    action = jax.random.randint(keys[1], (m,), 0, outputs) if discrete else jax.random.normal(keys[1], (m, outputs))
    params = init(keys[2], work)
    noise = jax.random.normal(keys[3], (3, m))
    logp = log_probability(params, observation, action) + 0.1 * noise[0]
    rows, optimizer = Rows(observation, action, logp, noise[1], noise[2]), adam(work).init(params)
    start = time.perf_counter()
    compiled = jax.jit(partial(update, work)).lower(params, optimizer, rows, keys[4]).compile()
    compiling, took = time.perf_counter() - start, []
    for key in jax.random.split(keys[5], REPEATS + 1):
        start = time.perf_counter()
        params, optimizer = jax.block_until_ready(compiled(params, optimizer, rows, key))
        took.append(time.perf_counter() - start)
    per_minibatch = 1e6 * float(np.median(took[1:])) / (work.epochs * work.minibatches)
    more = dict(steps_per_second=None, update_us=round(per_minibatch, 1), compile_seconds=round(compiling, 2))
    report("jax_ppo", work, REPEATS * work.rollout, sum(took[1:]), PACKAGES, **more)


def main() -> None:
    work, steps, seed = asked("A-tensor", "A-update", "B-update")
    if work.name.endswith("-update"):
        return update_alone(work, seed)
    start = time.perf_counter()
    compiled = train.lower(work, work.updates(steps), jax.random.key(seed)).compile()
    compiling, start = time.perf_counter() - start, time.perf_counter()
    _, episodes = jax.block_until_ready(compiled(jax.random.key(seed)))
    seconds = time.perf_counter() - start
    total, count = np.asarray(episodes)[-LAST:].sum(0)
    final = total / count if count else None
    report("jax_ppo", work, steps, seconds, PACKAGES, final_return=final, compile_seconds=round(compiling, 2))


if __name__ == "__main__":
    main()
