"""``torch.autocast("standin")`` by CUDA's lists, as far as language models need them.

The lists are in torch's ``aten/src/ATen/autocast_mode.h``. Unlike CUDA, no cast weight is kept for the rest of the
region: each use casts again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_IN_HALF = "matmul mm mv addmm addmv addbmm baddbmm bmm linear scaled_dot_product_attention conv1d conv2d einsum prelu"
_IN_FLOAT = (
    "exp expm1 log log10 log1p log2 reciprocal rsqrt sinh cosh tan acos asin pow.Tensor_Scalar pow.Tensor_Tensor "
    "pow.Scalar softplus layer_norm native_layer_norm group_norm nll_loss nll_loss2d mse_loss l1_loss smooth_l1_loss "
    "huber_loss kl_div binary_cross_entropy_with_logits cosine_similarity dist cdist logsumexp renorm norm.Scalar "
    "norm.ScalarOpt_dim"
)
_TO_FLOAT = "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum sum sum.dim_IntList linalg_vector_norm"
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_Kernel = Callable[..., Any]


def register_autocast(fallback: torch.library.Library, kernels: torch.library.Library, device: str) -> None:
    """Add kernels for the dispatch key of autocast to the libraries of the device."""

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(cast(item, dtype) for item in value)
        is_cast = isinstance(value, Tensor) and value.device.type == device and value.is_floating_point()
        return value.to(dtype) if is_cast and value.dtype != torch.float64 else value

    def casting(op: OpOverload, fixed: torch.dtype | None) -> _Kernel:
        """The operation with all floating-point inputs cast, to the region's dtype unless one is fixed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = fixed or torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(_KEYS):
                return op(*cast(args, dtype), **{name: cast(value, dtype) for name, value in kwargs.items()})

        return call

    def with_float_result(op: OpOverload) -> _Kernel:
        """The operation with a float32 result of half-precision inputs, unless the caller names a dtype."""
        place = [argument.name for argument in op._schema.arguments].index("dtype")

        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = args[place] if len(args) > place else kwargs.get("dtype")
            if dtype is None and args[0].dtype in (torch.half, torch.bfloat16):
                args, kwargs = args[:place], {**kwargs, "dtype": torch.float32}
            with torch._C._ExcludeDispatchKeyGuard(_KEYS):
                return op(*args, **kwargs)

        return call

    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    lists: tuple[tuple[str, Callable[[OpOverload], _Kernel]], ...] = (
        (_IN_HALF, lambda op: casting(op, None)),
        (_IN_FLOAT, lambda op: casting(op, torch.float32)),
        (_TO_FLOAT, with_float_result),
    )
    for names, wrap in lists:
        for full_name in names.split():
            name, _, overload = full_name.partition(".")
            op = getattr(getattr(torch.ops.aten, name), overload or "default")
            kernels.impl(full_name, wrap(op), "AutocastPrivateUse1")
