"""The web's TLS: one CA to trust, and servers whose certificates should not be."""

import datetime
import ssl
from pathlib import Path

import trustme

from jobs.demo.hosts import DOMAIN
from jobs.demo.kinds import TLS_KINDS


def contexts(ca_file: Path) -> dict[str, ssl.SSLContext]:
    """TLS_KINDS and `plain` → server's context. Writes the certificate of the CA that vouches for `plain`."""
    ca = trustme.CA(organization_name="Pairmill demo")
    every = f"*.{DOMAIN}"
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    certificates = {
        "plain": ca.issue_cert(every),
        "unknown-ca": trustme.CA(organization_name="Nobody").issue_cert(every),
        "wrong-name": ca.issue_cert("elsewhere.example"),
        "expired": ca.issue_cert(every, not_after=past),
    }
    assert set(certificates) == {"plain", *TLS_KINDS}
    ca.cert_pem.write_to_path(str(ca_file))
    made = {}
    for name, certificate in certificates.items():
        made[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(made[name])
    return made
