"""Memory: whole lanes are single steps put together, and nothing crosses the start of an episode."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from proximo import compiler
from proximo.batch import leaves_of, tree_map, with_leaves
from proximo.compiler import compiling, fused
from proximo.errors import ConfigError
from proximo.models.memory import CORES, GRU, LSTM, Block, Core, State, Transformer

INPUTS = 3
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "lstm": ("lstm", dict(size=6)),
    "lstm-2": ("lstm", dict(size=5, layers=2)),
    "gru": ("gru", dict(size=6)),
    "gru-2": ("gru", dict(size=5, layers=2)),
    "transformer-1x2": ("transformer", dict(size=4, layers=1, window=2, heads=1)),
    "transformer-2x3": ("transformer", dict(size=4, layers=2, window=3, heads=2)),
    "transformer-3x2": ("transformer", dict(size=8, layers=3, window=2, heads=4)),
    "transformer-2x9": ("transformer", dict(size=4, layers=2, window=9, heads=2)),
}
every_core = pytest.mark.parametrize("name", CASES)
needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))


def core_for(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A core that begins anywhere: with biases, and with likings for distances."""
    torch.manual_seed(3)
    kind, sizes = CASES[name]
    core: Any = CORES[kind](INPUTS, **sizes)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.ndim < 2 or "nearness" in name_of(core, parameter) else None
    return core.to(dtype)


def name_of(module: nn.Module, wanted: Tensor) -> str:
    return next(name for name, parameter in module.named_parameters() if parameter is wanted)


