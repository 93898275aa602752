"""From what an environment shows to features: every kind of leaf, in trees of any depth, and stacks of frames."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from proximo.batch import leaves_of, tree_map, with_leaves
from proximo.compiler.trace import Trace
from proximo.errors import ConfigError, EnvFailure, ProximoError, UnknownName, UnsupportedSpace
from proximo.models.actor_critic import ActorCritic
from proximo.models.encoders import Choices, Encoding, TextEncoder, TreeEncoder, Vector, encoder_for
from proximo.models.images import ImageEncoder, impala, nature
from proximo.models.network import Network
from proximo.models.normalize import Normalizer
from proximo.observations import leaves, pointer, storage, text_codes, zeros


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


SPACES: dict[str, tuple[spaces.Space, int]] = {  # and their features
    "vector": (spaces.Box(-1, 1, (5,)), 5),
    "number": (spaces.Box(-1, 1, ()), 1),
    "matrix": (spaces.Box(-1, 1, (2, 3), np.float64), 6),
    "memory": (spaces.Box(0, 255, (12,), np.uint8), 12),
    "board": (spaces.Box(0, 2, (3, 3), np.uint8), 9),
    "gray": (image(10, 12), 256),
    "first": (image(3, 12, 10), 256),
    "last": (image(12, 10, 3), 256),
    "frames": (image(2, 12, 10, 3), 256),
    "large": (image(64, 64, 3), 512),
    "discrete": (spaces.Discrete(4, start=-1), 4),
    "embedded": (spaces.Discrete(600), 64),
    "multi discrete": (spaces.MultiDiscrete([[2, 3], [700, 4]], start=[[0, 5], [1, 0]]), 2 + 3 + 4 + 64),
    "multi binary": (spaces.MultiBinary(3), 3),
    "binary board": (spaces.MultiBinary([2, 3]), 6),
    "text": (spaces.Text(6, charset="abc"), 64),
}
DEEP = spaces.Dict(
    robot=spaces.Dict(
        arm=spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Dict(grip=spaces.Discrete(3), note=spaces.Text(4)))),
        camera=image(8, 8, 3),
    ),
    clock=spaces.Box(0, 1, (1,)),
)
ALL = {**{name: space for name, (space, _) in SPACES.items()}, "deep": DEEP}
every = pytest.mark.parametrize("space", ALL.values(), ids=ALL.keys())


def stored(space: spaces.Space, sample: Any) -> Any:
    """A sample of the space as it is stored: tensors [leaf shape]."""
    if isinstance(space, spaces.Dict):
        return {key: stored(part, sample[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stored(part, x) for part, x in zip(space.spaces, sample, strict=True))
    array = text_codes(space, [sample])[0] if isinstance(space, spaces.Text) else np.asarray(sample)
    return torch.from_numpy(np.array(array, storage(space).dtype))


def drawn(space: spaces.Space, *lead: int) -> Any:
    """Observations [*lead] drawn from the space."""
    space.seed(0)
    rows = [stored(space, space.sample()) for _ in range(int(np.prod(lead)))]
    columns = [torch.stack(column).unflatten(0, lead) for column in zip(*map(leaves_of, rows), strict=True)]
    return with_leaves(rows[0], columns)


def made(space: spaces.Space, **encoding: Any) -> Any:
    torch.manual_seed(0)
    return encoder_for(space, Encoding(**encoding))


@pytest.mark.parametrize("name", SPACES)
def test_every_kind_of_leaf_has_its_features(name: str) -> None:
    space, features = SPACES[name]
    encoder = made(space)
    assert encoder.features == features
    assert encoder(drawn(space, 2)).shape == (2, features)


@every
@pytest.mark.parametrize("normalize", [False, True])
def test_leading_dimensions_are_rows(space: spaces.Space, normalize: bool) -> None:
    encoder, observation = made(space, normalize=normalize), drawn(space, 3, 2)
    flat = encoder(tree_map(lambda x: x.flatten(0, 1), observation))
    assert flat.shape == (6, encoder.features)
    torch.testing.assert_close(encoder(observation), flat.unflatten(0, (3, 2)))
    one = encoder(tree_map(lambda x: x[1, 0], observation))
    torch.testing.assert_close(one, flat[2], rtol=1e-4, atol=1e-5)
    assert flat.isfinite().all()
    assert flat.dtype == torch.float32
    assert len(flat.unique(dim=0)) > 1, "different observations, the same features"


@every
def test_observations_stay_as_they_are_stored(space: spaces.Space) -> None:
    observation = drawn(space, 2)
    buffers = zeros(space, 2)
    for name, leaf, buffer in zip(leaves(space), leaves_of(observation), leaves_of(buffers), strict=True):
        wanted = storage(leaves(space)[name])
        assert (leaf.shape, leaf.numpy().dtype) == ((2, *wanted.shape), wanted.dtype)
        assert (buffer.shape, buffer.dtype) == (leaf.shape, wanted.dtype)
    before = tree_map(torch.clone, observation)
    made(space)(observation)
    torch.testing.assert_close(observation, before, rtol=0, atol=0)


@every
def test_gradients_reach_every_parameter(space: spaces.Space) -> None:
    encoder = made(space)
    if parameters := dict(encoder.named_parameters()):
        encoder(drawn(space, 4)).square().sum().backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@every
def test_encoders_can_be_traced(space: spaces.Space) -> None:
    encoder, observation = made(space, normalize=True), drawn(space, 2)

    def features(*tensors: Tensor) -> tuple[Tensor]:
        return (encoder(with_leaves(observation, tensors)) + 0,)

    assert Trace(features, leaves_of(observation)).results


# Box vectors: what they were before there were encoders


def test_a_vector_is_normalised_or_left_alone() -> None:
    space = SPACES["vector"][0]
    plain, normal = made(space), made(space, normalize=True)
    assert isinstance(plain, nn.Identity)
    assert not plain.state_dict()
    observation = drawn(space, 3)
    assert plain(observation) is observation
    assert isinstance(normal, Normalizer)
    assert list(normal.state_dict()) == ["moments.mean", "moments.variance", "moments.count"]
    names = set(ActorCritic(space, spaces.Discrete(2), Network(normalize_observation=True)).state_dict())
    assert {f"trunk.encoder.{name}" for name in normal.state_dict()} <= names


def test_every_box_that_is_no_image_has_its_own_statistics_of_live_rows() -> None:
    encoder, observation = made(DEEP, normalize=True), drawn(DEEP, 5, 2)
    mask = torch.tensor([[True, False], [True, True], [False, False], [True, True], [False, True]])
    encoder.observe(observation, mask)
    arm, clock = observation["robot"]["arm"][0], observation["clock"]
    for path, leaf in (("/robot/arm/0", arm), ("/clock", clock)):
        moments, live = encoder.leaves[path].moments, leaf[mask].double()
        torch.testing.assert_close(moments.mean, live.mean(0))
        torch.testing.assert_close(moments.variance, live.var(0, correction=0))
        assert moments.count == 6
    assert sum("count" in name for name in encoder.state_dict()) == 2


def test_a_flattened_box_is_normalised_too() -> None:
    space = SPACES["board"][0]
    encoder, observation = made(space, normalize=True), drawn(space, 50)
    assert observation.dtype == torch.uint8
    encoder.observe(observation, torch.ones(50, dtype=torch.bool))
    features = encoder(observation)
    torch.testing.assert_close(features.mean(0), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(9), rtol=0, atol=1e-5)


# Images


def test_the_networks_have_the_parameters_of_their_papers() -> None:
    """Counted by hand: filters · (inputs · kernel² + 1) for each layer."""
    counted = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1) + 512 * (64 * 7 * 7 + 1)
    assert counted == 1_684_128
    with torch.device("meta"):
        assert sum(p.numel() for p in nature(4, 84, 84).parameters()) == counted
    blocks = [4 * filters * (filters * 9 + 1) for filters in (16, 32, 32)]
    sections = 16 * (4 * 9 + 1) + 32 * (16 * 9 + 1) + 32 * (32 * 9 + 1)
    counted = sections + sum(blocks) + 256 * (32 * 11 * 11 + 1)  # 84 -> 42 -> 21 -> 11
    assert counted == 1_089_232
    with torch.device("meta"):
        assert sum(p.numel() for p in impala(4, 84, 84).parameters()) == counted


@pytest.mark.parametrize(("network", "side"), [("nature", 40), ("impala", 9)])
def test_the_order_of_channels_changes_nothing_else(network: str, side: int) -> None:
    first, last = made(image(3, side, side + 4), images=network), made(image(side, side + 4, 3), images=network)
    frames = made(image(1, side, side + 4, 3), images=network)
    assert list(first.state_dict()) == list(last.state_dict())
    last.load_state_dict(first.state_dict())
    frames.load_state_dict(first.state_dict())
    pixels = drawn(image(3, side, side + 4), 2)
    features = first(pixels)
    torch.testing.assert_close(last(pixels.movedim(1, 3)), features)
    torch.testing.assert_close(frames(pixels.movedim(1, 3).unsqueeze(1)), features)
    mirrored = first(pixels.flip(-1))
    assert (mirrored - features).abs().max() > 1e-3


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_a_network_computes_what_its_layers_say(network: str) -> None:
    """In float64, from the weights, channels in their plain order."""
    encoder, pixels = ImageEncoder((2, 38, 41), network), drawn(image(2, 38, 41), 2)
    weights = iter([p.detach().double() for p in encoder.parameters()])

    def conv(x: Tensor, stride: int, padding: int) -> Tensor:
        return torch.nn.functional.conv2d(x, next(weights), next(weights), stride, padding)

    x = pixels.double() / 255
    if network == "nature":
        for stride in (4, 2, 1):
            x = conv(x, stride, 0).clamp(min=0)
    else:
        for _ in range(3):
            x = torch.nn.functional.max_pool2d(conv(x, 1, 1), 3, 2, 1)
            for _ in range(2):
                x = x + conv(conv(x.clamp(min=0), 1, 1).clamp(min=0), 1, 1)
        x = x.clamp(min=0)
    dense, bias = next(weights), next(weights)
    wanted = (x.flatten(1) @ dense.T + bias).clamp(min=0)
    torch.testing.assert_close(encoder(pixels).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_features_begin_neither_large_nor_small(network: str) -> None:
    features = made(image(3, 64, 64), images=network)(drawn(image(3, 64, 64), 4))
    assert 0.2 < features.square().mean().sqrt() < 5


def test_the_stack_of_colour_frames_is_one_image_of_all_their_channels() -> None:
    stack, wide = made(image(2, 12, 10, 3)), made(image(6, 12, 10))
    wide.load_state_dict(stack.state_dict())
    frames = drawn(image(2, 12, 10, 3), 3)
    channels = torch.cat([frames[:, 0].movedim(-1, 1), frames[:, 1].movedim(-1, 1)], 1)
    torch.testing.assert_close(stack(frames), wide(channels))


@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 1), (4, 40, 40), (40, 40, 3)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_has_the_channels_innermost(shape: tuple[int, ...], precision: str) -> None:
    """Also of one channel, which lies in every order: 1.1 to 1.4 times as fast."""
    encoder, places = ImageEncoder(shape, "nature", precision=precision), list[int]()
    encoder.network[1].register_forward_pre_hook(lambda _, given: places.append(given[0].stride(1)))
    encoder(drawn(image(*shape), 2))
    assert places == [1]


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_bfloat16_sees_what_float32_sees_but_for_its_digits(network: str) -> None:
    torch.manual_seed(0)
    plain = ImageEncoder((84, 84, 4), network)
    brief = ImageEncoder((84, 84, 4), network, precision="bfloat16")
    brief.load_state_dict(plain.state_dict())
    picture = torch.randint(0, 256, (3, 84, 84, 4), dtype=torch.uint8)
    wanted, got = plain(picture), brief(picture)
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).norm() < 0.02 * wanted.norm()


def test_channels_can_be_said_where_they_cannot_be_told() -> None:
    for channels, wanted in (("first", (3, 64, 3)), ("last", (3, 3, 64))):
        assert ImageEncoder((3, 64, 3), channels=channels).image == wanted
    assert ImageEncoder((84, 84, 1), "nature").image == (1, 84, 84)
    assert ImageEncoder((4, 84, 84, 1), "nature").image == (4, 84, 84)
    assert ImageEncoder((4, 3, 16, 16)).image == (12, 16, 16)


@pytest.mark.parametrize("sides", [(64, 64), (63, 64), (7, 7)])
def test_small_images_get_the_network_for_small_images(sides: tuple[int, int]) -> None:
    assert made(image(3, *sides)).features == (512 if min(sides) >= 64 else 256)


# Choices and texts


def test_one_hot_by_hand() -> None:
    two = made(spaces.MultiDiscrete([2, 3], start=[0, 5]))
    assert two(torch.tensor([[1, 5], [0, 7]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    one = made(spaces.Discrete(3, start=-1))
    assert one(torch.tensor([[-1, 1]])).tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert not two.state_dict()
    assert made(SPACES["multi binary"][0])(torch.tensor([1.0, 0, 1])).tolist() == [1, 0, 1]


def test_many_options_are_rows_of_one_table() -> None:
    space = spaces.MultiDiscrete([600, 2, 700], start=[10, 0, 0])
    encoder = made(space)
    table = encoder.embedding.weight
    assert table.shape == (1300, 64)
    features = encoder(torch.tensor([12, 1, 699]))
    torch.testing.assert_close(features, torch.cat([torch.tensor([0.0, 1.0]), table[2], table[600 + 699]]))


def test_text_codes_by_hand() -> None:
    space = spaces.Text(4, min_length=0, charset="cab")
    assert text_codes(space, ["abc", "", "ca"]).tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [3, 1, 0, 0]]
    assert text_codes(space, []).shape == (0, 4)
    with pytest.raises(EnvFailure, match=r"'a\?b!'.*no '!', '\?'"):
        text_codes(space, ["abc", "a?b!"])
    with pytest.raises(EnvFailure, match="text of 5 characters, its Text space says at most 4"):
        text_codes(space, ["ababa"])


@pytest.mark.parametrize("codes", [[2, 1, 3, 3], [3]])
def test_text_features_by_hand(codes: list[int]) -> None:
    """The mean over the text of the ReLU of a sum over five neighbours, one place at a time."""
    torch.manual_seed(0)
    encoder = TextEncoder(3, 6).double()
    embedded = [encoder.characters.weight[c] + encoder.places.weight[i] for i, c in enumerate(codes)]
    weight, bias = encoder.convolution.weight, encoder.convolution.bias
    total = torch.zeros(64).double()
    for place in range(len(codes)):
        near = [(k, place + k - 2) for k in range(5) if 0 <= place + k - 2 < len(codes)]
        total += (bias + torch.stack([weight[:, :, k] @ embedded[i] for k, i in near]).sum(0)).clamp(min=0)
    torch.testing.assert_close(encoder(torch.tensor(codes + [0] * (6 - len(codes)))), total / len(codes))
    assert not encoder(torch.zeros(6, dtype=torch.int64)).any()


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("dog bites man", "man bites dog"), ("ab", "ba")])
def test_texts_are_told_apart(one: str, other: str) -> None:
    space = spaces.Text(16, charset="abcdefghijklmnopqrstuvwxyz ")
    features = made(space)(torch.from_numpy(text_codes(space, [one, other])))
    assert (features[0] - features[1]).abs().max() > 0.1


def test_padding_says_nothing() -> None:
    short, long = TextEncoder(3, 3), TextEncoder(3, 9)
    long.load_state_dict(short.state_dict() | {"places.weight": torch.randn(9, 32)})
    long.places.weight.data[:3] = short.places.weight.data
    torch.testing.assert_close(short(torch.tensor([1, 2, 3])), long(torch.tensor([1, 2, 3, 0, 0, 0, 0, 0, 0])))


# Trees


def test_a_tree_is_its_leaves_side_by_side() -> None:
    encoder, observation = made(DEEP), drawn(DEEP, 2)
    assert list(encoder.leaves) == ["/robot/arm/0", "/robot/arm/1/grip", "/robot/arm/1/note", "/robot/camera", "/clock"]
    assert encoder.features == 2 + 3 + 64 + 256 + 1
    robot = observation["robot"]
    pieces = [*robot["arm"][:1], *robot["arm"][1].values(), robot["camera"], observation["clock"]]
    features = [leaf(piece) for leaf, piece in zip(encoder.leaves.values(), pieces, strict=True)]
    torch.testing.assert_close(encoder(observation), torch.cat(features, -1))
    backwards = {"clock": observation["clock"], "robot": dict(reversed(robot.items()))}
    torch.testing.assert_close(encoder(backwards), encoder(observation))


def test_names_of_tensors_are_stable() -> None:
    space = spaces.Dict({"a.b": spaces.Text(3), "keys": spaces.Tuple((image(8, 8, 3), spaces.Box(0, 1, (2,))))})
    names = list(made(space, normalize=True).state_dict())
    text = [f"{part}.weight" for part in ("characters", "places", "convolution")] + ["convolution.bias"]
    blocks = [f"{i}.{half}" for i in (2, 3, 6, 7, 10, 11) for half in ("first", "second")]
    layers = ["0", *blocks[:4], "4", *blocks[4:8], "8", *blocks[8:], "14"]
    images = [f"network.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    numbers = [f"moments.{kind}" for kind in ("mean", "variance", "count")]
    found = [*(f"/a~2b.{x}" for x in text), *(f"/keys/0.{x}" for x in images), *(f"/keys/1.{x}" for x in numbers)]
    assert names == [f"leaves.{name}" for name in found]
    assert pointer(("a/b", 0, "~")) == "/a~1b/0/~0"


class Own(nn.Module):
    """A user's encoder, of the two lines that it takes: `features`, and `forward` of the tree."""

    features = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, observation: Any) -> Tensor:
        return self.layer(torch.cat([observation["robot"]["arm"][0], observation["clock"]], -1))


