"""The forward pass of a transformer compiled by OpenVINO; everything around it stays PyTorch's.

Only the forward of the model inside the Transformer module is replaced, and only in inference mode: prompts, query
expansion, projections, masks and normalisation are those of the checkpoint, and training goes through PyTorch.
"""

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
# least cosine between a token state and PyTorch's, of a conversion that is right
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.98}


def check(dtype: str, device: str | None) -> None:
    """Says at once what this backend cannot do.

    Raises:
        ValueError: another device than the CPU, or arithmetic that OpenVINO does not offer there.
    """
    if device not in (None, "cpu"):
        raise ValueError(f"backend='openvino' computes on the CPU, got device={device!r}")
    if dtype not in _HINTS:
        raise ValueError(f"backend='openvino' computes in {' or '.join(_HINTS)}, got dtype={dtype!r}")


def attach(model: "MultiVectorEncoder", dtype: str, label: str) -> None:
    """Puts the compiled forward in place of the transformer's own; ``model`` is in float32 on the CPU.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: bfloat16 on a processor without it, or a model that does not come out as PyTorch computes it.
    """
    core = _openvino().Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("dtype='bfloat16' with backend='openvino': this processor has no bfloat16 arithmetic")
    transformer: Any = model[0]
    if not hasattr(transformer, "auto_model"):
        raise ValueError(f"{label}: backend='openvino' needs a Transformer, got {type(transformer).__name__}")
    transformer.auto_model.forward = _Forward(transformer.auto_model, core, dtype, label)


def _openvino() -> Any:
    """The package, without its reports of usage: importing it would send them over the network, without asking."""
    reports = "openvino_telemetry"
    silence = "openvino" not in sys.modules and reports not in sys.modules
    if silence:
        sys.modules[reports] = None  # type: ignore[assignment]  # OpenVINO takes its own stand-in where it is missing
    try:
        import openvino
    except ImportError as error:
        raise ImportError("backend='openvino' needs OpenVINO: pip install 'pyterrier-mvret[openvino]'") from error
    finally:
        if silence:
            del sys.modules[reports]
    return openvino


class _Forward:
    """A transformer's forward pass, compiled on first use and again when its weights have changed."""

    def __init__(self, transformer: Any, core: Any, dtype: str, label: str):
        self.transformer, self.core, self.dtype, self.label = transformer, core, dtype, label
        self.original = transformer.forward
        self._lock = threading.Lock()
        self._compiled: tuple[Any, Any] | None = None
        self._requests = threading.local()  # one of OpenVINO's requests serves one thread at a time

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        if not torch.is_inference_mode_enabled() or torch._C._get_tracing_state():
            return self.original(*args, **kwargs)
        inputs = {name: value for name, value in sorted(kwargs.items()) if isinstance(value, torch.Tensor)}
        states = self._request(inputs).infer([value.numpy() for value in inputs.values()])[0]
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))

    def _request(self, inputs: dict[str, Any]) -> Any:
        key = (tuple(inputs), *((p.data_ptr(), p._version) for p in self.transformer.parameters()))
        with self._lock:
            if self._compiled is None or self._compiled[0] != key:
                self._compiled = (key, self._compile(inputs))
            compiled = self._compiled[1]
        if getattr(self._requests, "of", None) is not compiled:
            self._requests.of, self._requests.request = compiled, compiled.create_infer_request()
        return self._requests.request

    def _compile(self, inputs: dict[str, Any]) -> Any:
        import torch

        names = list(inputs)
        strange = [name for name, value in inputs.items() if value.ndim != 2 or value.is_floating_point()]
        if strange:
            raise ValueError(f"{self.label}: backend='openvino' takes token ids and masks, not {', '.join(strange)}")
        traced = _states(self.transformer, names)
        # normal tensors and no inference mode: what is traced there cannot be read by the tracer
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about branches that do not depend on the text
            example = tuple(_example(name, 2, 8, inputs[name].dtype) for name in names)
            converted = _openvino().convert_model(traced, example_input=example)
        compiled = self.core.compile_model(
            converted,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[self.dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
            },
        )
        self._verify(compiled, [_example(name, 3, 13, inputs[name].dtype) for name in names], names)
        return compiled

    def _verify(self, compiled: Any, example: list[Any], names: list[str]) -> None:
        """Tracing fixes whatever it takes for a constant: another shape than that traced must come out right too."""
        import torch

        with torch.inference_mode():
            expected = self.original(**dict(zip(names, example, strict=True)), return_dict=True).last_hidden_state
            states = torch.from_numpy(compiled([value.numpy() for value in example])[0])
            if states.shape == expected.shape:
                kept = example[names.index("attention_mask")].bool() if "attention_mask" in names else ...
                cosines = torch.nn.functional.cosine_similarity(states[kept], expected[kept], dim=-1)
                if cosines.min() >= _LEAST_COSINE[self.dtype]:
                    return
        raise ValueError(f"{self.label}: compiled by OpenVINO, this model does not compute what it does in PyTorch")


def _example(name: str, rows: int, width: int, dtype: Any) -> Any:
    """Input of a shape, with padding where it is a mask: a mask without would be left out of the graph."""
    import torch

    if name != "attention_mask":
        ids = torch.arange(rows * width).reshape(rows, width) % 50 + 3
        return (ids if name == "input_ids" else torch.zeros_like(ids)).to(dtype)
    mask = torch.ones(rows, width, dtype=dtype)
    mask[-1, width // 2 :] = 0
    return mask


def _states(transformer: Any, names: list[str]) -> Any:
    """The transformer as the converter wants it: positional tensors in, last hidden states out."""
    import torch

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer  # its weights are then no constants of the trace

        def forward(self, *values: Any) -> Any:
            return self.transformer(**dict(zip(names, values, strict=True)), return_dict=True).last_hidden_state

    return States().eval()
