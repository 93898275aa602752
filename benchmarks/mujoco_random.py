"""What a policy scores that draws its actions evenly: one JSON object, for benchmarks/mujoco.py.

    python -P benchmarks/mujoco_random.py HalfCheetah-v5 --episodes 100

(-P, because mujoco.py beside it would hide the package of that name.)
"""

from __future__ import annotations

import argparse
import json

import gymnasium as gym
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    env = gym.make(args.env)
    env.action_space.seed(0)
    returns = list[float]()
    for episode in range(args.episodes):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    print(json.dumps({"mean": float(np.mean(returns)), "std": float(np.std(returns)), "episodes": args.episodes}))


if __name__ == "__main__":
    main()
