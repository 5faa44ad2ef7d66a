"""The decision: what of this picture has to be read for this question, and how finely?

Knows arrays of features, LightGBM and costs. Knows nothing of language models, Ray or HTTP.
Importing this package is light; the names below are loaded when they are first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.actions import Action, ActionSpace, Plan, Reading, default_space, uniform_space
    from router.certificate.promise import Certificate
    from router.decision import (
        Constraints,
        Reason,
        RoutingDecision,
        default_detail_map,
        resolve_constraints,
    )
    from router.errors import (
        BudgetTooSmall,
        Contradiction,
        FeatureMismatch,
        NotCertified,
        RouterFileError,
        RoutingError,
        UnknownDetail,
        UnknownScale,
    )
    from router.explanation import Explanation
    from router.features.schema import FeatureSchema, feature_schema
    from router.features.vector import PictureFeatures, picture_features, question_features
    from router.policy import Policy, calibrate_price, choose, frontier
    from router.predictor.chain import ComplexityPredictor
    from router.records import (
        DecisionRecord,
        FeedbackRecord,
        OracleRecord,
        picture_id,
        split_of,
    )
    from router.registry import current_router_path
    from router.router import Router
    from router.second_look import SecondLook
    from router.wishes import constraints_from_json, constraints_to_json

_HOMES = {
    "Action": "actions",
    "ActionSpace": "actions",
    "BudgetTooSmall": "errors",
    "Certificate": "certificate",
    "ComplexityPredictor": "predictor",
    "Constraints": "decision",
    "Contradiction": "errors",
    "DecisionRecord": "records",
    "Explanation": "explanation",
    "FeatureMismatch": "errors",
    "FeatureSchema": "features",
    "FeedbackRecord": "records",
    "NotCertified": "errors",
    "OracleRecord": "records",
    "PictureFeatures": "features",
    "Plan": "actions",
    "Policy": "policy",
    "Reading": "actions",
    "Reason": "decision",
    "Router": "router",
    "RouterFileError": "errors",
    "RoutingDecision": "decision",
    "RoutingError": "errors",
    "SecondLook": "second_look",
    "UnknownDetail": "errors",
    "UnknownScale": "errors",
    "calibrate_price": "policy",
    "choose": "policy",
    "constraints_from_json": "wishes",
    "constraints_to_json": "wishes",
    "current_router_path": "registry",
    "default_detail_map": "decision",
    "default_space": "actions",
    "feature_schema": "features",
    "frontier": "policy",
    "picture_features": "features",
    "picture_id": "records",
    "question_features": "features",
    "resolve_constraints": "decision",
    "split_of": "records",
    "uniform_space": "actions",
}

__all__ = [
    "Action",
    "ActionSpace",
    "BudgetTooSmall",
    "Certificate",
    "ComplexityPredictor",
    "Constraints",
    "Contradiction",
    "DecisionRecord",
    "Explanation",
    "FeatureMismatch",
    "FeatureSchema",
    "FeedbackRecord",
    "NotCertified",
    "OracleRecord",
    "PictureFeatures",
    "Plan",
    "Policy",
    "Reading",
    "Reason",
    "Router",
    "RouterFileError",
    "RoutingDecision",
    "RoutingError",
    "SecondLook",
    "UnknownDetail",
    "UnknownScale",
    "calibrate_price",
    "choose",
    "constraints_from_json",
    "constraints_to_json",
    "current_router_path",
    "default_detail_map",
    "default_router_path",
    "default_space",
    "feature_schema",
    "frontier",
    "picture_features",
    "picture_id",
    "question_features",
    "resolve_constraints",
    "split_of",
    "uniform_space",
]


def default_router_path() -> Path:
    """Return the folder of the router shipped for m3-mini (it may not exist in a bare checkout)."""
    return Path(__file__).parent / "pretrained" / "m3-mini"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'router' has no attribute {name!r}")
    return getattr(import_module(f"router.{home}"), name)
