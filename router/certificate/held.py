"""The certificate a router holds, whether it may be used, and the policy that keeps its bounds.

Knows certificates and policies; knows nothing of predictors, features or requests. A certificate
that is damaged or has expired never stops a router: it is put aside with the reason, and only
requests that ask for a bound are refused, with that reason.
"""

from dataclasses import dataclass, replace

from router.certificate.promise import Certificate
from router.decision import NOTHING_LOST, AppliedBound
from router.errors import NotCertified, RouterFileError
from router.policy import Policy
from router.policy.offer import Offer


@dataclass(frozen=True)
class HeldCertificate:
    """A certificate in use, or the reason why there is none.

    Attributes:
        certificate: None where none may be used.
        refused: why; "" where the certificate is used.
    """

    certificate: Certificate | None = None
    refused: str = "the router in force holds no certificate"

    @classmethod
    def read(cls, content: bytes | None, **facts: str | None) -> "HeldCertificate":
        """Return what the content of a certificate file amounts to; None: there is no file.

        Args:
            **facts: what the certificate must have been made for, see `Certificate.why_not_for`.
        """
        if content is None:
            return cls()
        try:
            return cls(Certificate.from_bytes(content), "").checked(**facts)
        except RouterFileError as error:
            return cls(None, str(error))

    def checked(self, **facts: str | None) -> "HeldCertificate":
        """Return itself, or without its certificate where that was made for something else."""
        reason = None if self.certificate is None else self.certificate.why_not_for(**facts)
        return self if reason is None else HeldCertificate(None, reason)

    def dearer_prices(self, policy: Policy, max_harm: float) -> tuple[float, ...]:
        """Return the tested prices above the policy's that keep the bound, ascending; often none.

        Every price of the family up to the rung's was shown to keep it (see `price_below`), so a
        price may rise through these and the promise is kept at each.
        """
        found = self.certificate
        if found is None or found.loss != "harm" or policy.finest_only:
            return ()
        tops = [rung.price for rung in found.ladder if rung.bound <= max_harm]
        if not tops or tops[-1] is None:
            return ()
        return tuple(price for price in found.prices if policy.price < price <= tops[-1])

    def policy(
        self, policy: Policy, max_harm: float, n_pictures: int = 1
    ) -> tuple[Policy, AppliedBound]:
        """Return the policy that keeps the bound, never dearer to lose under than ``policy``.

        Raises:
            NotCertified: no certificate, one that bounds something else, a bound tighter than
                any that is certified, or several pictures.
        """
        found = self.certificate
        advice = "leave out max_harm, or pin the finest scale, which loses nothing"
        if found is None:
            raise NotCertified(
                f"max_harm={max_harm:g} cannot be kept: {self.refused}; {advice}", "no_certificate"
            )
        if found.loss != "harm":
            raise NotCertified(
                f"max_harm={max_harm:g} cannot be kept: the certificate bounds the {found.loss} "
                f"({found.bounds}), in which rescued answers offset lost ones; {advice}",
                "not_certified",
            )
        if n_pictures != 1:
            raise NotCertified(
                f"max_harm is certified for requests with one picture, this one has {n_pictures}; "
                f"{advice}",
                "not_certified",
            )
        rung = found.rung_for(max_harm)
        price = None if policy.finest_only else found.price_below(rung, policy.price)
        if price is None:
            return replace(policy, finest_only=True), NOTHING_LOST
        return replace(policy, price=price), AppliedBound(rung.bound, found.delta, price)


def keeps_promise(policy: Policy, offer: Offer, max_harm: float) -> None:
    """Return nothing if what was certified is what is decided between.

    Raises:
        NotCertified: foci that were certified along may not be read.
    """
    if not (policy.finest_only or all(offer.open)):
        raise NotCertified(
            f"max_harm={max_harm:g} is certified for choices that a focus is among, and none may "
            "be read; leave out routing.focus: false or max_harm, or pin the finest scale",
            "not_certified",
        )
