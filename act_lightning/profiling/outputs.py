"""What modules compute, seen where it is computed: by hooks, inside routers and recurrent layers, expert by expert."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear

from act_lightning.architecture import output_embedding
from act_lightning.data.batches import AnswerPositions, BufferPool
from act_lightning.errors import ActError, ConfigIssue

_PROJECTIONS = ("dt_proj",)  # of recurrent layers, whose weights are multiplied without calling the module
_CLASSIFIERS = (".classifier",)  # of routers, whose weights are cast without calling the module
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_IMPLEMENTATION = "act_lightning"
"""The name under which transformers knows :func:`_experts_forward`."""
_SKIPPING = ("ZayaExperts",)  # whose routers send a token to expert 0 with a weight of 0 where it skips all of them

Rerun = Callable[[Mapping[str, Tensor]], Tensor]
"""Runs a module again on the same input with other weights, by their names in it, and returns its output."""


@dataclass(frozen=True)
class Routing:
    """To which expert each row of an output belongs. Rows are sorted by expert, and then by token.

    Attributes:
        tokens: Number of the row's token, int64 ``[rows]``: of all in the flattened batch, or of the answer tokens.
        experts: Number of its expert, int64 ``[rows]``. No pair of token and expert occurs twice.
        total: Number of all tokens.
    """

    tokens: Tensor
    experts: Tensor
    total: int

    def at(self, positions: Tensor) -> tuple[Tensor, Routing]:
        """Numbers of the rows of those tokens, int64 ``[kept]``, and their routing with these tokens numbered anew.

        ``positions`` are numbers of tokens, int64, ascending.
        """
        numbers = torch.full((self.total,), -1, dtype=torch.int64, device=positions.device)
        numbers[positions] = torch.arange(len(positions), device=positions.device)
        tokens = numbers[self.tokens]
        rows = (tokens >= 0).nonzero().squeeze(1)
        return rows, Routing(tokens[rows], self.experts[rows], len(positions))


def count_by_expert(experts: Tensor, count: int) -> Tensor:
    """Rows of each expert, int64 ``[count]``: ``torch.bincount``, for which the host would wait."""
    return experts.new_zeros(count).scatter_add_(0, experts, torch.ones_like(experts))


@dataclass(frozen=True)
class ExpertOutput:
    """The output of packed experts at answer tokens: a row for each token and expert that it is routed to.

    Attributes:
        values: ``[rows, features]``. Of any other token the expert's activation is 0.
        routing: Whose rows they are.
    """

    values: Tensor
    routing: Routing


Output = Tensor | ExpertOutput
"""A module's output at answer tokens: ``[tokens, ..., channels]``, or that of packed experts."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        name: The module's name; of packed experts that of one of their parameters.
        values: Its output, ``[..., channels]``; of packed experts ``[rows, features]``.
        rerun: Runs it again with other weights.
        inputs: Its input, if each row of the output depends on the same row of that alone.
        routing: Whose rows they are, of packed experts.
        ends_with_last: Whether positions beyond those of tokens come before them, as of inputs that are padded before a
            convolution; else they come after them.
    """

    name: str
    values: Tensor
    rerun: Callable[..., Tensor]
    inputs: Tensor | None = None
    routing: Routing | None = None
    ends_with_last: bool = False


Visit = Callable[[ModuleCall], Tensor | None]
"""Sees a call, and may return another output that is used in its place."""


def rerun_with_weights(module: nn.Module, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """The output of a module with other weights and the same settings. No hook is called.

    Args:
        module: A module whose parameters are all its own, none a child's.
        weights: The parameters by their names in the module; others are ignored.
        args: The module's inputs.
        kwargs: Inputs by name.
    """
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    other = copy.copy(module)
    # A shallow copy with a parameter table of its own. torch.func.functional_call would run hooks, and whatever stands
    # in for `forward` on this instance.
    other.__dict__["_parameters"] = {**module._parameters, **{name: weights[name] for name in names}}
    output: Tensor = type(module).forward(other, *args, **kwargs)
    return output


def owner_of(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The module of ``name``, which is its own, or packed experts of which it is a parameter."""
    return name if name in modules else name.rpartition(".")[0]


