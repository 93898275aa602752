"""Proximo. Its clock counts collecting and learning; writing checkpoints and the evaluation at the end stand apart."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # for works.py

from measure import Stopwatch, asked, report

import proximo
from proximo.algorithms.ppo import PPO


def main() -> None:
    work, steps, seed = asked("A", "B", "B8")
    learning = Stopwatch()
    PPO.step = learning.around(PPO.step)
    with tempfile.TemporaryDirectory() as folder:
        run = proximo.train(
            work.env,
            steps=steps,
            seed=seed,
            out=Path(folder) / "run",
            quiet=True,
            envs=work.envs,
            horizon=work.horizon,
            epochs=work.epochs,
            minibatches=work.minibatches,
            lr=work.lr,
            anneal_lr=False,
            gamma=work.gamma,
            lam=work.lam,
            clip=work.clip,
            value_coef=2 * work.value_coef,  # here half the squared error is weighed
            entropy_coef=0.0,
            max_grad_norm=work.max_grad_norm,
            hidden=work.hidden,
            normalize_observation=work.normalize,
            normalize_reward=work.normalize,
            checkpoint_every=steps,
            eval_every=0,
            eval_episodes=1,
        )
    packages = ("proximo", "torch", "gymnasium", "numpy", "mujoco", "envpool")
    final = run.metrics.get("return_mean")
    more = dict(updates=run.update, learning=learning, final_return=final)
    report("ours", work, run.step, run.seconds, packages, **more)


if __name__ == "__main__":
    main()
