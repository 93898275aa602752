"""The bound on updates holds whatever an update did, and the ledger says what was."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import kl_div, logsigmoid

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.algorithms.ppo import PPO, PPOConfig
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.drift import TRIALS, backtrack, distances, exact_kl, kl, memory_of, spacing, tensors_of
from proximo.errors import CheckpointError, ConfigError
from proximo.models.actor_critic import ActorCritic
from proximo.models.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical
from proximo.models.normalize import RunningMoments, Unscaled
from proximo.run import ledger as ledgers
from proximo.run import plot
from proximo.run.checkpoint import all_of
from proximo.run.config import RunConfig
from proximo.run.ledger import Ledger, is_memory
from proximo.sources.acting import judging
from proximo.state import live_tensors
from proximo.threads import threads
from tests.conftest import Command, Complaint, rest_slow
from tests.test_compiled import SPACES, batch_for, needs_compiler, policy_for
from tests.test_suite import SMALL
from tests.toys import Recall, RecallContinuous, remembered

State = dict[str, Tensor]
QUIET: dict[str, Any] = dict(quiet=True, eval_every=0, eval_episodes=1, envs=4)
NORMAL: dict[str, Any] = dict(normalize_observation=True, hidden=(8,))
every = pytest.mark.parametrize("algo", ALGORITHMS)
either = pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=needs_compiler)])


def compiled(what: Any) -> Any:
    return pytest.param(what, "on", marks=needs_compiler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "drift.jsonl").read_text().splitlines()]


def snapshot(policy: ActorCritic) -> State:
    return {name: tensor.clone() for name, tensor in tensors_of(policy).items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@torch.no_grad()
def kl_of(policy: ActorCritic, old: State, new: State, batch: Batch) -> float:
    """Mean KL(old ‖ new) over the live rows: in float64, by torch's own distributions, from copies of the policy."""
    pair = []
    for state in (old, new):
        one = copy.deepcopy(policy)
        one.load_state_dict(state)
        observation = batch.observation[batch.mask].double()
        pair.append(one.double().evaluate(Batch(observation=observation, action=action(batch))).distribution)
    return sum_of_kls(*pair).item() / int(batch.mask.sum())


def action(batch: Batch) -> Tensor:
    live = batch.action[batch.mask]
    return live.double() if live.is_floating_point() else live


def sum_of_kls(one: Any, other: Any) -> Tensor:
    """Over all rows, by torch's own functions. (Its distributions say infinity where a probability underflows.)"""
    match one, other:
        case Categorical(p), Categorical(q):
            return kl_div(q, p, reduction="sum", log_target=True)
        case MultiCategorical(p), MultiCategorical(q):
            return torch.stack([sum_of_kls(*pair) for pair in zip(p, q, strict=True)]).sum()
        case Bernoulli(p), Bernoulli(q):
            both = [torch.stack([logsigmoid(x), logsigmoid(-x)]) for x in (q, p)]
            return kl_div(*both, reduction="sum", log_target=True)
        case Gaussian(mean, log_std), Gaussian(other_mean, other_log_std):
            normal = partial(Normal, validate_args=False)  # a deviation may underflow to 0
            pair = normal(mean, log_std.exp()), normal(other_mean, other_log_std.exp())
            return kl_divergence(*pair).sum()
    raise AssertionError(one)


class Nothing:
    """An algorithm without a state."""

    def state_tensors(self) -> State:
        return {}


def settled(
    ledger: Ledger, policy: ActorCritic, batch: Batch, update: Callable[[], None]
) -> tuple[State, dict[str, Any]]:
    """What an update that the ledger settles led to: the state that it asked for, and the row."""
    live = live_tensors(policy=policy, algorithm=Nothing())
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    update()
    asked = snapshot(policy)
    return asked, ledger.settle(batch, live, before)