@contextmanager
def visit_calls(model: PreTrainedModel, names: Sequence[str], visit: Visit) -> Iterator[None]:
    """Let ``visit`` see every call of the named modules, in the order of the forward pass.

    Most modules have hooks. What routers and recurrent layers compute inside themselves (an expert's logits, a
    convolution whose module is not called) is seen as the function is called. Packed experts run in an implementation
    of transformers' ``ExpertsInterface``; those that don't take it are seen as they multiply all matrices at once.

    Raises:
        ActError: While the model runs: a module computes in a way that is not known.
    """
    modules = dict(model.named_modules())
    functions = _FunctionCalls(visit)
    with ExitStack() as stack:
        packed: dict[str, list[str]] = {}
        for name in names:
            module = modules.get(name)
            if module is None:
                owner, _, leaf = name.rpartition(".")
                packed.setdefault(owner, []).append(leaf)
            elif isinstance(module, nn.Conv1d):
                functions.features_first[name] = module
            elif "router" in type(module).__name__.lower():
                stack.enter_context(functions.inside(module, partial(functions.see_logits, name, module)))
            elif name.endswith(_CLASSIFIERS) and "router" in type(modules[name.rpartition(".")[0]]).__name__.lower():
                router = modules[name.rpartition(".")[0]]
                stack.enter_context(functions.inside(router, partial(functions.see_logits, name, module)))
            else:
                if name.endswith(_PROJECTIONS) and isinstance(module, nn.Linear):
                    functions.features_first[name] = module
                hook = partial(_see_output, name, visit)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for owner, leaves in packed.items():
            stack.enter_context(_visit_experts(modules, owner, leaves, visit, functions))
        if functions.features_first:
            stack.enter_context(functions)
        yield


def _visit_experts(
    modules: Mapping[str, nn.Module], owner: str, leaves: Sequence[str], visit: Visit, functions: _FunctionCalls
) -> AbstractContextManager[None]:
    """Let ``visit`` see the outputs of some matrices of the packed experts named ``owner``, however they run."""
    module, see = modules[owner], partial(_see_expert, owner, leaves, visit)
    if hasattr(module, "is_transposed"):
        return _implementation(module, see)
    if type(module).__name__ == "LongcatFlashExperts":
        return _replaced_forward(module, partial(_experts_and_identities, module, see))
    if type(module).__name__ == "JetMoeParallelExperts":
        return _sorted_rows(module, modules[f"{owner.rpartition('.')[0]}.router"], see)
    return functions.inside(module, partial(functions.see_matrices, owner, module, leaves))


