"""EdgeForge: distil, prune, quantize, export, verify and benchmark a model from one YAML file."""

__version__ = "0.1.0"
