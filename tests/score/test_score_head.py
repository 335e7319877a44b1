from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pope_fast.errors import PopeError
from pope_fast.score import gemm
from pope_fast.score.gemm import FastLinear, matmul
from pope_fast.score.head import Head, find_decoder, find_head, token_logprobs
from tiny_models import KINDS, tiny_model


def problem(
    n: int = 37, width: int = 16, size: int = 53, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return hidden states, targets, weight and bias."""
    generator = torch.Generator().manual_seed(n)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    targets = torch.randint(size, (n,), generator=generator)
    return draw(n, width).to(dtype), targets, draw(size, width).to(dtype), draw(size).to(dtype) if bias else None


def full(hidden: Tensor, targets: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Return the same from all logits, with torch's own operations."""
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / temperature, 1).gather(1, targets[:, None])[:, 0]


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return result


HEADS = [(1.0, None, 1.0), (0.25, None, 1.3), (1.0, 3.0, 1.0), (0.5, 2.0, 0.7)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap", "temperature"), HEADS)
def test_tiles_give_what_full_logits_give(bias: bool, scale: float, softcap: float | None, temperature: float) -> None:
    hidden, targets, weight, offset = problem(bias=bias)
    head = Head(weight, offset, scale, softcap)
    wanted = full(hidden.double(), targets, Head(weight.double(), offset, scale, softcap), temperature)
    for tile in (None, (1, 1), (5, 7), (37, 53), (64, 8), (8, 64)):
        found = token_logprobs(hidden, targets, head, temperature=temperature, tile=tile)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap", "temperature"), HEADS)
def test_gradients_are_those_of_finite_differences(
    bias: bool, scale: float, softcap: float | None, temperature: float
) -> None:
    hidden, targets, weight, offset = problem(7, 4, 11, bias=bias, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, offset) if tensor is not None]

    def score(hidden: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        return token_logprobs(
            hidden, targets, Head(weight, offset, scale, softcap), temperature=temperature, tile=(3, 4)
        )

    assert torch.autograd.gradcheck(score, inputs)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_those_of_full_logits(softcap: float | None) -> None:
    hidden, targets, weight, offset = problem(200, 32, 301)
    assert offset is not None
    upstream = torch.randn(200, generator=torch.Generator().manual_seed(1))
    found, wanted = [], []
    for call, gradients in ((token_logprobs, found), (full, wanted)):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, offset)]
        result = call(inputs[0], targets, Head(inputs[1], inputs[2], 0.7, softcap))
        gradients += torch.autograd.grad(result, inputs, upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_requires_a_gradient_gets_one(wanted: tuple[bool, ...]) -> None:
    hidden, targets, weight, offset = problem()
    assert offset is not None
    inputs = [tensor.requires_grad_(flag) for tensor, flag in zip((hidden, weight, offset), wanted, strict=True)]
    token_logprobs(inputs[0], targets, Head(inputs[1], inputs[2])).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == list(wanted)


def test_without_gradients_nothing_is_recorded() -> None:
    hidden, targets, weight, _ = problem()
    assert not token_logprobs(hidden, targets, Head(weight)).requires_grad
    with torch.no_grad():
        assert not token_logprobs(hidden.requires_grad_(), targets, Head(weight)).requires_grad


@pytest.mark.parametrize("size", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("shift", [-500.0, 0.0, 500.0])
def test_logits_of_any_size_are_right(size: float, shift: float) -> None:
    hidden, targets, weight, offset = problem()
    assert offset is not None
    weight, offset = weight * size / 4, offset + shift
    found = token_logprobs(hidden, targets, Head(weight, offset), tile=(8, 10))
    wanted = full(hidden.double(), targets, Head(weight.double(), offset.double()))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-7 * size * 50 + 1e-4)


def test_forbidden_tokens_have_no_probability() -> None:
    hidden, targets, weight, offset = problem()
    assert offset is not None
    # The first tiles hold nothing but forbidden tokens, and logits are so large that the maximum has to be taken off.
    offset = offset + 200
    offset[:20] = -torch.inf
    targets = targets.clamp(min=20)
    targets[0] = 3
    found = token_logprobs(hidden, targets, Head(weight, offset), tile=(8, 10))
    assert found[0] == -torch.inf
    wanted = full(hidden.double(), targets, Head(weight.double(), offset.double()))
    torch.testing.assert_close(found[1:].double(), wanted[1:], atol=1e-3, rtol=0)


def test_16_bit_inputs_are_summed_in_float32() -> None:
    hidden, targets, weight, offset = problem(64, 32, 500, dtype=torch.bfloat16)
    assert offset is not None
    found = token_logprobs(hidden, targets, Head(weight, offset))
    wanted = full(hidden.double(), targets, Head(weight.double(), offset.double()))
    rounded = full(hidden, targets, Head(weight, offset))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)
    assert (rounded - wanted).abs().max() > 100 * (found - wanted).abs().max()


