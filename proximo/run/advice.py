"""A profile as a person reads it: a table, and what the numbers advise."""

from __future__ import annotations

import json
import os

from rich import box
from rich.console import Console
from rich.table import Table

from proximo import compiler
from proximo.observations import has_mask
from proximo.run.clock import BUFFERS, CHECKPOINTS, ENVIRONMENT, JUDGING, LOGGING, POLICY, TOGETHER, UPDATE
from proximo.run.machine import has_images
from proximo.run.profile import Profile
from proximo.run.spaces import space_from_json
from proximo.sources.backends import FEW_LANES, SLOW_STEP
from proximo.sources.envpool import envpool_ids
from proximo.sources.making import names_a_vector

MOST = 3  # sentences
LARGE, NOTABLE, SMALL = 0.4, 0.25, 0.1  # shares of the cycle from which a part is worth a sentence
NEAR = 2.0  # a gradient step within so many times its matrix products is near its limit
LONG_STEP = 5_000  # µs of a gradient step from which a second thread may be worth waking
SHORT_CALL = 100e-6  # seconds of a call of all lanes, below which most of it is the call
FEW, FEW_IN_TENSORS = 16, 256  # lanes
WAITED = "asking and waiting; it steps while the policy acts"
WAYS = {
    ENVIRONMENT: "stepped alone",
    POLICY: "asked alone",
    TOGETHER: "environment alone",
    JUDGING: "matrix products alone",
    UPDATE: "matrix products alone",
}


def show(p: Profile, form: str) -> None:
    """Print a profile as a "table" or as "json"."""
    if form == "json":
        print(json.dumps({**p.to_json(), "advice": advice(p)}))
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(*before(p), sep="\n")
    console.print(table(p))
    console.print(*after(p), "", *advice(p), sep="\n")


def before(p: Profile) -> list[str]:
    """What was timed."""
    c = p.config
    each = f"{counted(c.run.envs, 'lane')} × {c.algorithm.horizon:,} steps"
    how = f"backend {c.run.backend}, compile {c.run.compile}, {counted(c.run.threads, 'thread')}"
    found = [f"{c.env}: {each}, {how}; {p.cycles} cycles timed, {p.clock_share:.1%} for the clock taken off"]
    if p.compile_seconds is not None:
        found.append(f"compiling took {p.compile_seconds:.1f} s; less where it was done before")
    if TOGETHER in p.parts:
        found.append("environment and policy in one graph: only together can they be timed")
    return found


