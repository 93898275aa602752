"""Presets for what is seen on a screen, and for EnvPool's other worlds: Atari, Procgen, ViZDoom, MiniGrid, driving.

Half the squared error is weighed here: a source's c (V − R)² is a value_coef of 2 c, its ½ c (V − R)² one of c. Stacks
of frames are learned from in sequences of 16 steps, where the papers drew single rows.

Atari's numbers are those of OpenAI Baselines' ppo2 (ppo2/defaults.py, atari). They have 4 epochs, where the paper
(Schulman et al. 2017, table 5) has 3, and weigh ½ (V − R)² by 0.5, the paper by 1; step size and clip fall linearly to
zero in both. Unlike ppo2, values are not clipped. Of PPO's relatives those whose clip does not fall keep it at 0.1.
"""

from __future__ import annotations

from typing import Any

from proximo.presets.preset import Preset

# fmt: off
GAMES = (
    "Adventure", "AirRaid", "Alien", "Amidar", "Assault", "Asterix", "Asteroids", "Atlantis", "Atlantis2",
    "Backgammon", "BankHeist", "BasicMath", "BattleZone", "BeamRider", "Berzerk", "Blackjack", "Bowling",
    "Boxing", "Breakout", "Carnival", "Casino", "Centipede", "ChopperCommand", "CrazyClimber", "Crossbow",
    "Darkchambers", "Defender", "DemonAttack", "DonkeyKong", "DoubleDunk", "Earthworld", "ElevatorAction",
    "Enduro", "Entombed", "Et", "FishingDerby", "FlagCapture", "Freeway", "Frogger", "Frostbite", "Galaxian",
    "Gopher", "Gravitar", "Hangman", "HauntedHouse", "Hero", "HumanCannonball", "IceHockey", "Jamesbond",
    "JourneyEscape", "Kaboom", "Kangaroo", "KeystoneKapers", "KingKong", "Klax", "Koolaid", "Krull",
    "KungFuMaster", "LaserGates", "LostLuggage", "MarioBros", "MiniatureGolf", "MontezumaRevenge", "MrDo",
    "MsPacman", "NameThisGame", "Othello", "Pacman", "Phoenix", "Pitfall", "Pitfall2", "Pong", "Pooyan",
    "PrivateEye", "Qbert", "Riverraid", "RoadRunner", "Robotank", "Seaquest", "SirLancelot", "Skiing",
    "Solaris", "SpaceInvaders", "SpaceWar", "StarGunner", "Superman", "Surround", "Tennis", "Tetris",
    "TicTacToe3d", "TimePilot", "Trondead", "Turmoil", "Tutankham", "UpNDown", "Venture", "VideoCheckers",
    "VideoChess", "VideoCube", "VideoPinball", "WizardOfWor", "WordZapper", "YarsRevenge", "Zaxxon",
)
PROCGEN = (
    "Bigfish", "Bossfight", "Caveflyer", "Chaser", "Climber", "Coinrun", "Dodgeball", "Fruitbot", "Heist", "Jumper",
    "Leaper", "Maze", "Miner", "Ninja", "Plunder", "Starpilot",
)
DOOM = (
    "D1Basic-", "D2Navigation-", "D3Battle-", "D4Battle2-", "Basic-v1", "BasicAudio-", "BasicNotifications-", "Cig-",
    "DeadlyCorridor-", "Deathmatch-", "DefendTheCenter-", "DefendTheLine-", "HealthGathering", "MyWayHome-",
    "PredictPosition-", "RocketBasic-", "SimplerBasic-", "TakeCover-",
)
RACETRACK = (
    "Racetrack-v", "RacetrackLarge-v", "RacetrackOval-v", "racetrack-v", "racetrack-large-v", "racetrack-oval-v",
)
LANE = ("LaneKeeping-v", "lane-keeping-v")
ROADS = (
    "Highway-v", "HighwayFast-v", "highway-v", "highway-fast-v", "Exit-v", "exit-v", "Intersection-v", "intersection-v",
    "Merge-v", "merge-v", "Roundabout-v", "roundabout-v", "TwoWay-v", "two-way-v", "UTurn-v", "u-turn-v",
)
LEVELS = tuple(f"{game}{kind}-v" for game in PROCGEN for kind in ("Easy", "Hard", "Extreme", "Exploration", "Memory"))
ENVPOOLS = tuple(f"{game}-v5" for game in GAMES)
LIVES = ("stack_num=1", "episodic_life=true")
ALE_OPTIONS = (*LIVES, "reward_clipping=true", "repeat_action_probability=0.0")
POOL_OPTIONS = (*LIVES, "reward_clip=true")
RARELY: dict[str, Any] = dict(checkpoint_every=500_000, eval_every=1_000_000, eval_episodes=10)
PIXELS: dict[str, Any] = RARELY | dict(
    steps=10_000_000, envs=8, horizon=128, epochs=4, minibatches=4, lr=2.5e-4, gamma=0.99, lam=0.95, clip=0.1,
    anneal_clip=True, entropy_coef=0.01, value_coef=0.5, max_grad_norm=0.5,
    hidden=(), activation="relu", images="nature", frame_stack=4,
)
A2C = RARELY | dict(
    steps=10_000_000, envs=16, horizon=5, lr=7e-4, anneal_lr=True, gamma=0.99, entropy_coef=0.01, value_coef=1.0,
    max_grad_norm=0.5, hidden=(), activation="relu", images="nature", frame_stack=4,
)
ATARI = "OpenAI Baselines, ppo2/defaults.py, atari (Schulman et al. 2017, table 5, with 4 epochs), in sequences"
OLDER = "OpenAI Baselines, a2c.py, Atari, for 10M steps instead of 80M"
DRIVING = dict(
    envs=6, horizon=128, epochs=10, minibatches=12, lr=5e-4, anneal_lr=False, value_coef=1.0, hidden=(256, 256),
    normalize_observation=True,
)

