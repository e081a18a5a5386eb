"""Which derivatives an operator with a gradient of its own has: the first one, backwards. Every other raises.

Torch asks a custom operator for a backward formula only, and takes what it does not find for zero: a tangent (jvp,
jacfwd) is dropped, and the gradient of a gradient ends where the formula has called a kernel. Here, in one place for
all operators, both raise and say what has them: backend="reference", whose functions are plain torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

REMEDY = "backend='reference' has every order and mode, on dense matrices"
GUARDED: dict[str, str] = {}  # operator -> the public function that errors speak of


def differentiable(
    operator: Any,
    function: str,
    *,
    setup: Callable[[Any, tuple[Any, ...], Any], tuple[Tensor | None, ...]],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """Gives an operator its gradient; returns what calls it.

    Args:
        operator: of torch.library.custom_op.
        function: the public function that it is a part of.
        setup: (ctx, inputs, output) -> the tensors that backward needs.
        backward: (ctx, those tensors, *gradients of the outputs) -> gradients of the inputs.
    """
    GUARDED[operator._qualname] = function

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kept = setup(ctx, inputs, output)
        ctx.num_kept = len(kept)
        wanted = (x for x, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed)
        ctx.save_for_backward(*kept, *wanted)

    def first(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        kept, inputs = saved[: ctx.num_kept], saved[ctx.num_kept :]
        with torch.no_grad():
            found = backward(ctx, kept, *grads)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if x is None else _Once.apply(function, x, *inputs, *grads) for x in found)  # type: ignore[no-untyped-call]

    def call(*arguments: Any) -> Any:
        refuse_transforms(function, *arguments)
        return operator(*arguments)

    operator.register_autograd(first, setup_context=save)
    return call


def refuse_transforms(function: str, *arguments: Any, remedy: str = REMEDY) -> None:
    """Raises where forward mode, or a torch.func transform, asks for a derivative by one of the arguments."""
    for x in arguments:
        if not isinstance(x, Tensor):
            continue
        mode = transform_of(x)
        if mode:
            raise RuntimeError(f"{function} has no {mode} with the kernels; {remedy}")


def transform_of(x: Tensor) -> str:
    """By what x is being differentiated other than torch.autograd's backward mode; "" if by nothing."""
    if torch.compiler.is_compiling() or not x.is_floating_point():
        return ""
    if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        return "forward-mode derivative (jvp, jacfwd, dual numbers)"
    if torch._C._are_functorch_transforms_active():
        functorch = torch._C._functorch
        while functorch.is_functorch_wrapped_tensor(x):  # vmap alone is none: torch runs the operator row by row
            if functorch.is_gradtrackingtensor(x) and x.requires_grad:
                return "torch.func derivative (torch.autograd.grad has the first one)"
            x = functorch.get_unwrapped(x)
    return ""


def wants_gradient(x: Tensor) -> bool:
    """x.requires_grad, which vmap hides."""
    if x.requires_grad or torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return x.requires_grad
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return wrapped


class _Once(torch.autograd.Function):
    """A gradient that a kernel computed from the tensors ``of``, as a function of which it has no derivative."""

    @staticmethod
    def forward(ctx: Any, function: str, gradient: Tensor, *of: Tensor | None) -> Tensor:
        ctx.function = function
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"{ctx.function} has no second derivative with the kernels; {REMEDY}")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{ctx.function} has no second derivative with the kernels; {REMEDY}")
