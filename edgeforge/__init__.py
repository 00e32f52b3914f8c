"""EdgeForge: distil, prune, quantize, export, verify and benchmark a model from one YAML file."""

import os

__version__ = "0.1.0"

# ONNX Runtime collects usage data since 1.30: nobody was asked, and its thread and files disturb measurements.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
