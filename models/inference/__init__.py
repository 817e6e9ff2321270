"""Answers of trained models: any file that `trellis` writes, by the runtime that it is for."""

from models.inference.measuring import Predictions, predict
from models.inference.predictor import MAX_MODEL_BYTES, Predictor, exported_predictor, open_predictor

__all__ = ["MAX_MODEL_BYTES", "Predictions", "Predictor", "exported_predictor", "open_predictor", "predict"]