SCREENS = (
    Preset("atari", ATARI, ("ALE/",), PIXELS | dict(env_options=ALE_OPTIONS)),
    Preset("atari-envpool", ATARI, ENVPOOLS, PIXELS | dict(env_options=POOL_OPTIONS)),
    Preset("a2c-atari", OLDER, ("ALE/",), A2C | dict(env_options=ALE_OPTIONS), ("a2c",)),
    Preset("a2c-atari-envpool", OLDER, ENVPOOLS, A2C | dict(env_options=POOL_OPTIONS), ("a2c",)),
    Preset(
        "procgen", "Cobbe et al. 2020 (arXiv:1912.01588), appendix D, on one worker", LEVELS,
        RARELY | dict(steps=25_000_000, envs=64, horizon=256, epochs=3, minibatches=8, lr=5e-4, anneal_lr=False,
                      gamma=0.999, lam=0.95, entropy_coef=0.01, value_coef=0.5, hidden=(), activation="relu",
                      images="impala", normalize_reward=True),
    ),
    Preset(
        "vizdoom", "Schulman et al. 2017, table 5 (Atari), untuned; in colour, buttons together", DOOM,
        PIXELS | dict(steps=5_000_000, env_options=("stack_num=1", "use_combined_action=true")),
    ),
    Preset(
        "minigrid", "RL Starter Files (Willems), scripts/train.py, with the symbols as plain numbers",
        ("MiniGrid-", "BabyAI-"),
        dict(steps=1_000_000, envs=16, horizon=128, epochs=4, minibatches=8, lr=1e-3, anneal_lr=False, gamma=0.99,
             lam=0.95, entropy_coef=0.01, value_coef=1.0, images="numbers", normalize_observation=True),
    ),
    Preset(
        "racetrack", "highway-env, scripts/sb3_racetracks_ppo.py, longer, observations normalised", RACETRACK,
        DRIVING | dict(steps=300_000, gamma=0.9),
    ),
    Preset(
        "lanekeeping", "highway-env, scripts/sb3_racetracks_ppo.py, as racetrack; EnvPool ends no episode of it", LANE,
        DRIVING | dict(steps=300_000, gamma=0.9, max_episode_steps=200),
    ),
    Preset(
        "highway", "highway-env, scripts/sb3_highway_ppo.py, observations normalised", ROADS,
        DRIVING | dict(steps=200_000, gamma=0.8),
    ),
    Preset(
        "bipedalwalker", "RL Baselines3 Zoo, ppo.yml, BipedalWalker-v3, annealed", ("BipedalWalker-v",),
        dict(steps=5_000_000, envs=32, horizon=2048, epochs=10, minibatches=1024, lr=3e-4, gamma=0.999, lam=0.95,
             clip=0.18, value_coef=1.0, normalize_observation=True, normalize_reward=True),
    ),
)
# fmt: on
