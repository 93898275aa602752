"""A user's own encoder, core and policy learn, resume to the byte, load and act alike; what does not fit is said."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proximo
from proximo.batch import tree_map
from proximo.errors import CheckpointError, ConfigError, RunFolderError
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network as Numbers
from proximo.models.own import Own, Rows, own_core
from proximo.observations import zeros
from tests.conftest import SMALL, Command
from tests.test_compiled import needs_compiler
from tests.toys import Cue, Everything, Recall, Toy

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = dict(SMALL, quiet=True, sequence=8)


class Encoder(nn.Module):
    """Any space's leaves in a row, through a layer that is made when it is first used."""

    def __init__(self, space: gym.Space, width: int = 8) -> None:
        super().__init__()
        self.layer, self.seen = nn.LazyLinear(width), nn.Buffer(torch.zeros(()))

    def forward(self, observation: Tensor) -> Tensor:
        return self.layer(observation.to(self.layer.weight.dtype)).tanh()

    def observe(self, observation: Tensor, mask: Tensor) -> None:
        self.seen += mask.sum()


class Core(nn.Module):
    """A gated recurrent unit."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.features, self.cell = 16, nn.GRUCell(inputs, 16)

    def initial(self, lanes: int) -> tuple[Tensor, ...]:
        return (self.cell.weight_hh.new_zeros(lanes, 16),)

    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
        (hidden,), outputs = state, []
        for row, begins in zip(inputs, start, strict=True):
            hidden = self.cell(row, hidden * ~begins.unsqueeze(-1))
            outputs.append(hidden)
        return torch.stack(outputs), (hidden,)


class Network(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))
        self.critic = nn.Linear(inputs, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(observation), self.critic(observation).squeeze(-1)


def policy(observation_space: gym.Space, action_space: gym.Space) -> nn.Module:
    head: Any = proximo.head_for(action_space)
    assert observation_space.shape is not None
    return proximo.FeedForward(observation_space, Network(observation_space.shape[0], head.outputs), head)


def remembering(observation_space: gym.Space, action_space: gym.Space) -> nn.Module:
    numbers = Numbers(memory="gru", memory_size=8, hidden=(16,), sequence=8, normalize_observation=True)
    return ActorCritic(observation_space, action_space, numbers)


REMEMBERS = "policy that remembers"
OWN: dict[str, dict[str, Any]] = {
    "encoder": dict(encoder=Encoder),
    "core": dict(core=Core),
    "both": dict(encoder=Encoder, core=Core, trunk="separate"),
    "policy": dict(policy=policy),
    REMEMBERS: dict(policy=remembering),
}


def brought(own: dict[str, Any]) -> dict[str, Any]:
    return {part: make for part, make in own.items() if callable(make)}


LEARN: dict[str, Any] = dict(horizon=32, envs=8, epochs=4, minibatches=4, lr=1e-2, gamma=0.9, eval_episodes=20)


@pytest.mark.parametrize(
    ("name", "env"), [("encoder", Recall), ("core", lambda: Cue(2)), ("policy", Recall), (REMEMBERS, lambda: Cue(2))]
)
def test_it_learns_and_loads_and_acts_alike(name: str, env: Any, tmp_path: Path) -> None:
    more = {"core": dict(sequence=32, steps=8_000), REMEMBERS: dict(steps=16_000)}.get(name, dict(steps=4_000))
    run = proximo.train(env, **OWN[name], **LEARN, **more, out=tmp_path / "run", quiet=True)
    score = proximo.evaluate(run.folder, 40, env=env, **OWN[name])
    assert score.mean > 0.95
    loaded = proximo.load(run.folder, **OWN[name])
    run.agent.reset()
    shown = np.random.default_rng(0).normal(size=(3, 50, *(run.agent.observation_space.shape or ())))
    for observation in shown.clip(-1, 1):
        np.testing.assert_array_equal(loaded.act(observation), run.agent.act(observation))


class Tires(Encoder):
    """Its memory of the run is full after some updates."""

    left = 3

    def observe(self, observation: Tensor, mask: Tensor) -> None:
        if self.left == 0:
            raise RuntimeError("no room")
        self.left -= 1
        super().observe(observation, mask)


def test_what_was_learned_before_a_module_fails_is_kept_and_goes_on(tmp_path: Path) -> None:
    settings = LEARN | dict(checkpoint_every=10**9, steps=2_000, eval_every=0, quiet=True)
    with pytest.raises(RuntimeError, match="no room") as told:
        proximo.train(Recall, encoder=Tires, out=tmp_path / "run", **settings)
    assert "step 384 is saved, `proximo resume" in told.value.__notes__[0]
    kept = proximo.load(tmp_path / "run", encoder=Encoder).policy.state_dict()
    assert [int(tensor) for name, tensor in kept.items() if name.endswith(".seen")] == [384]
    run = proximo.resume(tmp_path / "run", env=Recall, encoder=Encoder, quiet=True)
    assert run.step > 1_700


def files(run: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in run.rglob("*.safetensors")}


COMPILED = pytest.param(dict(compile="on"), marks=[needs_compiler, pytest.mark.slow])


@pytest.mark.parametrize("more", [dict(), dict(max_kl=1e-3), COMPILED])
@pytest.mark.parametrize("name", OWN)
def test_it_resumes_to_the_byte(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    """The checkpoints after the second are taken away, as if the run had been killed there."""
    settings = {k: v for k, v in (TINY | more).items() if k != "sequence" or "policy" not in name}
    settings |= dict(checkpoint_every=128, epochs=1, minibatches=1, horizon=16)
    run = proximo.train(Toy, **OWN[name], **settings, out=tmp_path / "whole")
    assert json.loads((run.folder / "config.json").read_text())["yours"] == list(Own(**brought(OWN[name])).names)
    shutil.copytree(run.folder, tmp_path / "broken")
    later = sorted((tmp_path / "broken" / "checkpoints").iterdir())[2:]
    assert len(later) >= 2
    for path in later:
        shutil.rmtree(path)
    torch.manual_seed(7)
    again = proximo.resume(tmp_path / "broken", env=Toy, quiet=True, **brought(OWN[name]))
    assert again.step == run.step
    assert files(tmp_path / "broken") == files(run.folder)
    if name == "encoder":
        assert run.policy.state_dict()["trunk.encoder.encoder.seen"] == run.step


def test_weights_may_be_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, space: gym.Space) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
            self.two.weight = self.one.weight

        def forward(self, observation: Tensor) -> Tensor:
            return self.two(self.one(observation).relu())

    run = proximo.train(Toy, encoder=Tied, **TINY, out=tmp_path / "run")
    loaded = proximo.load(run.folder, encoder=Tied).policy.state_dict(keep_vars=True)
    one, two = (loaded[f"trunk.encoder.encoder.{name}.weight"] for name in ("one", "two"))
    assert one is two
    assert torch.equal(one, run.policy.state_dict()["trunk.encoder.encoder.one.weight"])


def test_training_again_gives_the_same_weights(tmp_path: Path) -> None:
    one, two = (files(proximo.train(Toy, **OWN["both"], **TINY, out=tmp_path / name).folder) for name in ("one", "two"))
    assert one == two
    torch.manual_seed(0)
    before = torch.get_rng_state()
    proximo.load(tmp_path / "one", **brought(OWN["both"]))
    assert torch.equal(torch.get_rng_state(), before)


class Peeks(Encoder):
    def forward(self, observation: Tensor) -> Tensor:
        return super().forward(observation) * (1.0 if observation.sum().item() < 1e9 else 0.0)


@needs_compiler
def test_what_cannot_be_traced_trains_uncompiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = TINY | dict(compile="on", steps=128, minibatches=1)
    with caplog.at_level(logging.WARNING, "proximo"):
        compiled = proximo.train(Toy, encoder=Peeks, **settings, out=tmp_path / "on")
    said = [line for line in caplog.messages if "runs uncompiled" in line]
    assert sorted(line.split()[0] for line in said) == ["act", "gradient_steps", "judge"], said
    plain = proximo.train(Toy, encoder=Peeks, **settings | dict(compile="off"), out=tmp_path / "off")
    for name, tensor in plain.policy.state_dict().items():
        torch.testing.assert_close(compiled.policy.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_an_encoder_sees_rows_of_any_space_as_they_are_kept() -> None:
    shown: list[Any] = []

    class Sees(nn.Module):
        def __init__(self, space: gym.Space) -> None:
            super().__init__()

        def forward(self, observation: Any) -> Tensor:
            shown.append(observation)
            return observation["number"].sum(-1, keepdim=True)

    space = Everything.observation_space
    rows = Rows(Sees, space, normalize=False)
    assert rows.features == 1
    seen = tree_map(torch.from_numpy, zeros(space, 4, 2))
    seen["number"] = torch.arange(16.0).view(4, 2, 2)
    torch.testing.assert_close(rows(seen), seen["number"].sum(-1, keepdim=True))
    last = shown[-1]
    assert (last["picture"].shape, last["picture"].dtype) == ((8, 16, 16, 3), torch.uint8)
    assert (last["inner"][0].shape, last["inner"][1].dtype) == ((8, 5), torch.int64)
    scaled = Rows(Sees, space, normalize=True)
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[0, 0] = False
    scaled.observe(seen, mask)
    live = seen["number"][mask]
    want = (live - live.mean(0)) / live.var(0, unbiased=False).sqrt()
    torch.testing.assert_close(scaled(seen)[mask], want.sum(-1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert shown[-1]["picture"].dtype == torch.uint8


def layer(forward: Callable[[Any, Tensor], Any], *parts: nn.Module) -> Any:
    """A class of encoders with this forward."""

    class Made(nn.Module):
        def __init__(self, space: gym.Space) -> None:
            super().__init__()
            self.parts, self.note = nn.ModuleList(parts), nn.Buffer(torch.zeros(1))

        forward = lambda self, observation: given(self, observation)  # noqa: E731

    given = forward
    return Made


def raises(*args: Any) -> Any:
    raise KeyError("camera")


def moves(self: Any, x: Tensor) -> Tensor:
    self.note = self.note + 1
    return x


ENCODERS = {
    "raised KeyError": raises,
    "is made as int: it must be an nn.Module": lambda space: 3,
    "pass what makes one": nn.Linear(5, 2),
    "encoder is 'my.Encoder'": "my.Encoder",
    "forward raised|does not work": layer(lambda self, x: x @ x),
    r"torch.float32 \[3\] for features: they must be floats \[3, F\]": layer(lambda self, x: x.sum(-1)),
    r"torch.float32 \[5\] for features: they must be floats \[1, F\]": layer(lambda self, x: x.squeeze(0)),
    "torch.int64": layer(lambda self, x: x.long()),
    "gives tuple for features": layer(lambda self, x: (x, x)),
    "random numbers": layer(lambda self, x: self.parts[0](x), nn.Dropout(0.5)),
    "changes its buffer parts.0.num_batches_tracked": layer(lambda self, x: self.parts[0](x), nn.BatchNorm1d(5)),
    "changes its buffer note": layer(moves),
    "in place": layer(lambda self, x: x.add_(1)),
    "make it float32": layer(lambda self, x: self.parts[0](x.double()), nn.Linear(5, 2).double()),
}


@pytest.mark.parametrize("line", ENCODERS)
def test_what_is_no_encoder_is_refused_before_there_is_a_folder(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        proximo.train(Toy, encoder=ENCODERS[line], **TINY, out=tmp_path / "run")
    assert "encoder" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_batch_norm_that_is_frozen_is_taken(tmp_path: Path) -> None:
    frozen = layer(lambda self, x: self.parts[0](x), nn.BatchNorm1d(5).eval())
    assert proximo.train(Toy, encoder=frozen, **TINY, out=tmp_path / "run").update > 1


def test_an_encoder_that_insists_on_float32_is_refused_with_a_bound(tmp_path: Path) -> None:
    insists = layer(lambda self, x: self.parts[0](x.float()), nn.Linear(5, 2))
    with pytest.raises(ConfigError, match="cannot be evaluated in float64"):
        proximo.train(Toy, encoder=insists, **TINY, max_kl=0.01, out=tmp_path / "run")


class OneTrunk(Network):
    """Actor and critic on one layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(8, outputs)
        self.trunk = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.trunk(observation))


