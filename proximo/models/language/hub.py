"""Models of transformers by folder or hub id: safetensors alone, and no code that comes with them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proximo.errors import ConfigError, MissingExtra, install

NEEDED = (5, 3)  # before it a model's config.json could run code (CVE-2026-4372)
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
LONGEST_ID = 200  # characters
REASON = 160  # characters of why the hub gave nothing
SAID = 240  # characters of what transformers says of a folder, which may be all classes that it knows
NEW = ("critic", "head", "gain", "bias")  # what policies and reward models add to a model
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def transformers() -> Any:
    """The library; MissingExtra where it is not there, or too old to be safe."""
    try:
        import transformers
    except ImportError:
        raise MissingExtra(f"language models need transformers: {install('language')}") from None
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < NEEDED:
        raise MissingExtra(f"transformers {transformers.__version__} is not safe to load models with: install >= 5.3")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def folder_of(name: str) -> Path:
    """A local folder with the model: the one named, the `model` in a run's folder, or what the hub's id stands for."""
    path = Path(name)
    if os.path.isdir(path):
        return path / "model" if (path / "model").is_dir() and (path / "checkpoints").is_dir() else path
    if os.path.exists(path) or len(name) > LONGEST_ID or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"model {name} is no folder: name one that holds a model, or a hub id")
    transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().split("\n")[0][:REASON]
        raise ConfigError(f"model {name} is no folder here, and the hub gave none: {why}") from None


def digest_of(path: Path) -> str:
    """SHA-256 over the weights of a model's folder, in the order of their files' names."""
    found = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def causal_model(path: Path, num_layers: int | None = None) -> Any:
    """The causal language model in a folder, float32, without dropout; of its first layers alone where told.

    ConfigError for a folder without safetensors, without a config.json, or of a model that would bring its own code.
    """
    library = transformers()
    must_be_model(path)
    with told(path):
        config = library.AutoConfig.from_pretrained(path, trust_remote_code=False)
        without_dropout(config)
        if num_layers is not None:
            config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
        model, loading = library.AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(f"{path} has no weights for {missing[0]} ({len(missing)} in all are missing)")
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise ConfigError(f"{path}: the weights {name} hold NaN or infinite numbers")
    return model.eval()


def must_be_model(path: Path) -> None:
    if not (path / "config.json").exists():
        raise ConfigError(f"{path} holds no model: it has no config.json")
    if (path / "adapter_config.json").exists():
        raise ConfigError(f"{path} holds an adapter: merge it into its model first (merge_and_unload of peft)")
    if not any(path.glob("*.safetensors")):
        pickled = [file.name for pattern in PICKLED for file in path.glob(pattern)]
        if pickled:
            raise ConfigError(
                f"{path} has only pickled weights ({pickled[0]}), which could run code: save it with "
                "save_pretrained(…) of transformers, which writes safetensors"
            )
        raise ConfigError(f"{path} holds no weights: it has no *.safetensors")


@contextmanager
def told(path: Path, what: str = "a causal language model") -> Iterator[None]:
    """What transformers says of a folder it cannot load, in one line."""
    try:
        yield
    except Exception as error:  # of any kind: whatever a stranger's file leads it to
        text = str(error) or type(error).__name__
        if "trust_remote_code" in text:
            text = "it brings code of its own, which is not run"
        raise ConfigError(f"{path} cannot be loaded as {what}: {text[:SAID]}") from None


def without_dropout(config: Any) -> None:
    """Set every dropout of a configuration to zero: π must be the π that sampled, in training mode too."""
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("pdrop")) and type(value) in (int, float):
            setattr(config, name, 0.0)


def trunk_of(model: nn.Module) -> Any:
    """The model without its head: token ids to hidden states."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def width_of(model: Any) -> int:
    """Of its last layer."""
    return model.get_output_embeddings().weight.shape[1]


def tokenizer_of(path: Path) -> Any:
    """The tokenizer in a model's folder; it has an end of text, and a padding token that is another one."""
    library = transformers()
    with told(path, "a tokenizer"):
        return library.AutoTokenizer.from_pretrained(path, trust_remote_code=False)


@contextmanager
def quiet() -> Iterator[None]:
    """A block in which the libraries do not warn of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def learner(path: Path, rank: int | None = None, checkpointing: bool = False) -> Any:
    """The model in a folder as it learns: by adapters of a rank alone, where there is one.

    With `checkpointing` it is in training mode, or transformers would keep no checkpoints; there is no dropout in it
    that this could wake.
    """
    model = causal_model(path)
    if checkpointing:
        keep_less(model)
    with quiet():
        model = model if rank is None else adapted(model, rank)
    return model.train(checkpointing)


def keep_less(model: Any) -> None:
    """Have a model compute its layers again in the backward pass (while it is in training mode)."""
    with quiet():
        model.gradient_checkpointing_enable({"use_reentrant": False})


def saves(rank: int | None) -> Callable[[str], bool]:
    """Which tensors of a learner, by their names, a checkpoint holds: with adapters, those and new heads alone."""
    return lambda name: rank is None or "lora_" in name or name.split(".")[0] in NEW


def adapted(model: Any, rank: int) -> Any:
    """The model with low-rank adapters on its linear layers, which alone learn (LoRA, arXiv:2106.09685)."""
    try:
        import peft
    except ImportError:
        raise MissingExtra(f"lora needs peft: {install('language')}") from None
    adapters = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, adapters).eval()
