"""The device ``standin``: torch's PrivateUse1 device type, registered when this module is imported.

A tensor on it is a plain ``torch.Tensor``, no subclass, with dispatch keys of its own. So autograd, modules,
optimizers, checkpoints and autocast treat it as they treat a CUDA tensor: the backward pass runs on the device's
thread, ``to`` copies, random numbers are the device's own, and an operation that mixes it with a CPU tensor raises.
Every kernel is the CPU's, called on an alias of the same memory. So results are the CPU's to the bit, except where
torch chooses by device: scaled dot-product attention runs its math kernels here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.standin.autocast import register_autocast
from tests.standin.records import SYNCHRONIZING, record

NAME = "standin"
_DLPACK_CPU, _DLPACK_PRIVATE = 1, 12  # DLDeviceType in dlpack.h; torch takes the latter, kDLExtDev, for PrivateUse1
_MEMORY = 8 << 30  # bytes that the device claims to have
_SCALARS_ALLOWED = {
    "where",
    "masked_fill",
    "masked_fill_",
    "fill",
    "fill_",
    "index_fill",
    "index_fill_",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "clamp",
    "clamp_",
    "lerp",
}
"""Operations that CUDA lets have CPU tensors of no dimension, besides those that torch tags as pointwise."""
_INDICES_ALLOWED = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
"""Operations whose indices may be on the CPU; CUDA copies them."""
_BY_SHAPE = {"as_strided", "view", "_reshape_alias", "unfold", "set_"}
"""Operations that change shapes only: the CPU's kernels take the device's tensors as they are."""
_COMPOSITE_KEYS = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")

_random = torch.Generator()  # the device's own
_pinned = dict[int, torch.UntypedStorage]()  # by address, which is not used again because the memory is kept
_queued_copies = list[tuple[Tensor, Tensor]]()  # on the host, not yet filled; and what they will hold
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


# Tensors


def _alias(tensor: Tensor, device_type: int) -> Tensor:
    """A tensor over the same memory, which it keeps alive, on a device of another DLPack type."""
    capsule = torch._C._to_dlpack(tensor)
    address = _capsule_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)  # after the data pointer
    device = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
    device[0], device[1] = device_type, 0
    return torch._C._from_dlpack(capsule)


def _on_host(tensor: Tensor) -> Tensor:
    return _alias(tensor, _DLPACK_CPU)


def _on_device(tensor: Tensor) -> Tensor:
    return _alias(tensor, _DLPACK_PRIVATE)


def _is_here(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of an argument."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Tensor):
        yield value


# Waiting


def _note(operation: str) -> None:
    """Record an operation; if the host waits for it, copies that were queued before are done."""
    if operation in SYNCHRONIZING:
        _finish_copies()
    record(operation)


def _finish_copies(source: Tensor | None = None) -> None:
    """Fill what was copied to the host without waiting: all, or what shares memory with ``source``."""
    for pair in _queued_copies.copy():
        target, values = pair
        if source is None or target.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
            target.copy_(values)
            _queued_copies[:] = [other for other in _queued_copies if other is not pair]


def _pin(tensor: Tensor, device: object = None) -> Tensor:
    if _is_pinned(tensor):
        return tensor
    copied = tensor.clone()
    _pinned[copied.untyped_storage().data_ptr()] = copied.untyped_storage()
    return copied


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned


# Operations


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _check_devices(op: OpOverload, name: str, arguments: list[tuple[Any, Any]]) -> None:
    """Raise where CUDA does: a CPU tensor among the device's, unless it is a scalar or an index where these may be."""
    scalars_allowed = name in _SCALARS_ALLOWED or torch.Tag.pointwise in op.tags
    scalars = 0
    for argument, value in arguments:
        if name in _INDICES_ALLOWED and argument.name == "indices":
            if not all(map(_is_here, _tensors(value))):
                _note("index copied to device")
            if any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(value)):
                _note("nonzero")  # how many elements it selects decides the result's shape
            continue
        for tensor in _tensors(value):
            if _is_here(tensor):
                continue
            scalars += 1
            if tensor.dim() > 0 or _is_written(argument) or not scalars_allowed:
                problem = "Expected all tensors to be on the same device, but found at least two devices"
                raise RuntimeError(f"{problem}, {NAME}:0 and {tensor.device}! ({argument.name} of {op})")
    if scalars > 1 and name != "where":
        raise RuntimeError(f"Trying to pass too many CPU scalars to non-CPU kernel! ({op})")


