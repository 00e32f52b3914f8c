"""How models are trained: one recipe, one loop."""
