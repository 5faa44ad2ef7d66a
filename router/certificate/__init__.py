"""Promises about a router: P(harm <= alpha) >= 1 - delta.

`promise` is what is said, `proof` how it is shown (Learn-then-Test), `held` what a router carries.
"""

from router.certificate.held import HeldCertificate
from router.certificate.promise import (
    CERTIFICATE_FILE,
    Certificate,
    Rung,
    SliceBound,
)

__all__ = ["CERTIFICATE_FILE", "Certificate", "HeldCertificate", "Rung", "SliceBound"]