@torch.no_grad()
def collected(policy: ActorCritic, observation: Tensor, mask: Tensor) -> Batch:
    drawn = policy.act(observation, policy.noise(*mask.shape))[0]
    batch = Batch(observation=observation, action=drawn, mask=mask)
    return batch.replace(**vars(judged(policy, batch)))


def judged(policy: ActorCritic, batch: Batch) -> Batch:
    """As a source judges what it collected."""
    batch = batch.replace(last=batch.observation[-1])
    return judging(policy, batch)(batch)


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


@torch.no_grad()
def scattered(policy: ActorCritic) -> None:
    """Any weights, and a normaliser that has seen something, or nothing yet."""
    size = 10 ** uniform(-1, 0.5)
    for parameter in policy.parameters():
        parameter.copy_(size * torch.randn_like(parameter))
    moments = policy.trunk.encoder.moments
    moments.load_state_dict(RunningMoments(len(moments.mean)).state_dict())
    if uniform(0, 1) < 0.7:
        moments.update(uniform(-3, 3) + 10 ** uniform(-2, 2) * torch.randn(50, len(moments.mean)))


@torch.no_grad()
def jump(policy: ActorCritic, batch: Batch) -> None:
    """Any update: a small step, a wild one, or one that is not finite."""
    size, spoiled = 10 ** uniform(-5, 4), uniform(0, 1)
    for parameter in policy.parameters():
        parameter.add_(size * torch.randn_like(parameter))
    policy.observe(batch)
    if spoiled < 0.06:
        tensors = list(policy.parameters())
        unlucky = tensors[int(uniform(0, len(tensors)))]
        unlucky.view(-1)[0] = [math.nan, math.inf, -math.inf][int(uniform(0, 3))]


@pytest.mark.parametrize("rows", [(1, 1), (8, 3)])
def test_a_narrow_policy_is_measured_in_double_precision(rows: tuple[int, int]) -> None:
    """float32 loses what a Gaussian of a small deviation moved: bounds just below the truth, 200 small steps each."""
    policy, mask, missed = policy_for(SPACES["box"]), torch.ones(rows, dtype=torch.bool), 0
    torch.manual_seed(3)
    for _ in range(200):
        scattered(policy)
        with torch.no_grad():
            policy.head.log_std.fill_(uniform(-10, -6))
        batch, before = collected(policy, torch.randn(*rows, 5), mask), snapshot(policy)
        step = [10 ** uniform(-8, -4) * torch.randn_like(parameter) for parameter in policy.parameters()]
        add_all(policy, step)
        true, asked = kl_of(policy, before, snapshot(policy), batch), snapshot(policy)
        measured = kl(policy, batch).item()
        policy.load_state_dict(before)
        if not 1e-5 < true < 1:
            continue
        bound = 0.85 * true
        missed += measured <= 0.9 * bound
        settled(Ledger(policy, RunConfig(max_kl=bound)), policy, batch, lambda: policy.load_state_dict(asked))  # noqa: B023
        assert kl_of(policy, before, snapshot(policy), batch) <= bound
    assert missed > 0  # which float32 alone would have let through


@torch.no_grad()
def add_all(policy: ActorCritic, step: list[Tensor]) -> None:
    for parameter, each in zip(policy.parameters(), step, strict=True):
        parameter.add_(each)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("compile", "cases"), [(False, 250), pytest.param(True, 60, marks=needs_compiler)])