@pytest.mark.parametrize("encoder", [Own(), made(DEEP)], ids=["own", "ours"])
def test_a_users_encoder_is_as_good_as_ours(encoder: Any) -> None:
    torch.manual_seed(0)
    tower = nn.Linear(encoder.features, 1)
    value = tower(encoder(drawn(DEEP, 3, 2))).squeeze(-1)
    assert value.shape == (3, 2)
    value.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


# What cannot be served says so


class Strange(spaces.Space[Any]):
    """A space that nobody knows."""


REFUSED: list[tuple[spaces.Space, dict[str, Any], type[ProximoError], str]] = [
    (spaces.Graph(spaces.Box(0, 1, (2,)), None), {}, UnsupportedSpace, "Graph.*supported: Box, Discrete"),
    (spaces.Dict(a=spaces.Tuple((spaces.Sequence(spaces.Discrete(2)),))), {}, UnsupportedSpace, "leaf /a/0 .*Sequence"),
    (spaces.Dict(a=spaces.OneOf((spaces.Discrete(2),))), {}, UnsupportedSpace, "leaf /a .*TransformObservation"),
    (Strange(), {}, UnsupportedSpace, "Strange"),
    (spaces.Dict(), {}, UnsupportedSpace, "has nothing in it"),
    (spaces.Tuple((spaces.Dict(), spaces.Tuple(()))), {}, UnsupportedSpace, "has nothing in it"),
    (spaces.Dict(a=spaces.Box(0, 1, (0,))), {}, UnsupportedSpace, "leaf /a .*no numbers: leave it out"),
    (spaces.Text(0, min_length=0), {}, UnsupportedSpace, "no numbers"),
    (spaces.Dict([("1", spaces.Discrete(2)), (1, spaces.Discrete(2))]), {}, UnsupportedSpace, "read alike"),  # type: ignore
    (spaces.Discrete(2**40), {}, UnsupportedSpace, "1,048,576 options"),
    (spaces.Dict(a=image(3, 64, 3)), {}, ConfigError, "images at /a are 3×64×3.*--channels first or --channels last"),
    (image(3, 35, 64), dict(images="nature"), ConfigError, "35×64 pixels.*needs 36 a side: take impala"),
    (image(3, 64, 64), dict(images="resnet"), UnknownName, "image network 'resnet'.*impala, nature"),
    (image(3, 64, 64), dict(channels="middle"), UnknownName, "order of channels 'middle'.*first, last"),
]


@pytest.mark.parametrize(("space", "encoding", "error", "says"), REFUSED, ids=[str(r[3])[:24] for r in REFUSED])
def test_what_cannot_be_encoded(space: Any, encoding: Any, error: type[ProximoError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        made(space, **encoding)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [partial(leaves), partial(zeros)])
def test_storage_names_the_leaf_that_it_cannot_hold(make: Any) -> None:
    with pytest.raises(UnsupportedSpace, match="leaf /a/1 "):
        make(spaces.Dict(a=spaces.Tuple((spaces.Discrete(2), Strange()))))


def test_kinds_are_what_they_say() -> None:
    assert isinstance(made(SPACES["vector"][0]), Vector)
    assert isinstance(made(SPACES["memory"][0]), Vector), "bytes in a row are numbers, as they always were"
    assert isinstance(made(SPACES["discrete"][0]), Choices)
    assert isinstance(made(DEEP), TreeEncoder)