def test_16_bit_gradients_have_the_dtype_of_their_tensors() -> None:
    hidden, targets, weight, offset = problem(64, 32, 500, dtype=torch.bfloat16)
    assert offset is not None
    found, wanted = [], []
    for call, dtype, gradients in ((token_logprobs, torch.bfloat16, found), (full, torch.float64, wanted)):
        inputs = [tensor.to(dtype).clone().requires_grad_() for tensor in (hidden, weight, offset)]
        gradients += torch.autograd.grad(call(inputs[0], targets, Head(inputs[1], inputs[2])).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, atol=0.02, rtol=0.02)


def test_hidden_states_and_head_of_different_dtypes_are_promoted() -> None:
    hidden, targets, weight, _ = problem(dtype=torch.bfloat16)
    wide = hidden.float().requires_grad_()
    found = token_logprobs(wide, targets, Head(weight))
    torch.testing.assert_close(found, token_logprobs(hidden, targets, Head(weight)))
    found.sum().backward()
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float32


def test_autocast_casts_as_a_linear_layer_would() -> None:
    hidden, targets, weight, offset = problem()
    assert offset is not None
    low = [tensor.bfloat16() for tensor in (hidden, weight, offset)]
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(hidden.requires_grad_(), targets, Head(weight, offset))
    torch.testing.assert_close(found, token_logprobs(low[0], targets, Head(low[1], low[2])))
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_tensor_of_all_logits_is_ever_made(softcap: float | None) -> None:
    hidden, targets, weight, _ = problem(600, 8, 3000, bias=False)
    tile = (64, 256)
    with Largest() as largest:
        inputs = hidden.requires_grad_(), weight.requires_grad_()
        token_logprobs(inputs[0], targets, Head(inputs[1], None, 1.0, softcap), tile=tile).sum().backward()
    assert largest.elements == max(weight.numel(), hidden.numel())
    assert largest.elements < 600 * 3000 / 50
    with Largest() as largest, torch.no_grad():
        token_logprobs(hidden, targets, Head(weight, None, 1.0, softcap))
    assert largest.elements <= 256 * 1024


def test_no_rows_are_no_log_probs() -> None:
    _, _, weight, offset = problem()
    hidden = torch.empty(0, 16, requires_grad=True)
    found = token_logprobs(hidden, torch.empty(0, dtype=torch.int64), Head(weight, offset))
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None


def test_bad_arguments_are_errors() -> None:
    hidden, targets, weight, _ = problem()
    for changed in ((hidden[:, :3], targets), (hidden, targets[:3]), (hidden[None], targets)):
        with pytest.raises(PopeError, match="must be"):
            token_logprobs(*changed, Head(weight))
    for wrong in (-100, 53):
        with pytest.raises(PopeError, match="outside the vocabulary of 53"):
            token_logprobs(hidden, targets.where(targets != targets[0], wrong), Head(weight))
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PopeError, match="temperature"):
            token_logprobs(hidden, targets, Head(weight), temperature=temperature)


def config_of(kind: str, **changes: Any) -> Any:
    """Return the configuration of a family that tiny_models does not have."""
    import transformers

    shape = {
        **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1},
        **{"eos_token_id": 2, "initializer_range": 0.3},
    }
    return getattr(transformers, kind)(**{**shape, **changes})


