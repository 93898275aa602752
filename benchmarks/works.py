"""The works of the speed benchmark: what every peer does alike. It needs nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """One task with PPO's settings: clipped surrogate, two tanh towers, Adam, constant learning rate, no entropy bonus.

    Advantages are standardised in each minibatch and values are not clipped. `value_coef` weighs the squared error,
    as Stable-Baselines3 does it; a library that weighs its half takes twice the number.
    """

    name: str
    env: str
    envs: int
    horizon: int  # steps of each lane between two updates
    epochs: int
    minibatch: int  # rows
    lr: float
    steps: int
    normalize: bool = False  # observations and rewards by running statistics, clipped to ±10
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_coef: float = 0.5
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)
    pixels: bool = False  # NatureCNN on four stacked frames, shared by actor and critic; two threads

    @property
    def rollout(self) -> int:
        """Rows of one collection."""
        return self.envs * self.horizon

    @property
    def minibatches(self) -> int:
        """Parts of one pass over a collection."""
        return self.rollout // self.minibatch

    def updates(self, steps: int) -> int:
        """Collections that fit into so many steps; every peer does just as many."""
        if steps < self.rollout:
            raise SystemExit(f"{steps} steps are fewer than one collection of {self.rollout}")
        return steps // self.rollout


CARTPOLE = Work("A", "CartPole-v1", envs=8, horizon=128, epochs=4, minibatch=256, lr=2.5e-4, steps=200_000)
CHEETAH = Work("B", "HalfCheetah-v5", 1, horizon=2048, epochs=10, minibatch=64, lr=3e-4, steps=40_000, normalize=True)
PONG = Work(
    "C", "ALE/Pong-v5", envs=8, horizon=128, epochs=4, minibatch=256, lr=2.5e-4, steps=8192, clip=0.1, hidden=(),
    pixels=True,
)  # fmt: skip

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        CARTPOLE,
        replace(CARTPOLE, name="A-tensor"),  # the environment is arrays, stepped where the policy is
        replace(CARTPOLE, name="A-update"),  # no environment: the update alone, on random data
        CHEETAH,
        replace(CHEETAH, name="B8", envs=8, horizon=256, steps=60_000),
        replace(CHEETAH, name="B-update"),
        PONG,
    )
}
