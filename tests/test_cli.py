"""Every verb of the command does what it says, as a user would see it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proximo.algorithms import ALGORITHMS
from proximo.models.network import Network
from proximo.presets import PRESETS
from proximo.run import session
from proximo.run.config import RunConfig
from proximo.sources.backends import BACKENDS
from tests.conftest import SMALL, Command, Register, flags
from tests.toys import Toy

METRICS = (
    "step update seconds steps_per_second episodes return_mean length_mean policy_loss value_loss entropy kl "
    "clip_fraction explained_variance grad_norm lr"
)
FLAGS = [word for name, value in SMALL.items() for word in flags(name, value)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(folder: Path) -> dict[str, Any]:
    """Every setting in a run's config.json, flat."""
    config = json.loads((folder / "config.json").read_text())
    return config["run"] | config["algorithm"] | config["network"]


def weights(folder: Path) -> bytes:
    return (newest(folder) / "model.safetensors").read_bytes()


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("env", "preset", "backend"),
    [
        ("CartPole-v1", "cartpole", "sync"),
        ("Pendulum-v1", "pendulum", "envpool"),
        ("MountainCar-v0", "discrete", "envpool"),
        ("MountainCarContinuous-v0", "continuous", "envpool"),
    ],
)
def test_train_says_what_it_chose(env: str, preset: str, backend: str, command: Command, tmp_path: Path) -> None:
    done = command("train", env, *FLAGS, "--envs", 4, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert f"preset {preset} (fits the environment): {PRESETS[preset].source}\n" in done.err
    assert re.search(rf"^backend {backend}: \w.*\ndevice (cpu|cuda): \w", done.err, re.MULTILINE)
    assert re.search(r"^evaluation: -?\d+\.\d+ ± \d+\.\d+ over 1 episodes$", done.err, re.MULTILINE)
    assert re.search(r"^score +-?\d+\.\d+ ± \d+\.\d+ over 1 episodes$", done.out, re.MULTILINE)
    assert f"folder {tmp_path / 'run'}\n" in done.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"], config["algo"], config["preset"]) == (env, "ppo", preset)
    assert config["run"]["backend"] == backend


@pytest.mark.parametrize(
    ("algo", "preset", "note", "taken"),
    [
        ("ppo", "cartpole", "(as asked)", dict(horizon=32, epochs=20)),
        (
            "penalty",
            "cartpole",
            "its numbers are ppo's)",
            dict(horizon=32, epochs=20, minibatches=1, lr=1e-3, gamma=0.98),
        ),
        ("adaptive_lr", "acrobot", "its numbers are ppo's)", dict(horizon=256, epochs=4, lr=3e-4, lam=0.94)),
        ("penalty", "tuned", "(as asked)", dict(horizon=64, epochs=10)),
        ("ppo", "tuned", "its numbers are penalty's)", dict(horizon=64, epochs=10)),
        ("a2c", "cartpole", "steps, gamma of it, the rest is made for ppo", dict(horizon=5, lr=7e-4, gamma=0.98)),
        ("reinforce", "continuous", "the rest is made for ppo", dict(lr=1e-2, normalize_observation=True)),
    ],
)
def test_a_preset_gives_another_algorithm_what_fits_it(
    algo: str, preset: str, note: str, taken: dict[str, Any]
) -> None:
    config, [said] = session.preset_config("CartPole-v1", algo, preset)
    settings = config.to_json()
    assert note in said
    assert (settings["run"] | settings["algorithm"] | settings["network"]).items() >= taken.items()


def test_another_algorithm_is_trained_and_resumed(command: Command, tmp_path: Path) -> None:
    words = ["--steps", 640, "--horizon", 16, "--envs", 4, "--eval-episodes", 1, "--seed", 3, "--out", tmp_path / "run"]
    done = command("train", "CartPole-v1", "--algo", "penalty", *words, "--minibatches", 4, "--target-kl", 0.02)
    assert done.code == 0, done.err
    assert settings(tmp_path / "run")["target_kl"] == 0.02
    assert {row["beta"] for row in rows(tmp_path / "run" / "metrics.jsonl")} >= {1.0}
    assert all(row["kl_after"] <= 4 * 0.02 for row in rows(tmp_path / "run" / "metrics.jsonl"))
    assert command("resume", tmp_path / "run", "--steps", 1280, "--quiet").code == 0


def test_a_run_without_out_lands_under_runs(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("train", "CartPole-v1", *FLAGS, "--quiet")
    [folder] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"CartPole-v1-ppo-seed0-\d{8}-\d{6}.*", folder.name)
    assert done.err == ""
    assert [line.split()[0] for line in done.out.splitlines()] == ["score", "speed", "curve", "folder"]
    assert done.out.endswith(f"folder runs/{folder.name}\n")


def test_a_terminal_gets_a_live_panel(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    done = command("train", "CartPole-v1", *FLAGS, "--out", tmp_path / "run")
    assert (done.code, "\x1b" in done.out) == (0, False)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", done.err)
    for part in ("preset cartpole", f"ppo · CartPole-v1 · {tmp_path}"[:40], "policy loss", "512 steps", "evaluation"):
        assert part in shown, part


# fmt: off
ASKED: dict[str, Any] = dict(  # every setting there is, none at the value that the preset has
    steps=640, envs=4, seed=7, device="cpu", backend="async", compile="off", overlap="on",
    checkpoint_every=256, eval_every=320,
    eval_episodes=2, features_every=64, max_episode_steps=60, env_options=["g=9.5"], threads=2, max_kl=0.7,
    stop_drift=90.0, drift_reference="reference", horizon=16, gamma=0.9, normalize_reward=False, lam=0.7, lr=0.02,
    anneal_lr=False, max_grad_norm=0.8, betas=[0.99, 0.98], epochs=2, minibatches=4, value_coef=0.6, entropy_coef=0.02,
    clip=0.3, anneal_clip=True, clip_high=0.4, value_clip=0.5, target_kl=1.5,
    hidden=[16, 8], activation="relu", layer_norm=True, normalize_observation=False, images="nature", channels="last",
    precision="bfloat16", frame_stack=2, trunk="separate", memory="transformer", memory_size=8, memory_window=4,
    sequence=8, distribution="squashed", state_std=True, log_std_init=-0.5,
)
# fmt: on


def test_every_flag_lands_in_the_configuration_and_in_the_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = (RunConfig, ALGORITHMS["ppo"].Config, Network)
    assert list(ASKED) == [field.name for owner in owners for field in dataclasses.fields(owner)]
    argv = [word for name, value in ASKED.items() for word in flags(name, value)]
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    network = [word for field in dataclasses.fields(Network) for word in flags(field.name, ASKED[field.name])]
    assert command("train", "Pendulum-v1", *FLAGS, *network, "--out", "reference", "--quiet").code == 0
    assert command("train", "Pendulum-v1", *argv, "--preset", "continuous", "--out", out, "--quiet").code == 0
    assert settings(out) == ASKED
    preset = session.preset_config("Pendulum-v1", "ppo", "continuous")[0].to_json()
    unasked = preset["run"] | preset["algorithm"] | preset["network"]
    assert [name for name in ASKED if unasked[name] == ASKED[name]] == []
    assert len(list((out / "checkpoints").iterdir())) == 4  # at 0, after 256 and 512, and at the end
    assert [row["episodes"] for row in rows(out / "eval.jsonl")] == [2, 2]
    assert max(row["lengths"][0] for row in rows(out / "eval.jsonl")) <= 60
    assert {row["lr"] for row in rows(out / "metrics.jsonl")} == {0.02}
    assert {row["max_kl"] for row in rows(out / "drift.jsonl")} == {0.7}


def test_a_run_folder_holds_what_is_promised(trained: Path) -> None:
    names = {"config.json", "metrics.jsonl", "eval.jsonl", "curve.png", "checkpoints"}
    [events] = {path.name for path in trained.iterdir()} - names
    assert re.fullmatch(r"events\.out\.tfevents\..*", events)

    metrics = rows(trained / "metrics.jsonl")
    assert [row["update"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert all(list(row)[:15] == METRICS.split() for row in metrics)
    assert all(0 < later["step"] - row["step"] <= 256 for row, later in pairwise(metrics))
    assert 2048 - 256 < metrics[-1]["step"] <= 2048
    assert all(isinstance(value, int | float) for row in metrics for value in row.values())

    [score] = rows(trained / "eval.jsonl")
    assert (score["step"], score["episodes"]) == (metrics[-1]["step"], 1)
    assert score["returns"] == score["lengths"] == [score["return_mean"]]  # CartPole pays 1 a step

    board = EventAccumulator(str(trained)).Reload()
    assert [event.step for event in board.Scalars("train/kl")] == [row["step"] for row in metrics]
    np.testing.assert_allclose([e.value for e in board.Scalars("train/lr")], [row["lr"] for row in metrics], rtol=1e-6)
    assert [event.value for event in board.Scalars("eval/return_mean")] == [score["return_mean"]]
    assert iio.imread(trained / "curve.png").shape[:2] == (540, 960)


def test_a_checkpoint_holds_what_is_promised(trained: Path) -> None:
    folders = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert folders[0] == "0" * 12
    assert int(folders[-1]) == rows(trained / "metrics.jsonl")[-1]["step"]
    for name in folders:
        assert re.fullmatch(r"\d{12}", name)
        files = {path.name: path.read_bytes() for path in (trained / "checkpoints" / name).iterdir()}
        manifest = json.loads(files.pop("MANIFEST.json"))
        assert set(files) == {"model.safetensors", "state.safetensors", "state.json"}
        assert {file: entry["sha256"] for file, entry in manifest["files"].items()} == {
            file: hashlib.sha256(data).hexdigest() for file, data in files.items()
        }
        versions = {"proximo": "0.1.0", "torch": torch.__version__, "gymnasium": gym.__version__}
        assert manifest["versions"] == versions
        assert json.loads(files["state.json"])["step"] == int(name)


def test_a_config_repeats_a_run_and_flags_stand_over_it(command: Command, trained: Path, tmp_path: Path) -> None:
    config, same, other = trained / "config.json", tmp_path / "same", tmp_path / "other"
    assert command("train", "--config", config, "--out", same, "--quiet").code == 0
    assert (same / "config.json").read_bytes() == config.read_bytes()
    assert weights(same) == weights(trained)
    words = ["--seed", 3, "--lr", 0.5, "--steps", 512, "--normalize-observation"]
    assert command("train", *words, "--config", config, "--out", other, "--quiet").code == 0
    changed = dict(seed=3, lr=0.5, steps=512, normalize_observation=True)
    assert settings(other) == settings(trained) | changed


def test_flags_stand_over_a_preset(command: Command, tmp_path: Path) -> None:
    words = [*FLAGS, "--preset", "acrobot", "--gamma", 0.5, "--no-normalize-reward"]
    assert command("train", "CartPole-v1", *words, "--out", tmp_path / "run", "--quiet").code == 0
    asked = dict(SMALL, gamma=0.5, normalize_reward=False)
    assert settings(tmp_path / "run").items() >= (PRESETS["acrobot"].settings | asked).items()


def test_resume_extends_a_run(command: Command, run: Path) -> None:
    before, evaluated = (run / "metrics.jsonl").read_text(), (run / "eval.jsonl").read_text()
    done = command("resume", run, "--steps", 3000)
    assert done.code == 0, done.err
    assert f"resuming {run} at step {int(newest(run).name):,}" not in done.err
    assert re.search(rf"^resuming {run} at step [\d,]+$", done.err, re.MULTILINE)
    assert f"folder {run}\n" in done.out
    assert (run / "metrics.jsonl").read_text().startswith(before)
    assert (run / "eval.jsonl").read_text().startswith(evaluated)
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert 3000 - 256 < steps[-1] == int(newest(run).name) <= 3000
    assert settings(run)["steps"] == 3000


def test_eval_in_text_and_json_is_deterministic(command: Command, trained: Path) -> None:
    text = command("eval", trained, "--episodes", 3)
    assert (text.code, text.err) == (0, "")
    assert (found := re.fullmatch(r"return (\d+\.\d) ± (\d+\.\d) over 3 episodes\n", text.out))
    first = command("eval", trained, "--episodes", 3, "--json")
    score = json.loads(first.out)
    assert (first.code, first.err, score["episodes"]) == (0, "", 3)
    assert score["return_mean"] == pytest.approx(np.mean(score["returns"]))
    assert (float(found[1]), float(found[2])) == pytest.approx((score["return_mean"], score["return_std"]), abs=0.05)
    assert command("eval", trained, "--episodes", 3, "--json") == first
    assert command("eval", newest(trained), "--episodes", 3, "--json") == first
    assert score["returns"][:1] == rows(trained / "eval.jsonl")[0]["returns"]
    untrained = command("eval", trained / "checkpoints" / ("0" * 12), "--episodes", 3, "--json")
    assert json.loads(untrained.out)["returns"] != score["returns"]


def test_eval_plays_other_episodes_with_another_seed(command: Command, trained: Path) -> None:
    of_run, other, again = (
        json.loads(command("eval", trained, "--json", *words).out)["returns"] for words in ((), *2 * (("--seed", 9),))
    )
    assert of_run != other == again


IDLE = {
    "--memory-size 8": "memory_size does nothing here: give --memory lstm, gru or transformer too",
    "--memory lstm --memory-window 8": "memory_window does nothing here: give --memory transformer too",
    "--hidden --layer-norm": "layer_norm does nothing here: give --hidden with a layer or more too",
    "--sequence 8": "sequence does nothing here: give --memory or --frame-stack too",
}


@pytest.mark.parametrize("words", IDLE)
def test_what_does_nothing_is_told(words: str, command: Command, tmp_path: Path) -> None:
    done = command("train", "CartPole-v1", *FLAGS, "--steps", 256, *words.split(), "--out", tmp_path / "run")
    assert (done.code, IDLE[words] in done.err) == (0, True)


def test_help_on_an_environment_shows_what_its_preset_gives(command: Command) -> None:
    shown = [command("train", *words, "--algo", "trpo", "--help").out for words in (("CartPole-v1",), ())]
    plain = [re.sub(r"[│\s]+", " ", text) for text in shown]
    horizons = [int(re.findall(r"two updates .PPO's T.\. \(default: (\d+)\)", text)[0]) for text in plain]
    preset = session.preset_config("CartPole-v1", "trpo", "auto")[0].algorithm
    assert horizons == [preset.horizon, ALGORITHMS["trpo"].Config().horizon]
    assert preset.horizon != ALGORITHMS["trpo"].Config().horizon


def test_an_environment_is_found_in_the_folder_where_the_command_runs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lying_here.py").write_text(
        "import gymnasium as gym\ngym.register('Lying-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    done = command("train", "lying_here:Lying-v0", *FLAGS, "--max-episode-steps", 20, "--out", "run")
    assert done.code == 0, done.err


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_play_writes_every_frame(suffix: str, command: Command, trained: Path, tmp_path: Path) -> None:
    video = tmp_path / "deep" / f"video{suffix}"
    done = command("play", trained, "--video", video, "--episodes", 2)
    returns = json.loads(command("eval", trained, "--episodes", 2, "--json").out)["returns"]
    frames = int(sum(returns))  # CartPole pays 1 a step; play and eval meet the same episodes
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{video}: {frames} frames, return {returns[0]:.1f}, {returns[1]:.1f}\n"
    if suffix == ".mp4":
        read = iio.imread(video)
        assert read.shape == (frames, 400, 600, 3)
        assert read.std() > 1
        assert iio.immeta(video)["fps"] == 50
    else:  # frames alike are one, shown longer
        with Image.open(video) as gif:
            assert gif.size == (600, 400)
            assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) == frames * 1000 / 50


def test_play_ends_episodes_where_training_did(
    command: Command, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proximo.run.play.LONGEST", 100)
    endless, out = register(lambda **kwargs: Toy(length=10**9)), tmp_path / "run"
    assert command("train", endless, *FLAGS, "--max-episode-steps", 25, "--out", out, "--quiet").code == 0
    assert "return 25.0 ± 0.0" in command("eval", out, "--episodes", 2).out
    assert "25 frames, return 25.0" in command("play", out, "--video", tmp_path / "video.mp4").out


def test_plot_groups_seeds_and_parts_settings(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, setting, png = tmp_path / "seed", tmp_path / "setting", tmp_path / "plots" / "all.png"
    config = ["--config", trained / "config.json", "--quiet"]
    assert command("train", *config, "--seed", 1, "--out", seed).code == 0
    assert command("train", *config, "--gamma", 0.5, "--out", setting).code == 0
    figures: list[Figure] = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *to, **how: (figures.append(self), write(self, *to, **how)))
    done = command("plot", trained, seed, setting, "--out", png)
    assert (done.code, done.out, done.err) == (0, f"{png}\n", "")
    assert iio.imread(png).ndim == 3
    [axes] = figures[0].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert [("2 seeds" in label, "seed 0" in label) for label in labels] == [(True, False), (False, True)]
    shutil.copytree(seed, tmp_path / "again")
    assert command("plot", trained, seed, tmp_path / "again", "--out", png).code == 0
    [label] = figures[1].axes[0].get_legend().get_texts()  # type: ignore[union-attr]
    assert label.get_text().endswith("· 2 seeds (3 runs)")


def test_list_names_everything_at_hand(command: Command) -> None:
    done = command("list")
    assert (done.code, done.err) == (0, "")
    for name in (*ALGORITHMS, *PRESETS, *BACKENDS, "CartPole-v1", "HalfCheetah-v5"):
        assert re.search(rf"(^|\s){re.escape(name)}(\s|$)", done.out), name


SETTINGS = " ".join(flags(name, True)[0] for name in ASKED)
VERBS = {
    "": "train resume eval play export plot list profile --debug",
    "train": f"ENV --algo --preset --out --config --quiet --seeds --jobs {SETTINGS}",
    "profile": f"ENV --algo --preset --config --json {SETTINGS}",
    "resume": "DIR --steps --env --quiet --jobs --stop-drift",
    "eval": "DIR --episodes --json --env",
    "play": "DIR --video --episodes --env",
    "export": "DIR --onnx --torch",
    "plot": "DIR --out --drift",
    "list": "--help",
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_flag(verb: str, command: Command) -> None:
    done = command(*verb.split(), "--help")
    assert (done.code, done.err) == (0, "")
    for word in VERBS[verb].split():
        assert re.search(rf"(^|[\s,]){word}\b", done.out), word


@pytest.mark.parametrize("program", [["-m", "proximo"], ["-c", "from proximo.cli import main; main()"]])
def test_the_command_stands_alone(program: list[str], trained: Path) -> None:
    argv = [sys.executable, *program, "eval", str(trained), "--episodes", "1", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["returns"] == rows(trained / "eval.jsonl")[0]["returns"]
    assert done.stderr == ""