def logits_of(head: Head, hidden: Tensor) -> Tensor:
    """Return all log-probs that a head gives."""
    size = head.weight.shape[0]
    ids = torch.arange(size).repeat(hidden.shape[0])
    return token_logprobs(hidden.repeat_interleave(size, 0), ids, head).view(-1, size)


SPECIAL = {
    "GraniteConfig": ({"logits_scaling": 3.0}, 1 / 3.0),
    "PhiConfig": ({}, 1.0),  # a bias
}


@pytest.mark.parametrize("kind", [*KINDS, "cohere", *SPECIAL])
def test_heads_of_all_families_are_found(kind: str) -> None:
    import transformers

    if kind in SPECIAL:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config_of(kind, **SPECIAL[kind][0])).eval()
        nn.init.normal_(model.lm_head.bias) if kind == "PhiConfig" else None
    else:
        model = tiny_model(kind)
    head = find_head(model)
    assert head is not None
    assert head.weight is model.get_output_embeddings().weight
    expected = {"gemma": (1.0, 5.0), "cohere": (0.25, None)}.get(kind, (SPECIAL.get(kind, ({}, 1.0))[1], None))
    assert (head.scale, head.softcap) == expected
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        hidden = find_decoder(model)(ids).last_hidden_state[0]
        torch.testing.assert_close(
            logits_of(head, hidden), torch.log_softmax(model(ids).logits[0].float(), 1), atol=1e-4, rtol=0
        )


def test_an_unnamed_scale_is_found_by_trying() -> None:
    model = tiny_model("llama")
    inner = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        output.logits = output.logits * 1.7
        return output

    model.forward = scaled
    head = find_head(model)
    assert head is not None
    assert head.scale == pytest.approx(1.7, rel=1e-5)


def test_a_head_that_does_something_else_is_not_found() -> None:
    class Odd(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: Tensor) -> Tensor:
            return self.layer(hidden).abs()

    model = tiny_model("llama")
    model.lm_head = Odd(model.lm_head)
    assert find_head(model) is None

    model = tiny_model("llama")
    inner = model.forward

    def clipped(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        output.logits = output.logits.clamp(min=-1)
        return output

    model.forward = clipped
    assert find_head(model) is None


def test_looking_for_a_head_leaves_model_and_generator_as_they_were() -> None:
    model = tiny_model("llama")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    assert find_head(model) is not None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    loss = model(torch.arange(5)[None], labels=torch.arange(5)[None]).loss
    loss.backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    ],
)
def test_adapters_on_the_head_are_noticed(options: dict[str, Any], found: bool) -> None:
    import peft

    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    head = find_head(model)
    assert (head is not None) == found
    if head is None:
        return
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        wanted = torch.log_softmax(model(ids).logits[0], 1)
        torch.testing.assert_close(
            logits_of(head, find_decoder(model)(ids).last_hidden_state[0]), wanted, atol=1e-4, rtol=0
        )
    token_logprobs(torch.ones(4, 32, requires_grad=True), torch.arange(4), head).sum().backward()
    assert (head.weight.grad is not None) == ("modules_to_save" in options)


def test_virtual_tokens_leave_the_head_unknown() -> None:
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert find_head(peft.get_peft_model(tiny_model("llama"), config)) is None


@pytest.mark.parametrize("use", [True, False])
def test_products_are_those_of_torch(use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if use and not gemm.helps():
        pytest.skip("oneDNN is not the faster library here")
    monkeypatch.setattr(gemm, "helps", lambda: use)
    hidden, _, weight, offset = problem(64, 24, 50)
    wanted = hidden.double() @ weight.double().t()
    torch.testing.assert_close(matmul(hidden, weight).double(), wanted, atol=1e-4, rtol=1e-5)
    layer, cube = nn.Linear(24, 50), hidden.view(4, 16, 24)
    with torch.no_grad():
        plain = layer(cube), torch.addmm(offset, hidden, weight.t()), layer(hidden[:2])
        with FastLinear():
            fast = layer(cube), torch.addmm(offset, hidden, weight.t()), layer(hidden[:2])
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with FastLinear():
        layer(cube).sum().backward()
        assert layer(cube.double().float().bfloat16().float()).shape == (4, 16, 50)
        assert (hidden.double() @ weight.double().t()).dtype == torch.float64
    assert layer.weight.grad is not None
