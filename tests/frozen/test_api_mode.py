"""The binary in API mode: it carries what httpx needs, for sockets, ports and TLS with the host's authorities."""

import datetime
import json
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runner_process import Host
from stub_platform import StubPlatform

pytestmark = pytest.mark.frozen

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def frozen(host: Host) -> Host:
    named = os.environ.get("CRONIUM_TEST_BINARY")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}"))
    if not found:
        pytest.skip("there is no runner binary in dist/; scripts/build makes it")
    host.executable = [str(found[-1].absolute())]
    return host


def certificate(folder: Path) -> Path:
    """A certificate for localhost that vouches for itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*plain))
    return path


SCRIPT = "cronium.getVariable V && cronium.setVariable W 1 && cronium.executeToolAction mail send\n"


@pytest.mark.parametrize("where", ["port", "socket", "tls"])
def test_it_reaches_the_platform(frozen: Host, tmp_path: Path, where: str) -> None:
    trusted, tls = {}, None
    if where == "tls":
        path = certificate(tmp_path)
        trusted = {"SSL_CERT_FILE": str(path)}
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(path)
    with StubPlatform(str(tmp_path / "platform") if where == "socket" else None, tls) as stub:
        stub.variables["V"] = "live"
        result = frozen.run_json(frozen.script(SCRIPT), env={**stub.environment("e"), **trusted})
    assert (result["stdout"]["text"], result["stderr"]["text"]) == ('live\n{"did":"send"}\n', "")
    assert (result["mode"], result["undelivered"], stub.variables["W"]) == ("api", 0, "1")


def test_it_tells_nobody_the_token_whom_the_host_does_not_trust(frozen: Host, tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate(tmp_path))
    with StubPlatform(None, tls) as stub:
        environment = {**stub.environment("e"), "SSL_CERT_FILE": None}
        result = frozen.run_json(frozen.script("cronium.executeToolAction mail send\n"), env=environment)
        assert "certificate verify failed" in result["stderr"]["text"], json.dumps(result)
        assert stub.seen == []
