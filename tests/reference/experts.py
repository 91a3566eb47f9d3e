"""What experts, routers and convolutions compute, once more: token by token, expert by expert, feature by feature.

A module's input is all that is taken from the model. An expert that no token is routed to gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.channels import INPUTS_FIRST, OUTPUTS_FIRST, ROUTERS

Found = dict[str, list[Tensor]]
EXPERTS = (*OUTPUTS_FIRST, "GptOssExperts", "ZayaExperts", "LongcatFlashExperts")


@contextmanager
def inside(model: nn.Module, found: Found) -> Iterator[None]:
    """Fill ``found`` with the outputs at each position, ``[1, channels]``, of modules that no hook sees."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            kind = type(module).__name__
            if kind in EXPERTS:
                see: Callable[..., None] = partial(see_experts, found, name)
            elif kind == "JetMoeTopKGating":
                parent = name.rpartition(".")[0]
                see = partial(see_jetmoe, found, parent, model.get_submodule(parent))
            elif kind in ROUTERS:
                see = partial(see_router, found, name)
            elif kind == "Qwen3NextGatedDeltaNet":
                see = partial(see_convolution, found, name)
            else:
                continue
            stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
        yield


def see_experts(found: Found, name: str, module: Any, args: Any, kwargs: Any) -> None:
    hidden, chosen, weights = args
    by_columns = type(module).__name__ in INPUTS_FIRST
    found[f"{name}.gate_up_proj"], found[f"{name}.down_proj"] = [], []
    for token, experts, of_experts in zip(hidden, chosen.tolist(), weights.tolist(), strict=True):
        for leaf in ("gate_up_proj", "down_proj"):
            count, first, second = getattr(module, leaf).shape
            found[f"{name}.{leaf}"].append(torch.zeros(1, count * (second if by_columns else first)))
        for expert, weight in zip(experts, of_experts, strict=True):
            if weight == 0 or expert >= len(module.down_proj):  # Zaya skips all experts, LongCat passes tokens on
                continue
            inner = through(module, "gate_up_proj", expert, token, by_columns)
            outer = through(module, "down_proj", expert, activated(module, inner), by_columns)
            for leaf, values in (("gate_up_proj", inner), ("down_proj", outer)):
                width = len(values)
                found[f"{name}.{leaf}"][-1][0, expert * width : (expert + 1) * width] = values


def see_jetmoe(found: Found, name: str, mixture: Any, router: Any, args: Any, kwargs: Any) -> None:
    """The input of the router is that of the mixture; queries are projected by experts, but mixed after attention."""
    layers = ["input_linear", "output_linear"] if type(mixture).__name__ == "JetMoeMoE" else ["input_linear"]
    for leaf in layers:
        found[f"{name}.{leaf}.weight"] = []
    for token in args[0]:
        logits = torch.stack([(row * token).sum() for row in router.layer.weight])
        chosen = logits.topk(router.top_k)[1].tolist()
        inner = {expert: mixture.input_linear.weight[expert] @ token for expert in chosen}
        for leaf in layers:
            count, width, _ = getattr(mixture, leaf).weight.shape
            values = torch.zeros(1, count * width)
            for expert, of_expert in inner.items():
                if leaf == "output_linear":
                    of_expert = mixture.output_linear.weight[expert] @ activated(mixture, of_expert)
                values[0, expert * width : (expert + 1) * width] = of_expert
            found[f"{name}.{leaf}.weight"].append(values)


def through(module: Any, leaf: str, expert: int, token: Tensor, by_columns: bool) -> Tensor:
    matrix = getattr(module, leaf)[expert]
    rows = matrix.t() if by_columns else matrix
    values = torch.stack([(row * token).sum() for row in rows])
    bias = getattr(module, f"{leaf}_bias", None)
    return values if bias is None else values + bias[expert]


def activated(module: Any, inner: Tensor) -> Tensor:
    if type(module).__name__ == "GptOssExperts":  # gates and values alternate, and are clamped
        gate, up = inner[::2].clamp(max=module.limit), inner[1::2].clamp(-module.limit, module.limit)
        result: Tensor = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
        return result
    half = len(inner) // 2
    return nn.functional.silu(inner[:half]) * inner[half:]


def see_router(found: Found, name: str, module: Any, args: Any, kwargs: Any) -> None:
    tokens = args[0].reshape(-1, args[0].shape[-1])
    found[name] = []
    for token in tokens:
        logits = torch.stack([(row * token).sum() for row in module.weight])
        bias = getattr(module, "bias", None)
        found[name].append((logits if bias is None else logits + bias).unsqueeze(0))


def see_convolution(found: Found, name: str, module: Any, args: Any, kwargs: Any) -> None:
    """Of Qwen3-Next: the inputs are queries, keys and values of one token after the other."""
    hidden = args[0] if args else kwargs["hidden_states"]
    projected = module.fix_query_key_value_ordering(module.in_proj_qkvz(hidden), module.in_proj_ba(hidden))
    inputs = torch.cat([part.reshape(*hidden.shape[:2], -1) for part in projected[:3]], -1)[0]
    weight = module.conv1d.weight  # [channels, 1, width]; the last is of the token itself
    width = weight.shape[2]
    found[f"{name}.conv1d"] = []
    for t in range(len(inputs)):
        total = torch.zeros(1, weight.shape[0])
        for back in range(width):
            if t - back >= 0:
                total[0] += weight[:, 0, width - 1 - back] * inputs[t - back]
        found[f"{name}.conv1d"].append(total)
