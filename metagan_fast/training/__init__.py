"""Training runs: configuration, presets, the outer loop, loggers, the run folder, reports."""

from .loggers import Logger, MLflow, TensorBoard, WandB

__all__ = ["Logger", "MLflow", "TensorBoard", "WandB"]