def test_no_accepted_update_exceeds_the_bound(name: str, compile: bool, cases: int) -> None:
    """1,000 random cases, 250 for each kind of distribution, and 240 compiled ones."""
    policy, counts, ledger = policy_for(SPACES[name]), dict.fromkeys(("left", "cut", "undone"), 0), None
    torch.manual_seed(8)
    with compiling(compile):
        for _ in range(cases):
            scattered(policy)
            mask = torch.rand(8, 3) < uniform(0.1, 1.1)
            mask[0, 0] = True
            batch = collected(policy, 10 ** uniform(-1, 1) * torch.randn(8, 3, 5), mask)
            ledger = ledger or Ledger(policy, RunConfig(max_kl=1.0))
            bound = 10 ** uniform(-7, 1)
            ledger.config = RunConfig(max_kl=bound)
            before = snapshot(policy)
            asked, row = settled(ledger, policy, batch, lambda batch=batch: jump(policy, batch))
            now, alpha = snapshot(policy), row["alpha"]
            finite = all(tensor.isfinite().all() for tensor in asked.values())
            full = kl_of(policy, before, asked, batch) if finite else math.inf
            assert kl_of(policy, before, now, batch) <= bound
            if alpha == 1:
                assert same(now, asked)
            elif alpha == 0:
                assert same(now, before)
            else:
                for key, tensor in now.items():
                    torch.testing.assert_close(tensor, before[key] + alpha * (asked[key] - before[key]), msg=key)
            assert (alpha == 1) == (full <= bound), (full, bound)
            # float32: a mean of 10 against a deviation of 10⁻⁴ leaves two digits of a KL
            assert row["kl"] == pytest.approx(kl_of(policy, before, now, batch), rel=0.05, abs=2e-6)
            counts["left" if alpha == 1 else "cut" if alpha else "undone"] += 1
    assert min(counts.values()) > 0.02 * cases, counts


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_buffers_of_any_kind_are_looked_at(compile: bool) -> None:
    """Masks of bool and complex rotations, as transformers keep them, are no obstacle, and NaN among them is told."""
    policy = policy_for(SPACES["box"])
    policy.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool).triu())
    if not compile:
        policy.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0)))
    batch = collected(policy, torch.randn(8, 3, 5), torch.ones(8, 3, dtype=torch.bool))
    with compiling(compile):
        measure = distances(policy, snapshot(policy), batch)
    assert measure(batch) == pytest.approx((0, 0, 0), abs=1e-4)
    if not compile:
        with torch.no_grad():
            policy.turns[2] = complex(0, math.nan)
        assert all(map(math.isnan, measure(batch)))


def test_only_the_policys_own_numbers_are_looked_at() -> None:
    """Buffers may be parts of a memory that holds other things; parameters that an optimizer keeps are one vector."""
    policy = policy_for(SPACES["box"])
    PPO(policy, PPOConfig())
    scratch = torch.full((9,), math.nan)
    scratch[:6] = 1
    policy.register_buffer("low", scratch[:3])
    policy.register_buffer("high", scratch[3:6])
    batch = collected(policy, torch.randn(8, 3, 5), torch.ones(8, 3, dtype=torch.bool))
    measure, sizes = distances(policy, snapshot(policy), batch), [x.numel() for x in memory_of(policy)]
    assert sum(parameter.numel() for parameter in policy.parameters()) in sizes
    assert sum(sizes) == sum(x.numel() for x in tensors_of(policy).values() if x.is_floating_point())
    assert measure(batch) == pytest.approx((0, 0, 0), abs=1e-4)
    scratch[1] = math.inf
    assert all(map(math.isnan, measure(batch)))


@pytest.mark.parametrize("name", SPACES)
def test_exact_kl_is_torchs(name: str) -> None:
    policy, batch = policy_for(SPACES[name]), batch_for(policy_for(SPACES[name]))
    before = snapshot(policy)
    assert exact_kl(policy, before, batch) == 0
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert exact_kl(policy, before, batch) == pytest.approx(kl_of(policy, before, snapshot(policy), batch), rel=1e-9)