def after(p: Profile) -> list[str]:
    """What it comes to."""
    g = p.gradient_step
    slow = "" if g.uncompiled_us is None else f" (uncompiled {g.uncompiled_us:,.0f})"
    best = f"at best {g.arithmetic_us:,.0f}, of matrix products at {g.gflops:,.0f} GFLOP/s"
    lone = f"{p.environment_steps_per_second:,.0f} if only the environment took time"
    return [
        f"steps/s        {p.steps_per_second:,.0f}; {lone} (evaluations not counted)",
        f"gradient step  {g.us:,.0f} µs{slow}, {g.steps} a cycle, of {g.rows:,} rows each; {best}",
    ]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(p: Profile) -> Table:
    """A line for each part of the cycle."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("part of the cycle")
    for name in ("ms", "share", "ms at best"):
        shown.add_column(name, justify="right")
    shown.add_column("which is")
    for name, part in p.parts.items():
        best = "" if part.at_best_ms is None else f"{part.at_best_ms:,.2f}"
        way = WAITED if name == ENVIRONMENT and p.config.run.overlap == "on" else WAYS.get(name, "")
        shown.add_row(name, f"{part.ms:,.2f}", f"{part.share:.1%}", best, way)
    shown.add_section()
    shown.add_row("cycle", f"{p.cycle_ms:,.2f}", "100.0%")
    return shown


def advice(p: Profile) -> list[str]:
    """At most three sentences on what would make it faster, the largest part first."""
    about = (about_environment, about_update, about_lanes, about_writing)
    found = [said for each in about if (said := each(p)) is not None]
    return [text for _, text in sorted(found, reverse=True)[:MOST]] or ["No part stands out."]


Said = tuple[float, str] | None  # a share of the cycle, and what to do about it


def about_environment(p: Profile) -> Said:
    """Another backend, or more lanes where a call of them all costs little."""
    c, share = p.config, p.share(ENVIRONMENT)
    if share < LARGE:
        return None
    lanes, backend, a_call = c.run.envs, c.run.backend, p.parts[ENVIRONMENT].ms * 1e-3 / c.algorithm.horizon
    if c.run.overlap == "on":  # the part is what was waited for
        a_call = lanes / p.environment_steps_per_second
    masked = "observation" in c.spaces and has_mask(space_from_json(c.spaces["observation"]))
    together = c.registered and names_a_vector(c.env) and not masked
    a_lane, one_by_one = a_call / lanes, backend == "sync" and not together
    if one_by_one and c.registered and c.env in envpool_ids():
        more = "" if lanes >= FEW_LANES else f" with --envs {FEW_LANES} or more"
        way = f"--backend envpool{more} steps them in threads"
    elif one_by_one and a_lane > SLOW_STEP and cores() > 1:
        way = f"--backend async{' with more --envs' if lanes == 1 else ''} gives each lane a process"
    elif not one_by_one and a_call < SHORT_CALL and lanes <= FEW:
        way = f"most of a call for {counted(lanes, 'lane')} is so whatever their number, more --envs share it"
    else:
        way = "only a faster environment, or a faster machine, would help"
    return share, f"The environment takes {share:.0%} of the time, {a_lane * 1e6:,.0f} µs a step of one lane: {way}."


def about_update(p: Profile) -> Said:
    """Compiling, or why there is nothing to do."""
    g, run, share = p.gradient_step, p.config.run, p.share(UPDATE)
    near, missing = g.us < NEAR * g.arithmetic_us, compiler.missing()
    compilable = p.share(UPDATE, JUDGING, POLICY, TOGETHER)
    if has_images(p.config) and share >= LARGE and run.device == "cpu":
        return share, f"The update takes {share:.0%} of the time, most of it the image network: {for_images(p)}."
    if run.compile == "off" and missing is None and compilable >= LARGE and not near:
        says = f"Update and policy take {compilable:.0%} of the time and are not compiled"
        how = f"a gradient step takes {g.us:,.0f} µs, its matrix products {g.arithmetic_us:,.0f}"
        return compilable, f"{says} ({how}): --compile on pays in a long run, where auto does it."
    if share < LARGE:
        return None
    says = f"The update takes {share:.0%} of the time"
    if g.uncompiled_us is not None and g.uncompiled_us < g.us:
        return share, f"{says}, and more so compiled: --compile off."
    if near and g.us > LONG_STEP and run.threads < cores():
        return share, f"{says}, most of it matrix products of some size: --threads {cores()} may share them."
    if near:
        limit = "and is near the limit of its matrix products"
    elif run.compile == "on":
        limit = f"and is compiled, {g.us / max(g.arithmetic_us, 1e-3):.1f} times its matrix products at best"
    else:
        limit = f"and cannot be compiled, since {missing}" if missing else "and is not compiled"
    return share, f"{says} {limit}; fewer --epochs or --minibatches would be another algorithm, not a faster one."


def for_images(p: Profile) -> str:
    """What makes an image network faster."""
    run, ways = p.config.run, list[str]()
    if run.compile == "on":
        ways.append("--compile off, for what compiles it makes its convolutions no faster")
    if p.config.network.precision == "float32":
        ways.append("--precision bfloat16, where the processor knows it")
    if run.threads < cores():
        ways.append(f"--threads {cores()}")
    return (
        "; ".join(ways) or f"it is {p.gradient_step.us / p.gradient_step.arithmetic_us:.1f} times its products at best"
    )


def about_lanes(p: Profile) -> Said:
    """More lanes, where a step of them all costs about the same whatever their number."""
    c, g = p.config, p.gradient_step
    tensor = TOGETHER in p.parts
    names = (TOGETHER,) if tensor else (POLICY, BUFFERS)
    share, lanes = p.share(*names), c.run.envs
    a_step = share * p.cycle_ms * 1e3 / c.algorithm.horizon
    arithmetic = g.arithmetic_us / 3 / g.rows * lanes
    if share < NOTABLE or lanes > (FEW_IN_TENSORS if tensor else FEW) or arithmetic > a_step / 3:
        return None
    what = "Environment and policy" if tensor else "Acting and storing"
    return share, (
        f"{what} take {share:.0%} of the time, {a_step:,.0f} µs for a step of {counted(lanes, 'lane')}, most of it "
        "whatever their number: more --envs (with a shorter --horizon for batches of the same size)."
    )


def about_writing(p: Profile) -> Said:
    """Fewer lines and checkpoints."""
    share = p.share(LOGGING, CHECKPOINTS)
    if share < SMALL:
        return None
    if p.share(LOGGING) > p.share(CHECKPOINTS):
        return share, f"Logging takes {p.share(LOGGING):.0%} of the time: larger batches (--horizon) log less often."
    return share, f"Checkpoints take {p.share(CHECKPOINTS):.0%} of the time: raise --checkpoint-every."


def cores() -> int:
    return os.cpu_count() or 1
