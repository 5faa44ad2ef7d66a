"""Features in, P(this action's answer suffices) out: LightGBM boosters, calibrated.

`chain` is the predictor, `boosting` fits one booster, `forest` says which one starts from which,
`calibration` maps scores to probabilities, `trees` predicts from arrays of all trees, equal to
LightGBM bit for bit.
"""

from router.predictor.chain import ComplexityPredictor

__all__ = ["ComplexityPredictor"]
