"""Models, adapters and tokenizers: loading them, one base model at a time, and their fingerprints."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pope_fast._extras import require
from pope_fast.errors import PopeError
from pope_fast.score.encoding import Encoder
from pope_fast.score.policies import HFPolicy, ServerPolicy

__all__ = ["file_stamp", "library_versions", "load_encoder", "loaded_model", "model_fingerprint", "with_adapter"]

# Of a configuration, what says nothing about the numbers that the model gives.
_VOLATILE = frozenset(
    {
        *("_name_or_path", "transformers_version", "use_cache", "architectures", "_commit_hash"),
        *("dtype", "torch_dtype"),  # set when the model is saved; the weights tell
        *("base_model_name_or_path", "inference_mode", "revision", "peft_version"),  # of adapters
    }
)

# Bytes of a parameter that are brought to the processor and hashed at once.
_BLOCK_BYTES = 1 << 26


def load_encoder(policy: HFPolicy | ServerPolicy) -> Encoder | None:
    """Return the tokenizer of a policy, None if it has none of its own and names none.

    Raises
    ------
    PopeError
        If one was named and cannot be loaded.
    """
    given = policy.processing_class
    if given is not None and not isinstance(given, str):
        return Encoder(given)
    source = given
    if source is None and isinstance(policy, HFPolicy):
        source = policy.model if not policy.loaded else getattr(policy.model.config, "_name_or_path", None)
    if not source:
        return None
    transformers = require("transformers", "scoring with a tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )
    except Exception as error:  # Loaders raise whatever the files make their libraries raise.
        if given is None:
            return None  # Needed only if the log has text; reading it says so then.
        raise PopeError(f"policy {policy.name!r}: no tokenizer can be loaded from {source}: {_line(error)}") from error
    return Encoder(tokenizer)


@contextmanager
def loaded_model(policy: HFPolicy, default_device: str) -> Iterator[Any]:
    """Load a policy's base model, without its adapter; a given object is used and left as it was.

    Raises
    ------
    PopeError
        If it cannot be loaded.
    """
    torch = require("torch", "scoring with a model")
    if policy.loaded:
        model = policy.model
        training = bool(model.training)
        model.eval()
        try:
            yield model
        finally:
            model.train(training)
        return
    transformers = require("transformers", "scoring with a model")
    device = policy.device or default_device
    gc.collect()  # The model before this one, which may be all that fits.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    options: dict[str, Any] = {"revision": policy.revision, "trust_remote_code": policy.trust_remote_code}
    if policy.attention is not None:
        options["attn_implementation"] = policy.attention
    if device == "auto":
        options["device_map"] = "auto"
    dtype = "auto" if policy.dtype == "auto" else getattr(torch, policy.dtype)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(policy.model, dtype=dtype, **options)
        if device != "auto":
            model.to(device)
    except Exception as error:  # See load_encoder.
        raise PopeError(f"policy {policy.name!r}: {policy.model} cannot be loaded: {_line(error)}") from error
    model.eval()
    yield model


@contextmanager
def with_adapter(model: Any, policy: HFPolicy) -> Iterator[Any]:
    """Put a policy's adapter on a model, and take it off again.

    Raises
    ------
    PopeError
        If it cannot be loaded, or adds virtual tokens to the prompt: these have no log-prob.
    """
    name = policy.adapter
    if name is None:
        yield model
        return
    peft = require("peft", "scoring with an adapter")
    if isinstance(model, peft.PeftModel):
        if name not in model.peft_config:
            known = ", ".join(sorted(model.peft_config))
            raise PopeError(f"policy {policy.name!r}: the model has no adapter {name!r}; it has: {known}")
        before = model.active_adapter
        model.set_adapter(name)
        try:
            yield model
        finally:
            model.set_adapter(before)
        return
    try:
        config = peft.PeftConfig.from_pretrained(name)
        if config.is_prompt_learning:
            raise PopeError(f"it is of the kind {config.peft_type}, which adds virtual tokens to the prompt")
        adapted = peft.PeftModel.from_pretrained(model, name, is_trainable=False)
    except Exception as error:  # See load_encoder.
        raise PopeError(f"policy {policy.name!r}: the adapter {name} cannot be used: {_line(error)}") from error
    adapted.eval()
    try:
        yield adapted
    finally:
        adapted.unload()


def model_fingerprint(model: Any) -> str:
    """Return a digest of a model's configuration and of every byte of its weights, adapters included.

    Every parameter and buffer is hashed (BLAKE2b, on several threads), not a sample: reading them once costs some
    seconds, and the scoring that rests on it hours.
    """
    facts: dict[str, Any] = {"config": _plain_config(model.config)}
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping) and adapters:
        facts["adapters"] = {name: _plain_config(config) for name, config in sorted(adapters.items())}
        facts["active"] = str(getattr(model, "active_adapter", None) or getattr(model, "active_adapters", None))
    tensors = dict(sorted(model.state_dict().items()))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = dict(zip(tensors, pool.map(_tensor_hash, tensors.values()), strict=True))
    facts["tensors"] = hashes
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _plain_config(config: Any) -> dict[str, Any]:
    values = config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))
    kept = {name: value for name, value in values.items() if name not in _VOLATILE and not name.startswith("_attn")}
    result: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True, default=_in_order))
    return result


def _in_order(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def _tensor_hash(tensor: Any) -> str:
    torch = require("torch", "scoring with a model")
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    if tensor.device.type == "meta":
        raise PopeError("weights that are offloaded cannot be hashed. Remedy: load the model onto devices as a whole.")
    flat = tensor.detach().reshape(-1)
    step = max(1, _BLOCK_BYTES // max(1, flat.element_size()))
    for start in range(0, flat.numel(), step):
        block = flat[start : start + step].cpu().contiguous()
        digest.update(block.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_stamp(policy: HFPolicy) -> str | None:
    """Return a digest of names, sizes and times of the files that a policy is loaded from.

    While it is the same, a finished run need not load the model again to see that it is. None where there are no such
    files: objects, and models of a hub.
    """
    sources = [policy.model, policy.adapter, policy.processing_class]
    stamps: list[str] = []
    for source in sources:
        if source is None:
            stamps.append("")
            continue
        if not isinstance(source, str) or not os.path.isdir(source):
            return None
        for path in sorted(Path(source).rglob("*")):
            if path.is_file():
                stat = path.stat()
                stamps.append(f"{path.relative_to(source)}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.blake2b("\n".join(stamps).encode(), digest_size=16).hexdigest()


def library_versions(*modules: str) -> dict[str, str]:
    """Return the versions of this package and of some modules that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    from pope_fast import _core

    versions = {"pope_fast": str(_core.build_info()["version"])}
    for module in modules:
        try:
            versions[module] = version(module)
        except PackageNotFoundError:
            continue
    return versions


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
