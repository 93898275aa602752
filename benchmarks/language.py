"""How fast is language, against TRL? The same model, data and lengths, in one virtual environment, a process for each.

    python benchmarks/language.py [--works grpo dpo …] [--precisions float32 bfloat16] [--rounds 3] [--venvs runs/venvs]

A round runs every work with Proximo, with TRL, and with TRL in pieces, one after the other, in an order that rotates
from round to round; the seed is the round's number. Each result is added to benchmarks/results/language.json as it
comes, and a benchmark that was stopped goes on where it was (delete the file to start anew). Then language.md is
written from it, which `--table` does alone. `--parity` compares the losses of both on the same batches instead, and
keeps what it finds in language-parity.json beside it. `--python` names an interpreter that has both, in place of
an environment of the benchmark's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from language_table import write_table
from language_works import WORKS, Work
from machine import machine
from speed import HERE, LONGEST, ROOT, Peer, installed, last_line, last_output, read, rotated

BOTH = Peer("language", ("--editable", f"{ROOT}[language]", "trl==1.16.0"), tuple(WORKS))
PRECISIONS = ("float32", "bfloat16")
PEERS = {  # script, and how many sequences (or pairs) TRL evaluates at once
    "ours": ("ours_language.py", None),
    "trl": ("trl_language.py", None),
    "trl_pieces": ("trl_language.py", 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--venvs", type=Path, default=ROOT / "runs" / "venvs")
    parser.add_argument("--python", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    path, material = args.results / "language.json", args.venvs.resolve() / "language-material"
    if not args.table:
        python = args.python or installed(BOTH, args.venvs.resolve())
        if isinstance(python, str):
            sys.exit(python)
        made = f"from pathlib import Path; from language_works import material; material(Path({str(material)!r}))"
        subprocess.run([str(python), "-c", made], cwd=HERE, env=offline(), check=True)
        if args.parity:
            keep_parity(args.results / "language-parity.json", python, material)
        else:
            go(path, python, material, args)
    write_table(path)


def go(path: Path, python: Path, material: Path, args: argparse.Namespace) -> None:
    """All rounds."""
    for number in range(args.rounds):
        for work in (WORKS[name] for name in args.works):
            for precision in args.precisions:
                for peer in rotated([each for each in args.peers if sensible(each, work)], number):
                    if not done(path, (peer, work.name, precision, number)):
                        keep(path, measured(peer, python, work, precision, number, material))


def sensible(peer: str, work: Work) -> bool:
    """Whether pieces are smaller than the whole."""
    most = PEERS[peer][1]
    return most is None or work.rows * work.group > most


def offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measured(peer: str, python: Path, work: Work, precision: str, seed: int, material: Path) -> dict[str, Any]:
    """One run in a process of its own; where it fails, a row that says how."""
    script, pieces = PEERS[peer]
    row = {"peer": peer, "work": work.name, "precision": precision, "seed": seed, "machine": machine()}
    command = [str(python), str(HERE / "peers" / script), "--work", work.name, "--precision", precision]
    command += [
        "--material",
        str(material),
        "--seed",
        str(seed),
        *([] if pieces is None else ["--pieces", str(pieces)]),
    ]
    row["load_before"] = round(os.getloadavg()[0], 2)
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, cwd=ROOT, env=offline())
        if ran.returncode:
            return row | {"error": last_line(ran.stderr or ran.stdout)}
        return json.loads(last_output(ran.stdout)) | row
    except (subprocess.TimeoutExpired, ValueError) as error:
        return row | {"error": last_line(str(error))}


def keep_parity(path: Path, python: Path, material: Path) -> None:
    """The losses of both on the same batches."""
    command = [str(python), str(HERE / "peers" / "trl_parity.py"), "--material", str(material)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, cwd=ROOT, env=offline())
    if ran.returncode:
        sys.exit(last_line(ran.stderr or ran.stdout))
    path.write_text(json.dumps({"machine": machine(), **json.loads(last_output(ran.stdout))}, indent=1) + "\n")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["peer"], row["work"], row["precision"], row["seed"]


def done(path: Path, wanted: tuple[Any, ...]) -> bool:
    """Whether this run is already there; one that failed is tried again."""
    return any(key(row) == wanted and "error" not in row for row in read(path))


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add or replace one run's result, whole or not at all."""
    rows = [old for old in read(path) if key(old) != key(row)] + [row]
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(rows, indent=1) + "\n")
    aside.replace(path)
    got = row.get("error") or f"{row['seconds']:.3f} s a step, {row['memory_mb']:,} MB"
    print(f"{row['work']} {row['precision']} {row['peer']} seed {row['seed']}: {got}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
