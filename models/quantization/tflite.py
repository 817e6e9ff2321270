"""TFLite models of fewer bits, by AI Edge Quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import QSV
from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager

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
        ranges = _ranges(content, quantizer, [{name: piece} for piece in pieces])
    return finished(bytes(quantizer.quantize(ranges).quantized_model), manifest)


def _ranges(content: bytes, quantizer: Quantizer, samples: Sequence[Mapping[str, Array]]) -> dict[str, QSV]:
    """Return between which numbers each tensor was.

    The quantizer's own way is a moving average over the samples, beyond which half of them lie.
    """
    recipe = RecipeManager()
    recipe.load_quantization_recipe(quantizer.get_quantization_recipe())
    calibrator = Calibrator(content, num_threads=1, qsv_update_func=_widened)
    calibrator.calibrate({_PROGRAM: samples}, recipe)
    return dict(calibrator.get_model_qsvs())


def _widened(ranges: QSV, more: QSV) -> QSV:
    if not ranges:
        return more
    return {"min": np.minimum(ranges["min"], more["min"]), "max": np.maximum(ranges["max"], more["max"])}


def _half() -> qtyping.OpQuantizationConfig:
    """Weights are stored as float16, and used as float32."""
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    return qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