def test_an_update_is_cut_no_more_than_it_must() -> None:
    """On a path whose KL is the square of the way, the first α that is tried lies just within the bound."""
    live, before = {"x": torch.tensor([30.0]), "n": torch.tensor(3)}, {"x": torch.tensor([10.0]), "n": torch.tensor(1)}
    tried = []

    def measure() -> float:
        tried.append(((live["x"] - before["x"]).item() / 20) ** 2)
        return tried[-1]

    assert backtrack(live, before, 1.0, measure, 0.5) == (pytest.approx(0.95 * 0.5**0.5), tried[0])
    assert len(tried) == 1
    live = {"x": torch.tensor([30.0]), "n": torch.tensor(3)}
    assert backtrack(live, before, math.inf, lambda: tried.append(1.0) or math.nan, 0.5) == (0.0, 0.0)
    assert (len(tried), live["x"].item(), live["n"].item()) == (1 + TRIALS, 10.0, 1)


def test_a_cut_update_is_measured_once_for_each_length_that_is_tried() -> None:
    policy, seen = policy_for(SPACES["box"]), list[float]()
    batch = collected(policy, torch.randn(16, 4, 5), torch.ones(16, 4, dtype=torch.bool))

    def exact(*given: Any) -> float:
        seen.append(exact_kl(*given))
        return seen[-1]

    def update() -> None:
        with torch.no_grad():
            policy.head.log_std.add_(1)

    _, row = settled(Ledger(policy, RunConfig(max_kl=0.01), exact=exact), policy, batch, update)
    assert 0 < row["alpha"] < 1
    assert row["kl"] == seen[-1] <= 0.01
    assert all(kl > 0.01 for kl in seen[:-1])


def test_the_first_look_at_observations_is_cut_too_not_refused() -> None:
    """A normaliser that has seen nothing goes to what it saw in steps as small as the bound asks for."""
    policy = policy_for(SPACES["box"])
    with torch.no_grad():
        policy.actor[-1].weight.mul_(300)
        policy.trunk.encoder.moments.load_state_dict(RunningMoments(5).state_dict())
    batch = collected(policy, 30 + 5 * torch.randn(16, 4, 5), torch.ones(16, 4, dtype=torch.bool))
    before = snapshot(policy)
    asked, row = settled(Ledger(policy, RunConfig(max_kl=1e-5)), policy, batch, lambda: policy.observe(batch))
    assert kl_of(policy, before, asked, batch) > 1e-2
    assert 0 < row["alpha"] < 0.1
    assert 1e-6 < kl_of(policy, before, snapshot(policy), batch) <= 1e-5
    assert 0 < policy.trunk.encoder.moments.count < 64


@either
@pytest.mark.parametrize(("steps", "lanes", "apart"), [(19, 4, 1), (5, 16, 5), (128, 8, 5), (2048, 1, 5)])
def test_one_row_in_five_tells_the_drift(steps: int, lanes: int, apart: int, compile: str) -> None:
    """The update is measured on every row, the distance from the reference where it is shown."""
    policy = policy_for(SPACES["box"])
    batch = collected(policy, torch.randn(steps, lanes, 5), torch.rand(steps, lanes) < 0.9)
    first, ledger = snapshot(policy), Ledger(policy, RunConfig(max_kl=1e9))
    with compiling(compile == "on"):
        asked, row = settled(ledger, policy, batch, lambda: jump_a_little(policy))
    some = batch.flatten().map(lambda x: x[::apart])
    assert spacing(batch) == apart
    assert row["kl"] == pytest.approx(kl_of(policy, first, asked, batch), rel=1e-4)
    assert row["drift"] == pytest.approx(kl_of(policy, first, asked, some), rel=1e-4)
    assert (row["drift"] == pytest.approx(row["kl"], rel=1e-4)) == (apart == 1)


@torch.no_grad()
def jump_a_little(policy: ActorCritic) -> None:
    for parameter in policy.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


def test_what_is_remembered_does_not_move_with_the_policy() -> None:
    policy = policy_for(SPACES["box"])
    batch = batch_for(policy)
    for seen in (remembered(policy, batch), judged(policy, batch)):
        before = [part.clone() for part in seen.old]
        with torch.no_grad():
            policy.head.log_std.add_(1)
        assert all(map(torch.equal, seen.old, before))


