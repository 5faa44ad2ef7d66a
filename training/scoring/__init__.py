"""How right an answer is: one measure for each way in which data sets of questions are scored.

`metric` lists them by name; `exact`, `vqa`, `nearness` and `choices` are the measures. Knows texts;
knows nothing of models, actions, files or records.
"""

from training.scoring.exact import exact_match, normalise
from training.scoring.metric import AGREEMENT, EXACT, METRICS, Metric, agreement_of, metric_of

__all__ = [
    "AGREEMENT",
    "EXACT",
    "METRICS",
    "Metric",
    "agreement_of",
    "exact_match",
    "metric_of",
    "normalise",
]