@torch.no_grad()
def stepped(core: Core, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
    """One row at a time, as it is while collecting."""
    outputs = []
    for row, begins in zip(inputs.split(1), start.split(1), strict=True):
        output, state = core(row, state, begins)
        outputs.append(output)
    return torch.cat(outputs), state


def somewhere(core: Core, lanes: int) -> State:
    """The state of lanes that have gone for a while, with starts on the way."""
    inputs = torch.randn(5, lanes, INPUTS, dtype=torch.float64)
    start = torch.rand(5, lanes) < 0.15
    dtype = leaves_of(core.initial(1))[0].dtype
    return stepped(core, inputs.to(dtype), core.initial(lanes), start)[1]


def assert_same(one: Any, other: Any, atol: float) -> None:
    for a, b in zip(leaves_of(one), leaves_of(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@every_core
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_whole_lanes_are_single_steps_for_every_pattern_of_starts(name: str, dtype: torch.dtype, atol: float) -> None:
    core = core_for(name, dtype)
    start = torch.tensor(list(product([False, True], repeat=6))).t()
    inputs, state = torch.randn(6, 64, INPUTS, dtype=dtype), somewhere(core, 64)
    for before in (state, core.initial(64)):
        assert_same(core(inputs, before, start), stepped(core, inputs, before, start), atol)


@every_core
@given(data=st.data(), steps=st.integers(1, 20), lanes=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_wherever_it_is_cut_the_numbers_are_the_same(name: str, data: st.DataObject, steps: int, lanes: int) -> None:
    core = core_for(name)
    flags = data.draw(st.lists(st.booleans(), min_size=steps * lanes, max_size=steps * lanes))
    cut = data.draw(st.integers(0, steps - 1))
    start, inputs = torch.tensor(flags).view(steps, lanes), torch.randn(steps, lanes, INPUTS, dtype=torch.float64)
    before = somewhere(core, lanes)
    outputs, after = core(inputs, before, start)
    assert_same((outputs, after), stepped(core, inputs, before, start), 1e-10)
    if cut:
        first, between = core(inputs[:cut], before, start[:cut])
        second, end = core(inputs[cut:], tree_map(Tensor.detach, between), start[cut:])
        assert_same((torch.cat([first, second]), end), (outputs, after), 1e-10)


@every_core
def test_a_state_is_of_the_open_episode_alone(name: str) -> None:
    core = core_for(name)
    inputs, start = torch.randn(5, 3, INPUTS, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.bool)
    start[2] = True
    outputs, after = core(inputs, somewhere(core, 3), start)
    fresh, anew = core(inputs[2:], core.initial(3), start[2:])
    no_start, same = core(inputs[2:], core.initial(3), torch.zeros_like(start[2:]))
    assert_same((outputs[2:], after), (fresh, anew), 1e-10)
    assert_same((no_start, same), (fresh, anew), 1e-10)
    went_on, _ = core(inputs, somewhere(core, 3), torch.zeros_like(start))
    assert (went_on[2] - outputs[2]).abs().min() > 1e-6, "memory matters"


@every_core
def test_lanes_know_nothing_of_each_other(name: str) -> None:
    core = core_for(name)
    inputs, start, before = torch.randn(7, 5, INPUTS).double(), torch.rand(7, 5) < 0.3, somewhere(core, 5)
    outputs, after = core(inputs, before, start)
    order = torch.randperm(5)
    moved = core(inputs[:, order], tree_map(lambda x: x[order], before), start[:, order])
    assert_same(moved, (outputs[:, order], tree_map(lambda x: x[order], after)), 1e-12)
    alone = core(inputs[:, 2:3], tree_map(lambda x: x[2:3], before), start[:, 2:3])
    assert_same(alone, (outputs[:, 2:3], tree_map(lambda x: x[2:3], after)), 1e-12)


@every_core
def test_the_initial_state_is_what_comes_back_in_shape_and_is_zero(name: str) -> None:
    core = core_for(name)
    state = core.initial(4)
    outputs, after = core(torch.randn(2, 4, INPUTS).double(), state, torch.zeros(2, 4, dtype=torch.bool))
    assert outputs.shape == (2, 4, core.features)
    assert not any(leaf.any() for leaf in leaves_of(state))
    kinds = [[(leaf.shape, leaf.dtype) for leaf in leaves_of(tree)] for tree in (state, after)]
    assert kinds[0] == kinds[1]
    assert all(shape[0] == 4 for shape, _ in kinds[0])
    assert all(leaf.is_meta for leaf in leaves_of(core.to("meta").initial(2)))


@every_core
def test_no_gradient_crosses_a_start_and_some_flows_elsewhere(name: str) -> None:
    """Lane 0 begins anew at row 3, lane 1 does not."""
    core = core_for(name)
    inputs = torch.randn(4, 2, INPUTS, dtype=torch.float64, requires_grad=True)
    before = tree_map(lambda x: x.requires_grad_() if x.is_floating_point() else x, somewhere(core, 2))
    start = torch.zeros(4, 2, dtype=torch.bool)
    start[3, 0] = True
    given = [inputs, *(leaf for leaf in leaves_of(before) if leaf.requires_grad)]
    outputs, after = core(inputs, before, start)
    total = outputs[3].sin().sum() + sum(leaf.sin().sum() for leaf in leaves_of(after) if leaf.requires_grad)
    to_inputs, *to_state = torch.autograd.grad(total, given)
    assert torch.equal(to_inputs[:3, 0], torch.zeros(3, INPUTS).double())
    assert all(torch.equal(gradient[0], torch.zeros_like(gradient[0])) for gradient in to_state)
    assert to_inputs[2, 1].abs().min() > 1e-8
    assert to_inputs[3].abs().min() > 1e-8


@pytest.mark.parametrize("name", ["lstm-2", "gru-2", "transformer-2x3"])
def test_gradients_are_finite_differences(name: str) -> None:
    """Once, and twice for natural gradients: along two ways through inputs, state and parameters together."""
    core = core_for(name)
    before, start = somewhere(core, 2), torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]]).bool()
    names, parameters = zip(*core.named_parameters(), strict=True)
    point = [torch.randn(5, 2, INPUTS).double(), *leaves_of(before), *(p.detach() for p in parameters)]
    ways = [[torch.randn(x.shape).double() for x in point] for _ in range(2)]

    def outputs(along: Tensor) -> Tensor:
        moved = [
            x + along[0] * one + along[1] * other if x.is_floating_point() else x
            for x, one, other in zip(point, *ways, strict=True)
        ]
        inputs, *leaves = moved[: -len(names)]
        lent = dict(zip(names, moved[-len(names) :], strict=True))
        return torch.func.functional_call(core, lent, (inputs, with_leaves(before, leaves), start))[0]

    along = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, along, rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(outputs, along, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("ours", "theirs"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
def test_without_starts_it_is_torchs_own(ours: Any, theirs: Any, layers: int) -> None:
    torch.manual_seed(0)
    core, reference = ours(INPUTS, 6, layers).double(), theirs(INPUTS, 6, layers).double()
    with torch.no_grad():
        for i, layer in enumerate(core.layers):
            layer.input.weight.copy_(getattr(reference, f"weight_ih_l{i}"))
            layer.recurrent.weight.copy_(getattr(reference, f"weight_hh_l{i}"))
            layer.input.bias.copy_(getattr(reference, f"bias_ih_l{i}"))
            if ours is LSTM:  # whose two biases are one
                layer.input.bias.add_(getattr(reference, f"bias_hh_l{i}"))
            else:
                layer.recurrent.bias.copy_(getattr(reference, f"bias_hh_l{i}"))
    inputs, state = torch.randn(9, 4, INPUTS).double(), somewhere(core, 4)
    stacked = [torch.stack(tensors) for tensors in zip(*state, strict=True)]
    expected, ended = reference(inputs, tuple(stacked) if ours is LSTM else stacked[0])
    outputs, after = core(inputs, state, torch.zeros(9, 4, dtype=torch.bool))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    for one, other in zip(zip(*after, strict=True), ended if ours is LSTM else [ended], strict=True):
        torch.testing.assert_close(torch.stack(one), other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", [LSTM(5, 8), GRU(8, 8, layers=2)], ids=["lstm", "gru"])
def test_matrices_begin_orthogonal_and_lstms_remember(core: Any) -> None:
    for layer in core.layers:
        for matrix in (layer.recurrent.weight, layer.input.weight):
            for gate in matrix.detach().split(8):
                torch.testing.assert_close(gate.t() @ gate, torch.eye(gate.shape[1]), rtol=0, atol=1e-5)
        gates = layer.input.bias.detach().view(-1, 8)
        assert gates.sum().item() == (8 if isinstance(core, LSTM) else 0)
        assert (gates[1] == isinstance(core, LSTM)).all()


@pytest.mark.parametrize(("layers", "window"), [(1, 2), (1, 4), (2, 3), (3, 2)])
def test_a_row_sees_its_window_through_every_layer_and_no_more(layers: int, window: int) -> None:
    """The gradient of the last row to those before it: layers · (window − 1) rows back there is some, beyond none."""
    core = Transformer(INPUTS, size=8, layers=layers, window=window, heads=2).double()
    reach = layers * (window - 1)
    inputs = torch.randn(reach + 4, 1, INPUTS, dtype=torch.float64, requires_grad=True)
    outputs, _ = core(inputs, core.initial(1), torch.zeros(len(inputs), 1, dtype=torch.bool))
    seen = torch.autograd.grad(outputs[-1].sin().sum(), inputs)[0].abs().amax((1, 2))
    assert (seen[:3] == 0).all()
    assert (seen[3:] > 1e-12).all()


@every_core
def test_no_row_knows_the_rows_to_come(name: str) -> None:
    core = core_for(name)
    inputs, start, before = torch.randn(6, 1, INPUTS).double(), torch.zeros(6, 1).bool(), somewhere(core, 1)
    other = torch.cat([inputs[:4], inputs[4:] + 1])
    outputs, changed = core(inputs, before, start)[0], core(other, before, start)[0]
    assert torch.equal(outputs[:4], changed[:4])
    assert (outputs[4:] - changed[4:]).abs().min() > 1e-8


@every_core
def test_what_was_before_a_start_changes_nothing(name: str) -> None:
    core = core_for(name)
    inputs, start = torch.randn(6, 1, INPUTS).double(), torch.tensor([[0], [0], [0], [1], [0], [0]]).bool()
    outputs, after = core(inputs, somewhere(core, 1), start)
    other = torch.cat([1e3 * torch.randn(3, 1, INPUTS).double(), inputs[3:]])
    elsewhere = core(other, tree_map(lambda x: ~x if x.dtype == torch.bool else x - 5, somewhere(core, 1)), start)
    assert torch.equal(elsewhere[0][3:], outputs[3:])
    assert_same(elsewhere[1], after, 0.0)
    assert (elsewhere[0][:3] - outputs[:3]).abs().min() > 1e-8


def test_attention_is_that_of_the_formula() -> None:
    """One head at a time, one row at a time, only over what it may see."""
    torch.manual_seed(0)
    block = Block(size=6, window=3, heads=2, gain=1.0).double()
    nn.init.normal_(block.nearness)
    x, cache = torch.randn(1, 4, 6).double(), torch.randn(1, 2, 2, 2, 3).double()
    visible = torch.ones(1, 4, 6, dtype=torch.bool)
    visible[0, :, 1] = False
    outputs, after = block(x, cache, visible)
    query, key, value = block.mix(block.before_attention(x))[0].view(4, 3, 2, 3).unbind(1)
    keys, values = torch.cat([cache[0, 0], key]), torch.cat([cache[0, 1], value])
    rows = []
    for t in range(4):
        seen = [j for j in range(t, t + 3) if j != 1]
        heads = []
        for h in range(2):
            score = torch.stack([query[t, h] @ keys[j, h] / 3**0.5 + block.nearness[h, j - t] for j in seen])
            heads.append((score.exp() / score.exp().sum()) @ values[seen, h])
        rows.append(torch.cat(heads))
    x = x[0] + block.out(torch.stack(rows))
    torch.testing.assert_close(outputs[0], x + block.perceptron(block.before_perceptron(x)), rtol=0, atol=1e-12)
    torch.testing.assert_close(after[0], torch.stack([keys, values])[:, 4:], rtol=0, atol=0)


@every_core
def test_collecting_keeps_no_graph_and_looks_at_no_number(name: str) -> None:
    """On tensors without numbers it runs too; what it makes has the same shapes whatever is in them."""
    core = core_for(name).to("meta")
    state, shapes = core.initial(3), []
    for _ in range(4):
        with torch.no_grad():
            flags = torch.empty(1, 3, dtype=torch.bool, device="meta")
            outputs, state = core(torch.empty(1, 3, INPUTS, dtype=torch.float64, device="meta"), state, flags)
        shapes.append([leaf.shape for leaf in (outputs, *leaves_of(state))])
        assert not any(leaf.requires_grad for leaf in leaves_of(state))
    assert all(one == other for one, other in pairwise(shapes))


@every_core
def test_arguments_stay_as_they_were(name: str) -> None:
    core = core_for(name)
    inputs, start, before = torch.randn(3, 2, INPUTS).double(), torch.tensor([[1, 0]] * 3).bool(), somewhere(core, 2)
    copies = tree_map(Tensor.clone, (inputs, before, start))
    core(inputs, before, start)
    assert_same(copies, (inputs, before, start), 0.0)


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("lstm", dict(size=0), "size of the policy's memory is 0"),
        ("gru", dict(layers=-1), "layers of the policy's memory is -1"),
        ("transformer", dict(size=10, heads=4), "multiple"),
        ("transformer", dict(window=1), "window"),
        ("transformer", dict(heads=0), "heads of the policy's memory is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CORES[name](INPUTS, **sizes)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("lstm", {}),
        ("gru", {}),
        ("transformer", dict(window=8)),
        pytest.param("transformer", dict(window=3), marks=pytest.mark.slow),
    ],
)
def test_compiled_it_gives_the_same_numbers(name: str, window: dict[str, int]) -> None:
    torch.manual_seed(0)
    core: Any = CORES[name](INPUTS, size=16, **window)
    inputs, start, before = torch.randn(4, 2, INPUTS), torch.rand(4, 2) < 0.3, somewhere(core, 2)

    def evaluate(inputs: Tensor, start: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs, state = core(inputs, with_leaves(before, leaves), start)
        return outputs.view(-1, 16), *leaves_of(state)  # as towers see it

    example = [inputs, start, *leaves_of(before)]
    with compiling(True):
        call = fused(core, evaluate, example)
    for _ in range(2):
        expected = tree_map(Tensor.detach, evaluate(*example))
        assert_same(tuple(call(*example)), expected, 1e-5)
        example[0], example[1] = torch.randn(4, 2, INPUTS), torch.rand(4, 2) < 0.5
    assert getattr(call, "__wrapped__", None) is not evaluate, "it was compiled"
