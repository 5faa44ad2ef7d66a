"""One feature vector a question, from by-products of the one encode.

`schema` names the numbers, `vector` computes them, with `cells` of the coarse grids and `words` of
the question; `scripts` tells questions that no number can describe.
"""

from router.features.schema import (
    FEATURES_VERSION,
    GROUPS,
    FeatureSchema,
    feature_schema,
)
from router.features.vector import PictureFeatures, picture_features, question_features

__all__ = [
    "FEATURES_VERSION",
    "GROUPS",
    "FeatureSchema",
    "PictureFeatures",
    "feature_schema",
    "picture_features",
    "question_features",
]