def one_trunk(observation_space: gym.Space, action_space: gym.Space) -> nn.Module:
    head: Any = proximo.head_for(action_space)
    assert observation_space.shape is not None
    return proximo.FeedForward(observation_space, OneTrunk(observation_space.shape[0], head.outputs), head)


def once(space: gym.Space, made: list[nn.Module] = []) -> nn.Module:  # noqa: B006
    """The same encoder for actor and critic."""
    made += [Encoder(space)] if not made else []
    return made[0]


@pytest.mark.parametrize("algo", ["trpo", "natural", "trpo_reuse"])
@pytest.mark.parametrize(
    ("own", "shared"),
    [(dict(policy=one_trunk), r"network\.trunk\.0\.bias"), (dict(encoder=once), r"trunk\S*\.encoder\.layer\.bias")],
    ids=["policy", "encoder"],
)
def test_what_actor_and_critic_share_would_leave_the_trust_region(
    algo: str, own: dict[str, Any], shared: str, tmp_path: Path
) -> None:
    numbers = dict(horizon=16, envs=2, steps=64, quiet=True, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=f"{algo} fits the value after the policy's step, and would move {shared}"):
        proximo.train(Toy, algo, **own, **numbers)
    assert not (tmp_path / "run").exists()


def test_a_shared_encoder_that_is_frozen_moves_nothing(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def __init__(self, space: gym.Space) -> None:
            super().__init__()
            assert space.shape is not None
            self.layer = nn.Linear(space.shape[0], 8).requires_grad_(requires_grad=False)

        def forward(self, observation: Tensor) -> Tensor:
            return self.layer(observation)

    one = Frozen(Toy().observation_space)
    numbers: dict[str, Any] = dict(horizon=16, envs=2, steps=64, quiet=True, minibatches=1)
    run = proximo.train(Toy, "trpo", encoder=lambda space: one, **numbers, out=tmp_path / "run")
    assert run.step > 32


@pytest.mark.parametrize("name", OWN)
def test_what_is_apart_takes_steps_of_trpo(name: str, tmp_path: Path) -> None:
    more = {} if "policy" in name else dict(sequence=8)
    numbers: dict[str, Any] = dict(horizon=16, envs=2, steps=64, quiet=True, minibatches=1)
    own = {part: make for part, make in OWN[name].items() if part != "trunk"}
    if name == REMEMBERS:
        own = dict(
            policy=lambda seen, acts: ActorCritic(seen, acts, Numbers(memory="gru", sequence=8, trunk="separate"))
        )
    run = proximo.train(Toy, "trpo", **own, **more, **numbers, out=tmp_path / "run")
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["kl_old"] <= 0.01
    assert last["step_size"] > 0


class Leaks(Core):
    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
        return super().forward(inputs, state, torch.zeros_like(start))


class LeaksIntoTheFirst(Core):
    """Right but for a start in the first row, which is the only row there is when it acts."""

    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
        return super().forward(inputs, state, torch.cat([torch.zeros_like(start[:1]), start[1:]]))


class Foresees(Core):
    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
        return super().forward(inputs.flip(0), state, start.flip(0))


class Grows(Core):
    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
        outputs, after = super().forward(inputs, state, start)
        return outputs, (*after, *after)


class Alone(Core):
    def forward(self, inputs: Tensor, state: Any, start: Tensor) -> Any:
        return super().forward(inputs, state, start)[0]


class Empty(Core):
    def initial(self, lanes: int) -> tuple[Tensor, ...]:
        return ()


CORES = {
    "lacks features, initial": lambda inputs: nn.Linear(inputs, 3),
    "for whole lanes than step by step": Leaks,
    "in row 0 too": LeaksIntoTheFirst,
    "no row sees a later one": Foresees,
    "another state": Grows,
    r"gives Tensor: it must give \(outputs, state\)": Alone,
    "initial": Empty,
}


@pytest.mark.parametrize("line", CORES)
def test_what_is_no_core_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        own_core(CORES[line], 5)


def spoiled(**changes: Any) -> Any:
    """A maker of policies of which these things are otherwise."""

    def make(observation_space: gym.Space, action_space: gym.Space) -> nn.Module:
        made = policy(observation_space, action_space)
        return type("Spoiled", (proximo.FeedForward,), changes)(made.space, made.network, made.head)  # type: ignore

    return make


class Half(nn.Module):
    def __init__(self, *spaces: gym.Space) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def act(self, observation: Tensor) -> None: ...


POLICIES = {
    "lacks sequence, initial, noise, to_env, value, evaluate, observe, device": Half,
    "no parameters": lambda *spaces: nn.Identity(),
    r"act gives Tensor: it must give \(action, memory\)": spoiled(act=lambda self, o, *rest: o),
    "values": spoiled(value=lambda self, o, *rest: o),
    "which action space": spoiled(to_env=lambda self, action: np.full(len(action), 17)),
    "evaluate gives NoneType": spoiled(evaluate=lambda self, batch: None),
    "distribution lacks sample": spoiled(evaluate=lambda self, b: (b.logp, b.value, 3)),
    "does not work: .*lambda.* raised TypeError": spoiled(noise=lambda self: 0),
}


@pytest.mark.parametrize("line", POLICIES)
def test_what_is_no_policy_is_refused(line: str, tmp_path: Path) -> None:
    settings = {k: v for k, v in TINY.items() if k != "sequence"}
    with pytest.raises(ConfigError, match=line):
        proximo.train(Toy, policy=POLICIES[line], **settings, out=tmp_path / "run")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: trained with an encoder of one's own, on a registered environment."""
    out = tmp_path_factory.mktemp("own") / "run"
    proximo.train("CartPole-v1", encoder=Encoder, **TINY | dict(steps=128), out=out)
    return out


VERBS: dict[str, Callable[..., Any]] = {
    "load": proximo.load,
    "evaluate": proximo.evaluate,
    "resume": lambda path, **own: proximo.resume(path, steps=1024, quiet=True, **own),
}


@pytest.mark.parametrize("verb", VERBS)
def test_it_must_be_given_again_and_no_other(verb: str, theirs: Path, trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"trained with an encoder of your own.*encoder=…"):
        VERBS[verb](theirs)
    with pytest.raises(ConfigError, match="without a core of your own: leave out core"):
        VERBS[verb](theirs, encoder=Encoder, core=Core)
    with pytest.raises(ConfigError, match="without an encoder of your own"):
        VERBS[verb](trained, encoder=Encoder)
    with pytest.raises(CheckpointError, match=r"trunk.encoder.encoder.layer.* is torch.float32 \[8.* needs .* \[9"):
        VERBS[verb](theirs, encoder=lambda space: Encoder(space, 9))


@pytest.mark.parametrize("argv", [["eval"], ["resume"], ["play", "--video", "x.mp4"]])
def test_the_command_says_that_it_needs_python(argv: list[str], theirs: Path, command: Command) -> None:
    done = command(argv[0], theirs, *argv[1:])
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "encoder of your own" in done.err
    assert "in Python pass it again" in done.err
    again = command("train", "--config", theirs / "config.json")
    assert again.err == f"proximo: {theirs}/config.json: its encoder was made in Python; use proximo.train(…)\n"


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (dict(core=Core, memory="lstm"), "memory is set, but you bring core"),
        (dict(encoder=Encoder, images="impala"), "images is set, but you bring encoder"),
        (dict(policy=policy, hidden=(8,)), "hidden is set, but you bring policy"),
        (dict(policy=policy, core=Core), "policy is the whole of it: leave out core"),
        (dict(core=Core, sequence=24), "sequences of 24 steps do not divide"),
    ],
)
def test_settings_of_what_is_brought_are_refused(wrong: dict[str, Any], line: str, tmp_path: Path) -> None:
    settings = {k: v for k, v in TINY.items() if k != "sequence"}
    with pytest.raises(ConfigError, match=line):
        proximo.train(Toy, **settings, **wrong, out=tmp_path / "run")


def test_a_config_that_names_code_is_refused(theirs: Path, tmp_path: Path) -> None:
    shutil.copytree(theirs, tmp_path / "run")
    config = json.loads((theirs / "config.json").read_text())
    for yours in (["os.system"], "encoder", {"encoder": "os.system"}, ["core", "encoder"], [[]], None):
        (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"yours": yours}))
        with pytest.raises((ConfigError, RunFolderError), match="yours"):
            proximo.load(tmp_path / "run", encoder=Encoder)


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = (ROOT / "docs" / "your-own-network.md").read_text(), dict[str, Any]()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "your-own-network.md", "exec"), names)
        assert names["run"].score.mean > 20
    assert names["agent"].act(np.zeros(4)) in (0, 1)
    assert len(os.listdir("runs")) == 3


def test_the_example_learns(tmp_path: Path) -> None:
    argv = [sys.executable, ROOT / "examples" / "own_network.py"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert float(done.stdout.split()[-4]) > 15, done.stdout