def _see_output(
    name: str, visit: Visit, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> Tensor | None:
    if not isinstance(output, Tensor):
        raise _unknown(name, f"its output is a {type(output).__name__}")
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    # All modules but embeddings treat each token alone; gates and the like would have to be cut as their input is.
    alone = len(tensors) == 1 and bool(args) and args[0] is tensors[0] and tensors[0].is_floating_point()

    def rerun(weights: Mapping[str, Tensor], inputs: Tensor | None = None) -> Tensor:
        return rerun_with_weights(module, weights, *(args if inputs is None else (inputs, *args[1:])), **kwargs)

    return visit(ModuleCall(name, output, rerun, tensors[0] if alone else None))


def _unknown(name: str, reason: str) -> ActError:
    problem = f"must compute the outputs of {name} in a way that is known, and {reason}"
    hint = "Select by weights or gradients: weight, weight_rms or attribution."
    return ActError(ConfigIssue("transfer.selection", name, problem, hint))


_SeeExpert = Callable[[nn.Module, str, Tensor, Callable[..., Tensor], Routing], Tensor | None]
_observed: WeakKeyDictionary[nn.Module, _SeeExpert] = WeakKeyDictionary()


@contextmanager
def _implementation(module: nn.Module, see: _SeeExpert) -> Iterator[None]:
    """Have packed experts run in our implementation, as transformers' interface lets any name in the config do."""
    config: Any = module.config
    previous = config._experts_implementation
    _observed[module] = see
    config._experts_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._experts_implementation = previous
        del _observed[module]


def _see_expert(
    owner: str,
    leaves: Sequence[str],
    visit: Visit,
    module: nn.Module,
    leaf: str,
    values: Tensor,
    rerun: Callable[..., Tensor],
    routing: Routing,
) -> Tensor | None:
    return visit(ModuleCall(f"{owner}.{leaf}", values, rerun, None, routing)) if leaf in leaves else None


def _experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Packed experts, grouped by expert, with the outputs of both their matrices seen where they are computed.

    Args:
        module: One that ``use_experts_implementation`` of transformers decorates.
        hidden_states: ``[tokens, features]``.
        top_k_index: Numbers of each token's experts, int64 ``[tokens, k]``.
        top_k_weights: Their weights, ``[tokens, k]``.
    """
    tokens, k = top_k_index.shape
    experts, order = torch.sort(top_k_index.reshape(-1), stable=True)
    rows, weights = order // k, top_k_weights.reshape(-1)[order].unsqueeze(1)
    routed = weights.squeeze(1).nonzero().squeeze(1) if type(module).__name__ in _SKIPPING else None
    output = _run_experts(
        module, _observed.get(module), hidden_states.index_select(0, rows), Routing(rows, experts, tokens), routed
    )
    weighted = torch.empty_like(output)
    weighted[order] = output * weights
    return weighted.view(tokens, k, -1).sum(1).to(hidden_states.dtype)


def _experts_and_identities(
    module: nn.Module, see: _SeeExpert, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """As :func:`_experts_forward`, where numbers beyond those of the experts pass their input on."""
    count = len(module.get_parameter("down_proj"))
    tokens, places = (top_k_index < count).nonzero(as_tuple=True)
    experts, order = torch.sort(top_k_index[tokens, places], stable=True)
    tokens, places = tokens[order], places[order]
    output = _run_experts(module, see, hidden_states[tokens], Routing(tokens, experts, len(hidden_states)))
    passed_on = top_k_weights.masked_fill(top_k_index < count, 0).sum(1, keepdim=True)
    result = (hidden_states * passed_on).to(hidden_states.dtype)
    return result.index_add_(0, tokens, (output * top_k_weights[tokens, places, None]).to(result.dtype))


def _run_experts(
    module: nn.Module, see: _SeeExpert | None, inputs: Tensor, routing: Routing, routed: Tensor | None = None
) -> Tensor:
    """The outputs of packed experts, ``[rows, features]``.

    Args:
        module: The experts.
        see: Sees the outputs of both their matrices, and may change them.
        inputs: ``[rows, features]``, sorted by expert.
        routing: Whose rows these are.
        routed: Numbers of the rows that are seen, int64, if not all.
    """
    experts_module: Any = module
    count, has_bias = len(experts_module.down_proj), getattr(experts_module, "has_bias", False)
    has_gate = getattr(experts_module, "has_gate", True)
    offsets = count_by_expert(routing.experts, count).cumsum(0).to(torch.int32)
    seen = routing
    if routed is not None:
        seen = Routing(routing.tokens[routed], routing.experts[routed], routing.total)

    def project(leaf: str, values: Tensor) -> Tensor:
        def run(weights: Mapping[str, Tensor], _: Tensor | None = None) -> Tensor:
            bias = weights[f"{leaf}_bias"][routing.experts] if has_bias else None
            transposed = getattr(experts_module, "is_transposed", False)
            return _grouped_linear(values, weights[leaf][:count], offsets, bias, transposed)

        output = run(experts_module._parameters)
        if see is None:
            return output
        if routed is None:
            changed = see(module, leaf, output, run, seen)
            return output if changed is None else changed
        changed = see(module, leaf, output[routed], lambda weights: run(weights)[routed], seen)
        return output if changed is None else output.index_copy(0, routed, changed)

    first = project("gate_up_proj" if has_gate else "up_proj", inputs)
    if not hasattr(experts_module, "is_transposed"):
        gate, up = first.chunk(2, dim=-1)
        activated = experts_module.act_fn(gate) * up
    else:
        activated = experts_module._apply_gate(first) if has_gate else experts_module.act_fn(first)
    output = project("down_proj", activated)
    return experts_module.post_expert_norm(output) if getattr(experts_module, "has_post_expert_norm", False) else output


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Have this instance of a module compute by another function."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _sorted_rows(module: nn.Module, router: nn.Module, see: _SeeExpert) -> Iterator[None]:
    """See the output of experts whose inputs are sorted already, by what their router says of each row."""
    routings: list[Routing] = []

    def route(_: nn.Module, __: object, output: tuple[Any, ...]) -> None:
        _, tokens, _, sizes, logits = output
        experts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(tokens.device)
        routings[:] = [Routing(tokens, experts, len(logits))]

    def visit(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        routing = routings[0]
        order = torch.argsort(routing.experts * routing.total + routing.tokens)  # the router leaves tokens unsorted

        def rerun(weights: Mapping[str, Tensor]) -> Tensor:
            return rerun_with_weights(module, weights, *args)[order]

        routing = Routing(routing.tokens[order], routing.experts[order], routing.total)
        changed = see(module, "weight", output[order], rerun, routing)
        return None if changed is None else torch.empty_like(output).index_copy_(0, order, changed)

    with ExitStack() as stack:
        stack.callback(router.register_forward_hook(route).remove)
        stack.callback(module.register_forward_hook(visit).remove)
        yield


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)


class _FunctionCall(NamedTuple):
    """A call of a linear function, a product of batches of matrices, or a convolution, with its result."""

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def named(self) -> dict[str, Any]:
        """The first arguments by name."""
        return dict(zip(("input", "weight", "bias"), self.args, strict=False)) | self.kwargs

    def rerun(self, weights: Mapping[str, Tensor], _: Tensor | None = None) -> Tensor:
        """Call it again with the weight and bias of another module."""
        named = self.named
        for leaf in ("weight", "bias"):
            if isinstance(named.get(leaf), Tensor):
                named[leaf] = weights[leaf].to(named[leaf].dtype).reshape(named[leaf].shape)
        first = named.pop("input"), named.pop("weight"), named.pop("bias", None)
        return self.func(*first, *self.args[3:], **named)


_See = Callable[[_FunctionCall, tuple[Any, ...]], Tensor | None]
"""Looks at a function that a module calls, given the module's own inputs."""


class _FunctionCalls(TorchFunctionMode):
    """Sees functions of torch that are called with the weights of modules that no hook can see."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.features_first: dict[str, nn.Conv1d | nn.Linear] = {}
        self._visit = visit
        self._scopes: list[tuple[_See, tuple[Any, ...]]] = []

    @contextmanager
    def inside(self, module: nn.Module, see: _See) -> Iterator[None]:
        """While a module runs, let ``see`` look at the functions that it calls."""

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._scopes.append((see, args))
            if len(self._scopes) == 1 and not self.features_first:  # it costs a microsecond for every function
                self.__enter__()  # type: ignore[no-untyped-call]

        def leave(*_: object) -> None:
            if not self._scopes:  # it failed before it was entered
                return
            self._scopes.pop()
            if not self._scopes and not self.features_first:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        with ExitStack() as stack:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Call the function, and look at its result."""
        output = func(*args, **(kwargs or {}))
        changed = None
        if func is torch.conv1d or func in _PRODUCTS:
            changed = self._see_features_first(_FunctionCall(func, args, kwargs or {}, output))
        elif self._scopes and func in (functional.linear, torch.bmm):
            see, inputs = self._scopes[-1]
            changed = see(_FunctionCall(func, args, kwargs or {}, output), inputs)
        return output if changed is None else changed

    def _see_features_first(self, call: _FunctionCall) -> Tensor | None:
        """A convolution, or the product of a weight with inputs, of ``[..., features, tokens]`` both."""
        weight = call.named["weight"] if call.func is torch.conv1d else call.args[0]
        if not isinstance(weight, Tensor):
            return None
        at = weight.data_ptr()
        name = next((name for name, module in self.features_first.items() if module.weight.data_ptr() == at), None)
        if name is None:
            return None
        bias = None if call.func is torch.conv1d else self.features_first[name].bias  # which is added elsewhere

        def rerun(weights: Mapping[str, Tensor]) -> Tensor:
            if call.func is torch.conv1d:
                return call.rerun(weights).transpose(-1, -2)
            output = call.func(weights["weight"].to(weight.dtype), call.args[1]).transpose(-1, -2)
            return output if bias is None else output + weights["bias"]

        output = call.output.transpose(-1, -2)
        padding = call.kwargs.get("padding", (*call.args, 0, 0, 0, 0)[4]) if call.func is torch.conv1d else 0
        is_padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
        values = output if bias is None else output + bias
        changed = self._visit(ModuleCall(name, values, rerun, ends_with_last=not is_padded))
        if changed is None:
            return None
        return (changed if bias is None else changed - bias).to(call.output.dtype).transpose(-1, -2)

    def see_logits(self, name: str, module: nn.Module, call: _FunctionCall, _: tuple[Any, ...]) -> Tensor | None:
        """The linear function of a router, whose weight may have been cast."""
        weight = module._parameters["weight"]
        if call.func is not functional.linear or weight is None or call.named["weight"].shape != weight.shape:
            return None
        return self._visit(ModuleCall(name, call.output, call.rerun))

    def see_matrices(
        self, owner: str, module: nn.Module, leaves: Sequence[str], call: _FunctionCall, _: tuple[Any, ...]
    ) -> Tensor | None:
        """The matrices of packed experts that run their own code: products of all of them with all tokens.

        The input of a token that is not routed to an expert is zero.
        """
        values, weight = call.args[:2]
        parameters = {leaf: module._parameters[leaf] for leaf in leaves}
        at = weight.data_ptr()
        leaf = next((leaf for leaf, values in parameters.items() if values is not None and _covers(values, at)), None)
        if leaf is None:
            return None
        if call.func is not torch.bmm:
            raise _unknown(f"{owner}.{leaf}", "its experts run one by one")
        experts, tokens = values.ne(0).any(2).nonzero(as_tuple=True)

        def rerun(weights: Mapping[str, Tensor]) -> Tensor:
            other = weights[leaf] if weights[leaf].shape == weight.shape else weights[leaf].mT
            return torch.bmm(values, other)[experts, tokens]

        routing = Routing(tokens, experts, values.shape[1])
        seen = ModuleCall(f"{owner}.{leaf}", call.output[experts, tokens], rerun, None, routing)
        changed = self._visit(seen)
        if changed is None:
            return None
        output = call.output.clone()
        output[experts, tokens] = changed
        return output


def _covers(values: Tensor, address: int) -> bool:
    """Whether an address is that of one of a parameter's elements."""
    return values.data_ptr() <= address < values.data_ptr() + values.nbytes


def _without_padding(call: ModuleCall, values: Tensor, answers: AnswerPositions) -> Tensor:
    """The output of a convolution at tokens, ``[rows, length, channels]``."""
    length = answers.shape[1]
    extra = values.shape[1] - length
    if extra < 0:
        raise _unknown(call.name, "it has fewer positions than there are tokens")
    return values[:, extra:] if call.ends_with_last else values[:, :length]


def _expert_output(
    call: ModuleCall, routing: Routing, answers: AnswerPositions
) -> tuple[ExpertOutput, Callable[[Mapping[str, Tensor]], ExpertOutput]]:
    """The output of packed experts at answer tokens, and a function that computes it with other weights."""
    if answers.tokens == answers.shape.numel():  # no row is left out, and none changes afterwards
        return ExpertOutput(call.values, routing), lambda weights: ExpertOutput(call.rerun(weights), routing)
    rows, of_answers = routing.at(answers.index)

    def rerun(weights: Mapping[str, Tensor]) -> ExpertOutput:
        return ExpertOutput(call.rerun(weights).index_select(0, rows), of_answers)

    return ExpertOutput(call.values.index_select(0, rows), of_answers), rerun


@contextmanager
def capture_outputs(
    model: PreTrainedModel,
    names: Sequence[str],
    answers: AnswerPositions,
    sink: Callable[[str, Output, Callable[[Mapping[str, Tensor]], Output]], None],
    pool: BufferPool | None = None,
) -> Iterator[None]:
    """Hand the output of every named module at answer tokens to ``sink``; the head computes no other logits.

    Args:
        model: A causal language model.
        names: Full names of modules.
        answers: The positions of answer tokens.
        sink: Receives a module's name, its output at answer tokens, and a function that runs it again on the same
            input with other weights, in the order of the forward pass.
        pool: Where outputs are copied to. Without one the sink may not keep them: they may be views of what the model
            goes on to change in place.
    """
    head = output_embedding(model)

    def visit(call: ModuleCall) -> None:
        if call.routing is not None:
            if call.routing.total != answers.shape.numel():
                raise _unknown(call.name, "its tokens are not those of the batch")
            sink(call.name, *_expert_output(call, call.routing, answers))
            return
        module = model.get_submodule(call.name)

        if module is not head and not isinstance(module, nn.Conv1d) and not answers.fits(call.values):
            return  # as of a row that stands before the first token, or of a window of tokens

        def take(values: Tensor) -> Tensor:
            if module is head:
                return values.squeeze(0)
            values = _without_padding(call, values, answers) if isinstance(module, nn.Conv1d) else values
            return answers.take(values, pool)

        def rerun(weights: Mapping[str, Tensor]) -> Tensor:
            if call.inputs is not None:  # answer tokens suffice
                return call.rerun(weights, take(call.inputs))
            return take(call.rerun(weights))

        sink(call.name, take(call.values), rerun)

    with ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(answers.take_from_input).remove)
        stack.enter_context(visit_calls(model, names, visit))
        yield
