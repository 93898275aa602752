"""What the parts of a training cycle could take at best, measured on the spot."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from proximo.batch import Batch, leaves_of, tree_map
from proximo.policy import blank
from proximo.run.clock import ENVIRONMENT, JUDGING, POLICY, TOGETHER, UPDATE
from proximo.run.machine import has_images
from proximo.run.run import EnvRun
from proximo.sources.acting import casting
from proximo.sources.envs import EnvSource
from proximo.sources.halves import Halves, acting_threads
from proximo.sources.tensors import TensorSource, walking
from proximo.threads import threads

SECONDS = 0.3
SQUARE = 1024  # rows of the matrices whose product tells what the processor can do

Settle = Callable[[], object]


@dataclass(frozen=True)
class Gradient:
    """A gradient step."""

    steps: int  # in an update
    rows: int
    us: float
    arithmetic_us: float  # its matrix products alone, at the speed of a large one
    gflops: float  # 10⁹ floating-point operations a second, of a large matrix product
    uncompiled_us: float | None = None  # None where that was not measured


def gradient_of(run: EnvRun, update: float, settle: Settle) -> Gradient:
    """A gradient step, from the seconds of an update, and what its matrix products alone would take."""
    c = run.config
    parts = getattr(c.algorithm, "minibatches", 1)
    steps, rows = getattr(c.algorithm, "epochs", 1) * parts, c.rollout // parts
    brief = has_images(c) and c.network.precision == "bfloat16"
    square = torch.rand(SQUARE, SQUARE, device=run.agent.policy.device).to(torch.bfloat16 if brief else torch.float32)
    speed = 2 * SQUARE**3 / seconds_of(lambda: torch.mm(square, square), settle).min()
    work = 3 * operations(run) * rows  # backward takes two products where forward takes one
    return Gradient(steps, rows, update / steps * 1e6, work / speed * 1e6, speed / 1e9)


def operations(run: EnvRun) -> int:
    """Floating-point operations of the policy's matrix products and convolutions on one row."""
    rows = blank(run.agent.policy, run.agent.observation_space, run.config.algorithm.horizon, 1)
    with FlopCounterMode(display=False) as counter:  # not without gradients: its hooks want a parameter's graph
        run.agent.policy.evaluate(rows)
    return counter.get_total_flops() // len(rows.mask)


def limits(run: EnvRun, gradient: Gradient, settle: Settle) -> dict[str, float]:
    """Seconds a cycle of the parts on their own. The environments are elsewhere afterwards."""
    c, source = run.config, run.source
    actions = source.collect(run.agent.policy).action
    best = {UPDATE: gradient.steps * gradient.arithmetic_us * 1e-6}
    best[JUDGING] = operations(run) * c.rollout / (gradient.gflops * 1e9)
    if isinstance(source, TensorSource):
        best[TOGETHER] = environment_in_tensors(source, actions, settle) * c.algorithm.horizon
    else:
        parts = source.halves if isinstance(source, Halves) else [source]
        best[ENVIRONMENT] = environment_alone(run, parts, actions) * c.algorithm.horizon
        with threads(acting_threads() if len(parts) > 1 else torch.get_num_threads()), casting(run.agent.policy.device):
            best[POLICY] = sum(policy_alone(run, part) for part in parts) * c.algorithm.horizon
    return best


def environment_alone(run: EnvRun, parts: Sequence[EnvSource], actions: Any) -> float:
    """Seconds of a step of all lanes with nothing around it, resets included; `actions` are drawn ones, [T, N].

    Halves step at the same time, as they do while nobody chooses.
    """
    steps, first = len(leaves_of(actions)[0]), parts[0]
    many: list[Any] = [part.envs for part in parts]
    shares = torch.arange(sum(part.lanes for part in parts)).split([part.lanes for part in parts])

    def chosen(t: int) -> list[np.ndarray]:
        return [run.agent.policy.to_env(tree_map(lambda x: x[t, share], actions)) for share in shares]  # noqa: B023

    drawn = itertools.cycle([chosen(t) for t in range(steps)])

    def step() -> None:
        if len(many) > 1:
            for envs, action in zip(many, next(drawn), strict=True):
                envs.step_async(action)
            for envs in many:
                envs.step_wait()
            return
        _, _, terminated, truncated, _ = many[0].step(next(drawn)[0])
        if first.mode == AutoresetMode.DISABLED and (ended := terminated | truncated).any():
            many[0].reset(options={"reset_mask": ended})

    return float(seconds_of(lambda: first.guarded("step", step)).mean())


def policy_alone(run: EnvRun, source: EnvSource) -> float:
    """Seconds of choosing an action a lane, again and again for the same observations."""
    actor, shown = source.actor, source.shown(0)
    assert actor is not None, "the run is warm"
    drawn = leaves_of(tree_map(lambda x: x[0], run.agent.policy.noise(1, source.lanes)))
    begun = torch.zeros(source.lanes, dtype=torch.bool, device=run.agent.policy.device)

    def choose(t: int = 1) -> None:
        run.agent.policy.to_env(actor.action(actor.choose(t, shown, drawn, lambda t: begun)))
        actor.features.clear()

    choose(0)  # as in a collection, where weights are laid out once
    return float(np.median(seconds_of(choose)))


class Given(nn.Module):
    """Stands for a policy: the noise is the action."""

    def act(self, observation: Any, noise: Any, memory: Any, start: Tensor | None) -> tuple[Any, Any]:
        return noise, memory


def environment_in_tensors(source: TensorSource, actions: Any, settle: Settle) -> float:
    """Seconds of a step of all lanes without a policy, compiled where the run is."""
    given: Any = Given()
    now, drawn = dict(observation=source.now["observation"]), tree_map(lambda x: x[: source.unrolled], actions)
    begin = Batch(now=now, noise=drawn, chance=source.env.noise(source.unrolled))
    walk = walking(given, source.env, source.contract, begin)
    return float(np.median(seconds_of(lambda: walk(begin), settle))) / source.unrolled


def seconds_of(call: Callable[[], object], settle: Settle = lambda: None) -> np.ndarray:
    """How long calls take, one by one, the first left out."""
    call()
    seen, end = list[float](), time.perf_counter() + SECONDS
    while len(seen) < 3 or time.perf_counter() < end:
        settle()
        begin = time.perf_counter()
        call()
        settle()
        seen.append(time.perf_counter() - begin)
    return np.array(seen)
