"""A recorded call: which arguments are copied and when, what is left alone, that no result is anybody else's.

On the CPU a stand-in takes the place of the CUDA graph: it computes into the same tensors every time it is played.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from proximo import compiler
from proximo.compiler import compiling
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.replay import Replay, replayed
from proximo.sources.cartpole import CartPole
from proximo.sources.tensors import TensorSource
from tests.test_compiled import SPACES, needs_compiler, updated


class Recorder:
    """Stands for `cuda_graph`: warms up, records, and plays into the tensors that the recording returned."""

    def __init__(self, warm_up: int = 3) -> None:
        self.recordings, self.warm_up = 0, warm_up

    def __call__(self, compute: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        self.recordings += 1
        for _ in range(self.warm_up):
            compute()
        outputs = compute()

        def play() -> None:
            for kept, new in zip(outputs, compute(), strict=True):
                kept.copy_(new)

        return play, outputs


def accumulate(x: Tensor, total: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Adds x + y to the total, in place."""
    total.add_(x + y)
    return total, x + y


def copies_of(replay: Replay) -> Callable[[], list[int]]:
    """The arguments that were copied since it was last asked."""
    versions = {i: place._version for i, place in replay.places.items()}

    def since() -> list[int]:
        changed = [i for i, place in replay.places.items() if place._version != versions[i]]
        versions.update({i: place._version for i, place in replay.places.items()})
        return changed

    return since


def test_it_computes_what_the_call_computes_and_state_changes_in_place() -> None:
    recorder = Recorder()
    replay, total, wanted = Replay(accumulate, [1], recorder), torch.zeros(3), torch.zeros(3)
    for k in range(5):
        x, y = torch.full((3,), float(k)), torch.full((3,), 10.0)
        wanted += x + y
        said = replay(x, total, y)
        assert torch.equal(total, wanted)
        assert torch.equal(said[0], wanted)
        assert torch.equal(said[1], x + y)
    assert recorder.recordings == 1


def test_only_what_changed_is_copied() -> None:
    replay, total = Replay(accumulate, range(1, 2), Recorder()), torch.zeros(3)
    x, y = torch.ones(3), torch.ones(3)
    replay(x, total, y)
    copied = copies_of(replay)
    replay(x, total, y)
    assert copied() == []
    x.add_(1)
    assert replay(x, total, y)[1].tolist() == [3, 3, 3]
    assert copied() == [0]
    y[1:].zero_()  # a view is the same memory, and counted
    assert replay(x, total, y)[1].tolist() == [3, 2, 2]
    assert copied() == [2]
    assert replay(x, total, y.clone())[1].tolist() == [3, 2, 2]
    assert copied() == [2]
    x.data = torch.zeros(3)
    assert replay(x, total, y)[1].tolist() == [1, 0, 0]


def test_memory_that_is_handed_out_again_is_another_tensor() -> None:
    """What is freed is allocated again, at the same address and with the same version."""
    replay, total = Replay(accumulate, [1], Recorder()), torch.zeros(3)
    memory, y = torch.zeros(4, 3), torch.zeros(3)
    addresses = set()
    for k in range(4):
        view = torch.from_numpy(memory.numpy())[0]  # versions of its own
        memory.numpy()[0] = k
        addresses.add((view.data_ptr(), view._version))
        assert replay(view, total, y)[1].tolist() == [k, k, k]
        del view
        gc.collect()
    assert len(addresses) == 1


def test_no_result_is_overwritten_by_the_next_call() -> None:
    replay, total = Replay(accumulate, [1], Recorder()), torch.zeros(2)
    results = [replay(torch.full((2,), float(k)), total, torch.zeros(2)) for k in range(4)]
    assert [said[1].tolist() for said in results] == [[k, k] for k in range(4)]
    assert [said[0].tolist() for said in results] == [[s, s] for s in (0, 1, 3, 6)]
    memory = {x.data_ptr() for said in results for x in said} | {total.data_ptr()}
    assert len(memory) == 9
    results[0][1].fill_(7)
    assert replay(torch.ones(2), total, torch.zeros(2))[1].tolist() == [1, 1]


def test_recording_leaves_state_and_generators_alone() -> None:
    def noisy(x: Tensor, state: Tensor) -> tuple[Tensor]:
        state.add_(torch.rand(2))
        return (state + x,)

    torch.manual_seed(0)
    first = torch.rand(2)
    torch.manual_seed(0)
    state = torch.zeros(2)
    assert torch.equal(Replay(noisy, [1], Recorder(5))(torch.zeros(2), state)[0], first)
    assert torch.equal(state, first)


def test_state_that_moved_is_recorded_anew() -> None:
    recorder = Recorder()
    replay, x = Replay(accumulate, [1], recorder), torch.ones(2)
    for total in (torch.zeros(2), torch.zeros(2)):
        for k in (1, 2):
            assert replay(x, total, x)[0].tolist() == [2 * k, 2 * k]
            assert total.tolist() == [2 * k, 2 * k]
    assert recorder.recordings == 2


def test_another_shape_is_no_silent_broadcast() -> None:
    replay, total = Replay(accumulate, [1], Recorder()), torch.zeros(3)
    replay(torch.ones(3), total, torch.ones(3))
    with pytest.raises(ValueError, match=r"argument 2 is \[1\], it was recorded as \[3\]"):
        replay(torch.ones(3), total, torch.ones(1))


def test_what_cannot_be_recorded_runs_without_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(compute: Callable[[], Sequence[Tensor]]) -> Any:
        compute()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    replay, total = Replay(accumulate, [1], fails), torch.zeros(2)
    with caplog.at_level(logging.WARNING, "proximo"):
        for k in (1, 2, 3):
            assert replay(torch.ones(2), total, torch.ones(2))[0].tolist() == [2 * k, 2 * k]
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.records[0].message


def test_on_the_cpu_nothing_is_recorded() -> None:
    assert replayed(accumulate, [torch.zeros(1)] * 3, [1]) is accumulate


@needs_compiler
@pytest.mark.parametrize("name", ["discrete", "box"])
def test_a_played_update_is_the_compiled_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, told = updated(True, SPACES[name])
    recorder = Recorder()
    monkeypatch.setattr(compiler, "replayed", lambda call, tensors, lasting: Replay(call, lasting, recorder))
    played, said = updated(True, SPACES[name])
    assert torch.equal(played, wanted)
    assert all(torch.equal(said[key], told[key]) for key in told)
    assert recorder.recordings >= 1


@needs_compiler
def test_a_played_collection_is_the_compiled_one_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proximo.sources.tensors.UNROLLED", 4)

    def batches() -> list[list[Tensor]]:
        torch.manual_seed(0)
        env, source = CartPole(3, limit=9), TensorSource(lambda seed: env, 16)
        network = Network(hidden=(8,), normalize_observation=True)
        policy, found = ActorCritic(env.single_observation_space, env.single_action_space, network), []
        with compiling(True):
            for seed in (1, 2):
                source.restart(seed)
                for _ in range(2):
                    batch = source.collect(policy)
                    policy.observe(batch)
                    found.append([*batch.leaves(), *(buffer.clone() for buffer in env.buffers())])
        return found

    wanted, recorder = batches(), Recorder()
    monkeypatch.setattr(compiler, "replayed", lambda call, tensors, lasting: Replay(call, lasting, recorder))
    for one, other in zip(batches(), wanted, strict=True):
        assert len(one) > 10
        assert all(map(torch.equal, one, other))
    assert recorder.recordings == 2  # the walk, and what the policy thinks of it
