"""What a written file gained and lost against the baseline's: ratios, differences, and answers side by side."""

from __future__ import annotations

import numpy as np

from edgeforge.comparison import RESAMPLES, paired_interval
from edgeforge.core.artifact import Artifact
from edgeforge.core.report import ArtifactRow, MetricComparison


def deltas(row: ArtifactRow, baseline: ArtifactRow) -> dict[str, float | None]:
    """Ratios are baseline over row (4: four times smaller, faster); metrics are row minus baseline."""
    found: dict[str, float | None] = {
        "size_ratio": baseline.bytes / row.bytes if row.bytes and baseline.bytes else None,
        "latency_ratio": row.latency[0].ratio if row.latency else None,
    }
    for name, value in row.metrics.items():
        before = baseline.metrics.get(name)
        found[name] = value - before if value is not None and before is not None else None
    return found


def compared(row: Artifact | None, baseline: Artifact | None, headline: str | None) -> MetricComparison | None:
    """Predictions of two evaluated files side by side; None where one of them could not be evaluated.

    The interval is that of a difference of accuracies: it is left out where another metric is the headline.
    """
    if row is None or baseline is None:
        return None
    if "nll.npy" in row.files and "nll.npy" in baseline.files:
        return compared_texts(row, baseline)
    if "logits.npy" not in row.files or "logits.npy" not in baseline.files:
        return None
    after = np.load(row.path / "logits.npy", allow_pickle=False).argmax(axis=-1)
    before = np.load(baseline.path / "logits.npy", allow_pickle=False).argmax(axis=-1)
    agreement = float((after == before).mean())
    if "labels.npy" not in row.files or headline != "accuracy":
        return MetricComparison(n=len(after), agreement=agreement)
    labels = np.load(row.path / "labels.npy", allow_pickle=False)
    gained = int(((after == labels) & (before != labels)).sum())
    lost = int(((after != labels) & (before == labels)).sum())
    return MetricComparison(
        n=len(after),
        agreement=agreement,
        difference=(gained - lost) / len(after),
        ci95=paired_interval(gained, lost, len(after)),
    )


def compared_texts(row: Artifact, baseline: Artifact) -> MetricComparison | None:
    """Two evaluated language models, token by token; None where they read the texts as different tokens.

    Both agree where they find the same token likeliest; ids of another vocabulary are not those of the reference.

    The difference is that of perplexities; its interval is a bootstrap over windows (Efron, 1979).
    """
    pairs = {}
    for name in ("nll", "scored", "likeliest"):
        pairs[name] = [np.load(item.path / f"{name}.npy", allow_pickle=False) for item in (row, baseline)]
    scored, before = pairs["scored"]
    same_ids = all("top1.npy" in item.files for item in (row, baseline))
    if not same_ids or scored.shape != before.shape or not np.array_equal(scored, before):
        return None
    sums = np.stack([np.where(scored, values, 0.0).sum(axis=1, dtype=np.float64) for values in pairs["nll"]])
    counts = scored.sum(axis=1)
    drawn = np.random.RandomState(0).randint(len(counts), size=(RESAMPLES, len(counts)))
    perplexities = np.exp(sums[:, drawn].sum(axis=2) / counts[drawn].sum(axis=1))
    low, high = np.percentile(perplexities[0] - perplexities[1], [2.5, 97.5])
    after_all, before_all = np.exp(sums.sum(axis=1) / counts.sum())
    agreement = (pairs["likeliest"][0] == pairs["likeliest"][1])[scored.astype(bool)].mean()
    return MetricComparison(
        n=int(counts.sum()),
        agreement=float(agreement),
        difference=float(after_all - before_all),
        ci95=(float(low), float(high)),
    )
