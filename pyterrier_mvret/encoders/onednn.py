"""float32 linear layers by oneDNN instead of the BLAS that PyTorch was built with; within one thread, for a while.

PyTorch itself takes oneDNN for float32 only under ``torch.set_float32_matmul_precision("medium")``, a setting of the
whole process that also allows bfloat16 where the processor has AMX, and that was measured to be slower than the BLAS
on a processor without (benchmarks/NOTES.md). Here its linear layer is called by name: full float32 on every
processor, and no setting of the user's is touched.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# of the largest result; rounding to bfloat16 is off by a hundred times as much, to TensorFloat-32 by ten times
_TOLERANCE = 1e-5


def linear_layers(model: "torch.nn.Module") -> AbstractContextManager[Any]:
    """A context in which this thread's linear layers run in oneDNN, or one that changes nothing where that is wrong.

    It is wrong for a model elsewhere than on the CPU or in half precision, where the operator is not there, where the
    user has switched oneDNN off or asked for automatic mixed precision, and where :func:`accurate` finds more than the
    error of float32.
    """
    import torch

    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return nullcontext()  # every call within the context costs a little
    if not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu") or not accurate():
        return nullcontext()
    return _mode()()


@functools.cache
def accurate() -> bool:
    """Whether oneDNN's linear layer is there and as exact as float32 can be: compared with float64, once a process."""
    import torch

    operator = _operator()
    if operator is None:
        return False
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((64, 1536), (384, 1536), (384,)))
    with torch.inference_mode():
        exact = torch.nn.functional.linear(inputs.double(), weight.double(), bias.double())
        error = (operator(inputs, weight, bias, "none", [], "").double() - exact).abs().max()
        return bool(error <= _TOLERANCE * exact.abs().max())


def _operator() -> Any:
    """The operator that PyTorch's own compiler emits for linear layers; none in builds without oneDNN."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@functools.cache
def _mode() -> type[AbstractContextManager[Any]]:
    """The context's class; made on first use, as its base is PyTorch's. PyTorch keeps such contexts by thread."""
    import torch
    from torch.overrides import TorchFunctionMode

    linear, operator, plain = torch.nn.functional.linear, _operator(), (torch.Tensor, torch.nn.Parameter)

    def fits(tensor: Any) -> bool:
        return type(tensor) in plain and tensor.dtype is torch.float32 and tensor.device.type == "cpu"

    class OneDnn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is linear and not (kwargs or torch.is_grad_enabled() or torch._C._get_tracing_state()):
                inputs, weight, bias = args if len(args) == 3 else (*args, None)
                if fits(inputs) and fits(weight) and weight.ndim == 2 and inputs.ndim > 1 and inputs.numel():
                    return operator(inputs, weight, bias, "none", [], "")
            return func(*args, **(kwargs or {}))

    return OneDnn
