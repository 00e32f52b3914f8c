"""What calibration text says of a decoder's weights: which inputs are large, and what an error costs.

Everything is by GGUF's tensor names, and rows stand in GGUF's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

FILE = "importance.safetensors"
_PARTS = ("inputs", "rows", "columns")


@dataclass(frozen=True)
class Importance:
    """By tensor, float32.

    `inputs`, shape (columns,): mean square of what a column is multiplied with; a table that is only looked up in has
    none. `rows` and `columns`, shapes (rows,) and (columns,): sums of the squared gradients of a window's
    log-likelihood, per token, with labels drawn from the model itself: see `error_cost`.
    """

    inputs: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]

    def error_cost(self, name: str, error: np.ndarray, *, first_row: int = 0) -> float:
        """Divergence (nats per token) that an error of these rows of a weight brings, as far as it adds up.

        error: float32, shape (some rows from `first_row` on, columns). To second order the Kullback-Leibler divergence
        is half the error's square under the Fisher information, whose diagonal, the mean squared gradient for labels
        drawn from the model (Martens, 2020, "New Insights and Perspectives on the Natural Gradient Method",
        https://arxiv.org/abs/1412.1193), is taken for the outer product of its row and column sums (as Adafactor does:
        Shazeer and Stern, 2018, https://arxiv.org/abs/1804.04235). Roundings of different weights have nothing to do
        with each other, so the rest of the matrix cancels.
        """
        rows = self.rows[name]
        total = float(rows.sum(dtype="float64"))
        if total <= 0:
            return 0.0
        by_row = (error * error) @ self.columns[name]
        return 0.5 * float(by_row.astype("float64") @ rows[first_row : first_row + len(error)]) / total


def write(importance: Importance, folder: Path) -> None:
    """Keep it as safetensors."""
    from safetensors.numpy import save_file

    tensors = {
        f"{part}.{name}": values for part in _PARTS for name, values in sorted(getattr(importance, part).items())
    }
    save_file(tensors, folder / FILE)


def read(folder: Path) -> Importance:
    """What `write` kept. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"it cannot be read: {error}", where=str(folder / FILE), remedy="measure the importance again"
        ) from error
    parts = {
        part: {name.partition(".")[2]: values for name, values in tensors.items() if name.partition(".")[0] == part}
        for part in _PARTS
    }
    return Importance(**parts)