Watched = list[tuple[Batch, State, State, State, State]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """What every update of a run met: the batch, and the run's tensors before it, as asked, after; and the first."""
    seen: Watched = []
    settle = Ledger.settle

    def watching(self: Ledger, batch: Batch, live: State, before: State) -> dict[str, Any]:
        before, asked = ({name: x.detach().clone() for name, x in tensors.items()} for tensors in (before, live))
        row = settle(self, batch, live, before)
        after = {name: x.detach().clone() for name, x in live.items()}
        seen.append((batch, before, asked, after, {name: x.clone() for name, x in self.reference.items()}))
        return row

    monkeypatch.setattr(Ledger, "settle", watching)
    return seen


def of_policy(tensors: State) -> State:
    return ledgers.part(tensors, "policy")


@pytest.mark.parametrize(
    ("algo", "env", "compile"),
    [
        *((algo, env, "off") for env in (Recall, RecallContinuous) for algo in ALGORITHMS),
        *rest_slow(ALGORITHMS, ("ppo", "trpo"), RecallContinuous, "on", marks=needs_compiler),
    ],
)
def test_every_algorithm_is_held_and_the_ledger_is_true(
    algo: str, env: type, compile: str, watched: Watched, tmp_path: Path
) -> None:
    """At a learning rate of a hundred times what is asked for in the suite, where there is one."""
    settings = {**SMALL[algo], **NORMAL, **QUIET}
    settings |= dict(lr=100 * settings["lr"]) if "lr" in settings else {}
    settings |= dict(lr_max=1.0) if hasattr(ALGORITHMS[algo].Config, "lr_max") else {}
    bound = 1e-3
    run = proximo.train(env, algo, steps=1024, max_kl=bound, compile=compile, out=tmp_path / "run", **settings)
    told, total = rows(run.folder), 0.0
    assert [row["update"] for row in told] == list(range(1, run.update + 1))
    assert len(told) == len(watched)
    for row, (batch, before, asked, after, reference) in zip(told, watched, strict=True):
        first, full, last = of_policy(before), of_policy(asked), of_policy(after)
        kl = kl_of(run.policy, first, last, batch)
        assert kl <= bound
        assert row["max_kl"] == bound
        assert row["kl"] == pytest.approx(kl, rel=1e-3, abs=2e-6)
        wanted = kl_of(run.policy, first, full, batch)
        assert row["kl_asked"] == pytest.approx(wanted, rel=1e-3, abs=2e-6)
        apart = spacing(batch)
        shown = batch if apart == 1 else batch.flatten().map(lambda x, apart=apart: x[::apart])
        assert row["drift"] == pytest.approx(kl_of(run.policy, reference, last, shown), rel=1e-3, abs=2e-6)
        total += row["kl"]
        assert row["kl_sum"] == pytest.approx(total, rel=1e-12)
        assert (row["alpha"] < 1) == (wanted > bound)
        memory = {name for name in before if is_memory(name)}
        assert all(torch.equal(after[name], (before if row["alpha"] < 1 else asked)[name]) for name in memory)
        rest = {name for name in before if name.startswith("algorithm.")} - memory
        assert all(torch.equal(after[name], asked[name]) for name in rest)
    assert same(watched[0][-1], watched[-1][-1]), "the reference stays"
    assert same(watched[0][-1], of_policy(watched[0][1])), "it is the policy that the run began with"
    assert min(row["alpha"] for row in told) < 1


@every
def test_every_optimizers_memory_goes_back(algo: str) -> None:
    policy = policy_for(SPACES["box"])
    algorithm: Any = ALGORITHMS[algo](policy, ALGORITHMS[algo].Config())
    live = live_tensors(algorithm=algorithm)
    memory = {tensor.data_ptr() for name, tensor in live.items() if is_memory(name)}
    for optimizer in vars(algorithm).values():
        if isinstance(getattr(optimizer, "state", None), dict):
            kept = {n: x for n, x in optimizer.state_tensors().items() if n != "lr"}
            assert kept
            assert {tensor.data_ptr() for tensor in kept.values()} <= memory, "name it `optimizer` in state_tensors"


def test_an_update_that_was_undone_leaves_no_trace() -> None:
    """What follows it is bit for bit what would have followed without it, but for the statistics of rewards."""
    ends, counts = [], []
    for disturbed in (False, True):
        policy = policy_for(SPACES["box"])
        algorithm = PPO(policy, PPOConfig(normalize_reward=True, anneal_lr=False, epochs=2))
        batch = collected(policy, torch.randn(16, 4, 5), torch.ones(16, 4, dtype=torch.bool))
        no = torch.zeros(16, 4, dtype=torch.bool)
        batch = batch.replace(reward=torch.randn(16, 4), start=no, terminated=no, truncated=no)
        ledger = Ledger(policy, RunConfig(max_kl=0.01))
        if disturbed:
            live = live_tensors(policy=policy, algorithm=algorithm)
            before = {name: tensor.detach().clone() for name, tensor in live.items()}
            algorithm.step(batch, 0.0)
            with torch.no_grad():
                policy.actor[0].weight[0, 0] = math.nan
            assert ledger.settle(batch, live, before)["alpha"] == 0.0
            assert same(of_policy(live), of_policy(before))
        counts.append(algorithm.reward_scale.moments.count.item())
        algorithm.reward_scale = Unscaled()
        torch.manual_seed(3)
        algorithm.step(batch, 0.0)
        ends.append(snapshot(policy) | algorithm.optimizer.state_tensors())
    assert same(*ends)
    assert counts == [0, 64]


@either
def test_a_bound_that_nothing_exceeds_changes_nothing(compile: str, tmp_path: Path) -> None:
    settings = dict(steps=1024, compile=compile, **QUIET, **NORMAL, **SMALL["ppo"])
    plain = proximo.train(Recall, out=tmp_path / "plain", **settings)
    held = proximo.train(Recall, out=tmp_path / "held", max_kl=1e6, **settings)
    assert same(snapshot(plain.policy), snapshot(held.policy))
    assert {row["alpha"] for row in rows(held.folder)} == {1.0}
    assert not (plain.folder / "drift.jsonl").exists()


@pytest.mark.parametrize(("algo", "compile"), [*((algo, "off") for algo in ALGORITHMS), compiled("ppo")])
def test_a_bounded_run_resumes_exactly(algo: str, compile: str, tmp_path: Path) -> None:
    settings = {**SMALL[algo], **NORMAL, **QUIET, "max_kl": 1e-3, "checkpoint_every": 512, "compile": compile}
    other = proximo.train(Recall, algo, steps=512, out=tmp_path / "other", **{**settings, "seed": 5})
    settings |= dict(drift_reference=other.folder)
    whole = proximo.train(Recall, algo, steps=2048, out=tmp_path / "whole", **settings)
    broken = proximo.train(Recall, algo, steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    shutil.rmtree(other.folder)  # the run has all that it needs
    proximo.resume(broken.folder, env=Recall, quiet=True)
    pairs = list(zip(all_of(whole.folder), all_of(broken.folder), strict=True))
    assert len(pairs) >= 4
    for one, two in pairs:
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (two / file).read_bytes()
    assert (whole.folder / "drift.jsonl").read_bytes() == (broken.folder / "drift.jsonl").read_bytes()
    told = rows(whole.folder)
    assert told[0]["drift"] != pytest.approx(told[0]["kl"], rel=1e-3), "from another policy than the first"


CARTPOLE = ["--envs", 4, "--horizon", 32, "--epochs", 4, "--minibatches", 2, "--lr", 0.01, "--eval-episodes", 1]
CARTPOLE += ["--compile", "off", "--steps", 4000, "--checkpoint-every", 1000, "--quiet"]


def test_a_run_that_strays_ends_and_says_how_to_go_on(command: Command, complaint: Complaint, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = command("train", "CartPole-v1", *CARTPOLE, "--stop-drift", 0.05, "--out", out)
    told = rows(out)
    assert (done.code, done.err) == (0, "")
    assert f"stopped at step {told[-1]['step']:,}, saved: drift {told[-1]['drift']:.3g} exceeds" in done.out
    assert [row["drift"] > 0.05 for row in told] == [False] * (len(told) - 1) + [True]
    assert int(all_of(out)[-1].name) == told[-1]["step"] < 3000
    assert f"`proximo resume {out} --stop-drift X` goes on" in complaint("resume", out)
    assert "stop_drift is 0.0: it must be greater than 0" in complaint("resume", out, "--stop-drift", 0)
    before = (out / "drift.jsonl").read_text()
    assert command("resume", out, "--stop-drift", 1e3, "--quiet").code == 0
    assert (out / "drift.jsonl").read_text().startswith(before)
    assert rows(out)[-1]["step"] > 3800
    assert json.loads((out / "config.json").read_text())["run"]["stop_drift"] == 1e3
    assert "is complete" in complaint("resume", out)
    with pytest.raises(CheckpointError, match="'ledger"):
        spoiled(out, tmp_path / "spoiled")


def spoiled(run: Path, at: Path) -> None:
    """A bounded run whose configuration no longer says so."""
    shutil.copytree(run, at)
    config = json.loads((at / "config.json").read_text())
    config["run"] |= dict(stop_drift=None, steps=8000)
    (at / "config.json").write_text(json.dumps(config))
    proximo.resume(at, quiet=True)


def test_seeds_that_stray_are_done_and_go_on(command: Command, complaint: Complaint, tmp_path: Path) -> None:
    out = tmp_path / "all"
    done = command("train", "CartPole-v1", *CARTPOLE, "--seeds", "0,1", "--stop-drift", 0.05, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "the drift of seed-0, seed-1 exceeds stop_drift" in done.out
    assert "--stop-drift X those that strayed" in complaint("resume", out)
    assert command("resume", out, "--stop-drift", 1e3, "--quiet").code == 0
    assert all(rows(out / seed)[-1]["step"] > 3800 for seed in ("seed-0", "seed-1"))


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured"
    proximo.train("CartPole-v1", steps=512, max_kl=1e-4, out=path, **QUIET, **SMALL["ppo"])
    return path


BAD = {
    "--max-kl 0": "max_kl is 0.0: it must be greater than 0",
    "--max-kl -1": "max_kl is -1.0: it must be greater than 0",
    "--max-kl nan": "max_kl is nan: .*finite",
    "--stop-drift inf": "stop_drift is inf: .*finite",
    "--stop-drift -0.5": "stop_drift is -0.5",
    "--drift-reference {none}": "drift_reference: .*none does not exist",
    "--drift-reference {tmp}": "drift_reference: .* is not a run",
    "--hidden 8 --drift-reference {run}": "another network .hidden .64, 64.",
    "--normalize-observation --drift-reference {run}": "another network .*normalize_observation False",
}


@pytest.mark.parametrize("flags", BAD)
def test_what_cannot_be_bounded_is_told_in_a_line(
    flags: str, complaint: Complaint, trained: Path, tmp_path: Path
) -> None:
    words = flags.format(none=tmp_path / "none", tmp=tmp_path, run=trained).split()
    assert re.search(BAD[flags], complaint(*words, train="CartPole-v1"))
    assert not (tmp_path / "new").exists()


def test_a_reference_in_other_spaces_is_refused(complaint: Complaint, trained: Path) -> None:
    for more in ([], ["--seeds", "0,1"]):
        said = complaint("--drift-reference", trained, *more, train="Acrobot-v1")
        assert "acts in other spaces, those of CartPole-v1" in said


def test_a_run_without_a_ledger_cannot_be_given_a_limit(trained: Path) -> None:
    with pytest.raises(ConfigError, match="drift is not known"):
        proximo.resume(trained, steps=4096, stop_drift=1.0, quiet=True)


def test_a_reference_may_be_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    first, settings = all_of(trained)[0], json.loads((trained / "config.json").read_text())
    assert settings["network"]["hidden"] == [64, 64]
    run = proximo.train("CartPole-v1", steps=512, drift_reference=first, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert run.ledger is not None
    assert same(run.ledger.reference, snapshot(proximo.load(first).policy))


GRU = dict(memory="gru", memory_size=8, sequence=16)


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [
        ({}, dict(log_std_init=-1.0), True),
        (dict(state_std=True), dict(state_std=True, log_std_init=-1.0), False),
        (GRU, GRU | dict(sequence=8), True),
        (GRU, GRU | dict(trunk="separate"), False),
        ({}, dict(trunk="separate", precision="bfloat16"), True),
        ({}, dict(activation="relu"), False),
        ({}, dict(distribution="squashed"), False),
    ],
)
def test_a_reference_fits_where_its_tensors_mean_the_same(
    theirs: dict[str, Any], ours: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    settings = dict(steps=128, **QUIET, **SMALL["ppo"])
    first = proximo.train(RecallContinuous, out=tmp_path / "first", **settings, **theirs)
    settings |= dict(drift_reference=first.folder, out=tmp_path / "run")
    if fits:
        run: Any = proximo.train(RecallContinuous, **settings, **ours)
        assert same(run.ledger.reference, snapshot(first.policy))
    else:
        with pytest.raises(ConfigError, match="another network"):
            proximo.train(RecallContinuous, **settings, **ours)


def test_ppo_on_vectors_may_be_trpos_reference(trained: Path, tmp_path: Path) -> None:
    settings = dict(steps=1024, drift_reference=trained, out=tmp_path / "run", **QUIET, **SMALL["trpo"])
    assert rows(proximo.train("CartPole-v1", "trpo", **settings).folder)


def test_plot_draws_drift(
    command: Command, complaint: Complaint, trained: Path, measured: Path, tmp_path: Path
) -> None:
    png = tmp_path / "drift.png"
    left_out = f"proximo: {trained} is not drawn: no drift was measured in it\n"
    assert command("plot", "--drift", trained, measured, "--out", png) == (0, f"{png}\n", left_out)
    assert iio.imread(png).std() > 1
    assert "no drift was measured in" in complaint("plot", "--drift", trained, "--out", png)


def test_the_plot_of_drift_is_what_the_ledger_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above what was done, points where more was asked, and the bound; below the drift, and its limit."""
    settings = {**SMALL["ppo"], **QUIET, "max_kl": 2e-3, "stop_drift": 50.0, "lr": 0.003}
    run = proximo.train("CartPole-v1", steps=2048, out=tmp_path / "run", **settings)
    figures = list[Any]()
    monkeypatch.setattr(plot, "write", lambda figure, out: figures.append(figure))
    plot.plot_drift([run.folder], tmp_path / "drift.png")
    told = rows(run.folder)
    (upper, lower), cut = figures[0].axes, [row for row in told if row["alpha"] < 1]
    assert 0 < len(cut) < len(told)

    def points(rows: list[dict[str, Any]], name: str) -> list[list[float]]:
        return [[row["step"], row[name]] for row in rows]

    line, dots, bound = (each.get_xydata().tolist() for each in upper.lines)
    assert (line, dots) == (points(told, "kl"), points(cut, "kl_asked"))
    assert [y for _, y in bound] == [2e-3, 2e-3]
    line, limit = (each.get_xydata().tolist() for each in lower.lines)
    assert line == points(told, "drift")
    assert [y for _, y in limit] == [50.0, 50.0]
