"""What can go wrong in a routing decision, as types whose sentences say what to do.

    ValueError
      RoutingError            a request asks for something that cannot be given
        UnknownScale          the scale is not one of the checkpoint's
        UnknownDetail         the image detail is not low, high, original or auto
        BudgetTooSmall        the cap on visual tokens cannot be kept
        NotCertified          no certificate keeps the bound on lost answers that was asked for
        Contradiction         two wishes of one request that cannot both be kept
      FeatureMismatch         features of another shape or schema than the router was fitted on
      OtherModel              a router that was fitted on the answers of another model
      RouterFileError         a router folder that is missing, damaged or made for other features

Knows nothing of HTTP: the service turns a RoutingError into status 400.
"""

from collections.abc import Sequence


class RoutingError(ValueError):
    """A request that cannot be routed as asked; nothing was clamped or ignored."""


class UnknownScale(RoutingError):
    """The asked scale is not one of the checkpoint's scales."""

    def __init__(self, scale: object, scales: Sequence[int]) -> None:
        self.scale = scale
        self.scales = tuple(scales)
        allowed = ", ".join(str(s) for s in self.scales)
        super().__init__(f"scale {scale!r} does not exist here; choose one of {allowed}")


class UnknownDetail(RoutingError):
    """The asked image detail is none of the known words."""

    def __init__(self, detail: object, known: Sequence[str]) -> None:
        self.detail = detail
        words = ", ".join([*known, "auto"])
        super().__init__(f"image detail {detail!r} is unknown; choose one of {words}")


class BudgetTooSmall(RoutingError):
    """The cap on visual tokens is below what the request needs at least.

    Attributes:
        max_visual_tokens: the cap that was asked for.
        needed: the smallest cap that would do.
    """

    def __init__(self, max_visual_tokens: int, needed: int, why: str) -> None:
        self.max_visual_tokens = max_visual_tokens
        self.needed = needed
        super().__init__(
            f"max_visual_tokens={max_visual_tokens} is too small: {why} needs {needed}; "
            f"raise the cap to at least {needed}"
        )


class NotCertified(RoutingError):
    """A bound on lost answers that cannot be kept.

    Attributes:
        code: "no_certificate" (none that can be used) or "not_certified" (none for this wish).
    """

    def __init__(self, message: str, code: str) -> None:
        self.code = code
        super().__init__(message)


class Contradiction(RoutingError):
    """Two wishes of one request, of which one forbids the other.

    Attributes:
        wish: name of the knob that cannot be honoured beside the rest.
    """

    def __init__(self, wish: str, against: str) -> None:
        self.wish = wish
        super().__init__(f"routing.{wish}: true contradicts {against}; leave out one of them")


class FeatureMismatch(ValueError):
    """Features of another shape or schema than the router was fitted on."""


class OtherModel(ValueError):
    """A router that was fitted on the answers of another model than the one it would serve."""


class RouterFileError(ValueError):
    """A router folder that cannot be trusted: missing, damaged, or made for other features."""