class _HostCall:
    """A call of an operation as the CPU's kernel takes it: tensors of the device as aliases on the host.

    Attributes:
        arguments: The operation's arguments with the values that were passed.
        values: What the kernel gets, by name.
    """

    def __init__(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schema = op._schema.arguments
        named = [(argument, kwargs[argument.name]) for argument in schema[len(args) :] if argument.name in kwargs]
        self.arguments = [*zip(schema, args, strict=False), *named]
        self._aliases = dict[int, tuple[Tensor, Tensor]]()  # by identity: the alias, and the tensor that it stands for
        self._written = list[tuple[Tensor, Tensor]]()
        self.values = {argument.name: self._to_host(argument, value) for argument, value in self.arguments}
        device = self.values.get("device")
        self._makes_ours = device is None or device.type == NAME
        on_host = {"device": torch.device("cpu"), "pin_memory": False}
        self.values |= {name: value for name, value in on_host.items() if name in self.values}

    def _to_host(self, argument: Any, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._to_host(argument, item) for item in value)
        if isinstance(value, (int, float)) and isinstance(argument.type, torch.TensorType):
            return _wrapped_number(value, next(tensor for _, other in self.arguments for tensor in _tensors(other)))
        if not _is_here(value):
            return value
        is_resized = _is_written(argument) and value.numel() == 0  # an output, and an alias can't be resized
        alias = torch.empty(value.shape, dtype=value.dtype) if is_resized else _on_host(value)
        self._aliases[id(alias)] = (alias, value)
        if _is_written(argument):
            self._written.append((alias, value))
        return alias

    def to_device(self, result: Any) -> Any:
        """The kernel's result with the device's tensors; outputs that it has resized are resized, too."""
        for alias, value in self._written:
            if alias.shape != value.shape or alias.stride() != value.stride():
                resized = _on_device(alias)
                value.set_(resized.untyped_storage(), resized.storage_offset(), resized.shape, resized.stride())
        self._written.clear()
        if isinstance(result, (list, tuple)):
            return type(result)(map(self.to_device, result))
        if id(result) in self._aliases:
            return self._aliases[id(result)][1]
        return _on_device(result) if isinstance(result, Tensor) and self._makes_ours else result


def _run(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Check the arguments, and run the CPU's kernel on the same memory."""
    call, name = _HostCall(op, args, kwargs), op._schema.name.partition("::")[2]
    _check_devices(op, name, call.arguments)
    _note(name)
    random_state = nullcontext()
    if any(argument.name == "generator" for argument in op._schema.arguments):
        if call.values.get("generator") not in (None, _random):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        call.values["generator"] = _random
    elif torch.Tag.nondeterministic_seeded in op.tags:
        random_state = _default_generator_swapped()
    positional = [call.values.pop(argument.name) for argument in op._schema.arguments[: len(args)]]
    dtype = positional[0].dtype if name == "histc" else None
    if dtype == torch.int32:  # CUDA counts integers, too
        positional[0] = positional[0].double()
    with random_state:
        result = op(*positional, **call.values)
    if dtype is not None:
        result = result.to(dtype)
    return call.to_device(result)


def _wrapped_number(value: float, neighbor: Tensor) -> Tensor:
    """The scalar tensor that torch would have made of a number beside a tensor; here numbers arrive bare."""
    exact = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return exact.to(torch.result_type(neighbor, value))


@contextmanager
def _default_generator_swapped() -> Iterator[None]:
    """The device's random numbers for kernels that take no generator."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_random.get_state())
    yield
    _random.set_state(torch.default_generator.get_state())
    torch.default_generator.set_state(before)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``copy_`` and ``to`` come to. The host waits, unless asked not to where its memory is pinned.

    A copy to the host for which it does not wait holds nonsense until it waits for something else.
    """
    on_host = source if _is_here(target) else target
    crosses = _is_here(source) != _is_here(target) and target.numel() > 0
    waits = crosses and not (non_blocking and _is_pinned(on_host))
    if waits:
        _note("copy to device" if _is_here(target) else "copy to host")
    if target.numel():
        host_source, host_target = (_on_host(tensor) if _is_here(tensor) else tensor for tensor in (source, target))
        if crosses and not waits and on_host is target:
            _queued_copies.append((target, host_source.clone()))
            target.fill_(float("nan") if target.is_floating_point() else 1)
            return target
        if crosses:
            _finish_copies(on_host)
        host_target.copy_(host_source)
    return target


def _to_copy(
    tensor: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """What ``to`` does with a tensor of the device: it pins the memory of a copy for which the host does not wait."""
    order = torch.preserve_format if memory_format is None else memory_format
    copied = torch.empty_like(tensor, dtype=dtype, device=device or tensor.device, memory_format=order)
    if non_blocking and not _is_here(copied):
        copied = _pin(copied)
    return copied.copy_(tensor, non_blocking=non_blocking)


def _resize(tensor: Tensor, size: list[int], *, memory_format: torch.memory_format | None = None) -> Tensor:
    resized = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    if kept := min(resized.numel(), tensor.numel()):
        _on_host(resized).view(-1)[:kept].copy_(_on_host(tensor).reshape(-1)[:kept])
    return tensor.set_(resized.untyped_storage(), 0, resized.shape, resized.stride())


def _cpu_operations() -> Iterator[tuple[str, OpOverload]]:
    """Everything that the CPU has a kernel of its own for, by name with overload."""
    for full_name in torch._C._dispatch_get_all_op_names():
        if full_name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "CPU"):
            name, _, overload = full_name.removeprefix("aten::").partition(".")
            yield full_name.removeprefix("aten::"), getattr(getattr(torch.ops.aten, name), overload or "default")


# What torch allows between the CPU and CUDA only, or leaves to an allocator, which a device written in Python lacks

_tensor_data, _compatible = torch._C.TensorBase.data, torch._has_compatible_shallow_copy_type
_storage_to, _storage_clone = torch.UntypedStorage.to, torch.UntypedStorage.clone


def _set_data(tensor: Tensor, values: Tensor) -> None:
    """``tensor.data = values`` across devices: the object stays the same, so tied parameters stay tied."""
    if _is_here(tensor) == _is_here(values):
        _tensor_data.__set__(tensor, values)
        return
    gradient = tensor.grad if tensor.is_leaf else None
    torch._C._swap_tensor_impl(tensor, values.detach().requires_grad_(tensor.requires_grad))
    if gradient is not None and _is_here(gradient) == _is_here(tensor):
        tensor.grad = gradient


def _may_set_data(tensor: Tensor, values: Tensor) -> bool:
    """What ``Module.to`` asks before it sets a parameter's data."""
    crosses = isinstance(tensor, torch.nn.Parameter) and _is_here(tensor) != _is_here(values)
    return crosses or _compatible(tensor, values)


def _move_storage(
    storage: torch.UntypedStorage, device: Any = None, *, non_blocking: bool = False
) -> torch.UntypedStorage | torch.TypedStorage:
    if device is None or torch.device(device).type != NAME or storage.device.type == NAME:
        return _storage_to(storage, device=device, non_blocking=non_blocking)
    return _on_device(torch.empty(0, dtype=torch.uint8).set_(storage.clone())).untyped_storage()


def _clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type != NAME:
        return _storage_clone(storage)
    return torch.empty(0, dtype=torch.uint8, device=NAME).set_(storage).clone().untyped_storage()


# The device as torch and its users see it


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def _device_module() -> ModuleType:
    """``torch.standin``: what libraries ask of ``torch.cuda``."""
    module: Any = ModuleType(f"torch.{NAME}")
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": False,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (_MEMORY, _MEMORY),
        "get_device_properties": SimpleNamespace(total_memory=_MEMORY, name=NAME),
        "get_amp_supported_dtype": [torch.float16, torch.bfloat16, torch.float32],
        **dict.fromkeys(["memory_allocated", "max_memory_allocated", "memory_reserved"], 0),
        **dict.fromkeys(["set_device", "empty_cache", "reset_peak_memory_stats", "_lazy_init", "init"]),
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer, **__: answer)
    module.synchronize = lambda device=None: _note("synchronize")
    module.device = lambda device=None: nullcontext()
    module.manual_seed = module.manual_seed_all = _random.manual_seed
    module.get_rng_state = lambda *_: _random.get_state()
    module.set_rng_state = lambda state, *_: _random.set_state(state)
    return module


def _register() -> tuple[torch.library.Library, torch.library.Library]:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_device_module(), hook=_Hooks())
    fallback, kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(_run, "PrivateUse1")
    cpu_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for name, op in _cpu_operations():
        kernel: Callable[..., Any] | None = None
        if name.partition(".")[0] in _BY_SHAPE:
            kernel = partial(op.redispatch, cpu_keys)
        elif any(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key) for key in _COMPOSITE_KEYS):
            kernel = partial(_run, op)  # otherwise torch would make it of smaller operations
        if kernel is not None:
            kernels.impl(name, kernel, "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    kernels.impl("resize_", _resize, "PrivateUse1")
    kernels.impl("_to_copy", _to_copy, "PrivateUse1")
    kernels.impl("_pin_memory", _pin, "CPU")
    register_autocast(fallback, kernels, NAME)
    patched: Any = torch
    patched.Tensor.data = property(_tensor_data.__get__, _set_data)
    patched._has_compatible_shallow_copy_type = _may_set_data
    patched.UntypedStorage.to, patched.UntypedStorage.clone = _move_storage, _clone_storage
    return fallback, kernels


_libraries = _register()  # kept, because registrations live as long as these
DEVICE = torch.device(NAME, 0)
