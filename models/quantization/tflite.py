"""TFLite models of fewer bits, by AI Edge Quantizer."""

from __future__ import annotations

from collections.abc import Iterator

from ai_edge_quantizer import qtyping
from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer

from models.backends.graph import Array
from models.export.tflite import finished
from models.manifest import Manifest, QuantizationMethod

_Operator = qtyping.TFLOperationName
_EVERYWHERE = ".*"
_PROGRAM = "predict"


def quantized(
    content: bytes, manifest: Manifest, method: QuantizationMethod, pieces: Iterator[Array]
) -> bytes:
    """Return the file of fewer bits with that manifest; calibration goes over the pieces."""
    quantizer = Quantizer(content)
    ranges = None
    if method == "fp16":
        quantizer.update_quantization_recipe(
            _EVERYWHERE, _Operator.ALL_SUPPORTED, _half(), AlgorithmName.FLOAT_CASTING
        )
    elif method == "int8-dynamic":
        quantizer.add_dynamic_config(_EVERYWHERE, _Operator.ALL_SUPPORTED, num_bits=8)
    else:
        quantizer.add_static_config(
            _EVERYWHERE, _Operator.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
        )
        for end in (_Operator.INPUT, _Operator.OUTPUT):
            quantizer.update_quantization_recipe(_EVERYWHERE, end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        name = manifest.programs[_PROGRAM].inputs["x"]
        ranges = quantizer.calibrate({_PROGRAM: [{name: piece} for piece in pieces]}, num_threads=1)
    return finished(bytes(quantizer.quantize(ranges).quantized_model), manifest)


def _half() -> qtyping.OpQuantizationConfig:
    """Weights are stored as float16, and used as float32."""
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    return qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
