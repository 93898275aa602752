"""How fast is it? Trains the same works with every peer, each in a virtual environment of its own.

    python benchmarks/speed.py [--works A B …] [--peers ours stable_baselines3 …] [--rounds 3] [--venvs runs/venvs]

A round runs every peer once on every work, one at a time, in an order that rotates from round to round; the seed is
the round's number. Each result is added to benchmarks/results/speed.json as it comes, and a benchmark that was
stopped goes on where it was (delete the file to start anew). Then speed.md and speed.png are written from it, which
`--table` does alone. A peer that does not install or run is reported and passed over. `--steps` shortens the works,
to try the scripts; give such a trial another `--results` folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from machine import machine
from speed_table import write_table
from works import WORKS

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONSTRAINTS = ROOT / "constraints.txt"
ALWAYS = ("torch==", "mujoco==")  # pins that are kept where a peer cannot be installed under all of them
LONGEST = 3600  # seconds a run may take
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))


@dataclass(frozen=True)
class Peer:
    """A script of benchmarks/peers, what it needs, and which works it can do."""

    name: str
    packages: tuple[str, ...]
    works: tuple[str, ...] = ("A", "B", "B8")
    torch: bool = True

    @property
    def script(self) -> Path:
        return HERE / "peers" / f"{self.name}.py"


OURS = ("--editable", f"{ROOT}[mujoco,envpool,atari]")
SB3 = ("stable-baselines3==2.9.2",)
PEERS = (
    Peer("ours", OURS, ("A", "A-tensor", "A-update", "B", "B8", "B-update", "C")),
    Peer("ours_bfloat16", OURS, ("C",)),
    Peer("ours_uncompiled", OURS, ("A", "A-tensor", "A-update", "B", "B8", "B-update")),
    Peer("stable_baselines3", (*SB3, "gymnasium[mujoco]", "ale-py", "opencv-python-headless"), ("A", "B", "B8", "C")),
    Peer("skrl", ("skrl==2.1.1", "gymnasium[mujoco]")),
    Peer("tianshou", ("tianshou==2.0.1", "gymnasium[mujoco]")),
    Peer("torchrl", ("torchrl==0.14.1", "gymnasium[mujoco]")),
    Peer("rsl_rl", ("rsl-rl-lib==5.5.1", "gymnasium[mujoco]"), ("B", "B8")),  # no discrete actions
    Peer("sample_factory", ("sample-factory==2.1.1",), ("A",)),  # its Gymnasium is older than HalfCheetah-v5
    Peer("rllib", ("ray[rllib]==2.60.0", "gymnasium[mujoco]")),
    Peer("jax_ppo", ("jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8"), ("A-tensor", "A-update", "B-update"), False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="*", choices=[p.name for p in PEERS], default=[p.name for p in PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--venvs", type=Path, default=ROOT / "runs" / "venvs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / "speed.json"
    if not args.table:
        peers = [peer for peer in PEERS if peer.name in args.peers]
        pythons = {peer.name: installed(peer, args.venvs.resolve()) for peer in peers}
        for number in range(args.rounds):
            for work in args.works:
                able = [peer for peer in rotated(peers, number) if work in peer.works]
                for peer in able:
                    if not done(path, peer.name, work, number, args.steps):
                        keep(path, measured(peer, pythons[peer.name], work, number, args.steps))
    write_table(path)


def rotated(peers: list[T], by: int) -> list[T]:
    """So that no peer always runs first, when the machine is coolest, or after the same other."""
    by %= max(1, len(peers))
    return peers[by:] + peers[:by]


def installed(peer: Peer, venvs: Path) -> Path | str:
    """The peer's Python; or, where it does not install, what pip said last.

    All of the repository's pins are tried first, then only those in ALWAYS.
    """
    home = venvs / peer.name
    python, mark, wanted = home / "bin" / "python", home / "installed.json", [*peer.packages]
    if mark.exists() and json.loads(mark.read_text()) == wanted:
        return python
    print(f"installing {peer.name} into {home}", flush=True)
    venv.create(home, with_pip=True, clear=home.exists())
    few = home / "pins.txt"
    few.write_text("\n".join(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith(ALWAYS)) + "\n")
    if peer.torch and (failure := pip(python, TORCH)):
        return failure
    if pip(python, "-c", str(CONSTRAINTS), *wanted) and (failure := pip(python, "-c", str(few), *wanted)):
        print(f"{peer.name} does not install: {failure}", flush=True)
        return f"does not install: {failure}"
    mark.write_text(json.dumps(wanted))
    return python


def pip(python: Path, *arguments: str) -> str | None:
    """Install; the last line of what pip says if it fails."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    return None if ran.returncode == 0 else last_line(ran.stderr or ran.stdout)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing was said)"


def measured(peer: Peer, python: Path | str, work: str, seed: int, steps: int | None) -> dict[str, Any]:
    """One run of one peer in a process of its own; where it fails, a row that says how."""
    row = {"peer": peer.name, "work": work, "seed": seed, "asked_steps": steps, "machine": machine()}
    if isinstance(python, str):
        return row | {"error": python}
    command = [str(python), str(peer.script), "--work", work, "--seed", str(seed)]
    command += [] if steps is None else ["--steps", str(steps)]
    row["load_before"] = round(os.getloadavg()[0], 2)
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, cwd=ROOT)
        if ran.returncode:
            return row | {"error": last_line(ran.stderr or ran.stdout)}
        return row | json.loads(last_output(ran.stdout))
    except (subprocess.TimeoutExpired, ValueError) as error:
        return row | {"error": last_line(str(error))}


def last_output(text: str) -> str:
    """The line that holds the result: the last that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["work"], row["peer"], row["seed"], row["asked_steps"]


def done(path: Path, peer: str, work: str, seed: int, steps: int | None) -> bool:
    """Whether this run is already there; one that failed is tried again."""
    return any(key(row) == (work, peer, seed, steps) and "error" not in row for row in read(path))


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add or replace one run's result, whole or not at all."""
    rows = [old for old in read(path) if key(old) != key(row)] + [row]
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(rows, indent=1) + "\n")
    aside.replace(path)
    rate = row.get("steps_per_second")
    got = row.get("error") or (f"{rate:,.0f} steps/s" if rate else f"{row['update_us']:,.0f} µs a minibatch")
    print(f"{row['work']} {row['peer']} seed {row['seed']}: {got}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
