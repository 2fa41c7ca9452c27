"""The runner's side of the runtime API: one question, one answer, over one kept connection.

Whether to ask again is the caller's decision, and `platform_answers` says what counts as an answer; the token is kept
here. httpx is imported in API mode only: `warm` does it ahead, in the process that forks the supervisors.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from . import platform_answers as answers
from .errors import InputError
from .helpers import HelperError, Json
from .platform_answers import Answer, ForeignAnswerError, Form, LateAnswerError, NoAnswerError
from .wire import exactjson
from .wire.access import Access
from .wire.text import clean

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_SECONDS: Final = 10.0
"""Seconds for one connection."""
PATIENCE: Final = 10.0
"""Seconds: how long a read waits for the platform, and how long writes that are left at the end are waited for without
any of them arriving. A tunnel is made again within seconds, and a script should fail in a time in which somebody who
watches it still waits."""
PATIENCE_NAME: Final = "CRONIUM_API_PATIENCE"
MOST_PATIENCE: Final = 3600.0
"""Seconds: beyond an hour it's the job's time-out that ends a wait, or nothing does."""
KEPT_SECONDS: Final = 4.0
"""How long an idle connection is kept: less than the five seconds after which uvicorn closes it."""
CONNECTIONS: Final = 24
"""At once: all threads that ask (`background`), and the one that delivers."""
LARGEST_ANSWER: Final = 64 << 20
"""Bytes that are read of one: eight times the largest body that our own service takes."""
SLOWEST: Final = 64 << 10
"""Bytes a second: an answer that comes faster has more time than was given for its beginning."""
KEPT_ACCESSES: Final = 4
"""Ways to the platform that are kept: each controller that attaches brings one, and a few may be there at once."""
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""Where hosts keep the authorities that they trust, for an OpenSSL that was built on another system."""


def patience(environment: Mapping[str, str]) -> float:
    """The seconds that CRONIUM_API_PATIENCE says, else 10. Raises InputError."""
    told = environment.get(PATIENCE_NAME)
    if told is None:
        return PATIENCE
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_PATIENCE:
        sentence = f"{PATIENCE_NAME}: {told[:40]!r} is no number of seconds up to {MOST_PATIENCE:g}"
        raise InputError(sentence, "api.config")
    return seconds


def warm() -> None:
    """Imports what API mode needs, ahead of the fork."""
    import httpx  # noqa: F401


class PlatformClient:
    """Asks about one execution. Any thread may; `replace` gives it another endpoint and token.

    The earlier ones are kept: where one gives no answer, the next question goes to the one before it, so the last
    controller that attached may leave before the first.
    """

    def __init__(self, execution_id: str, access: Access) -> None:
        self._root = f"/executions/{segment(execution_id)}"
        self._replaced = threading.Condition()
        self._accesses = [access]
        self._client: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"<PlatformClient {self.access!r}>"

    @property
    def access(self) -> Access:
        """Where and with what it asks."""
        return self._accesses[0]

    def replace(self, access: Access) -> None:
        """From now on another endpoint and token; whoever pauses for the old one goes on at once."""
        with self._replaced:
            others = [each for each in self._accesses if each.endpoint != access.endpoint]
            # The old client is left to those who use it now; its last reference closes its connections.
            self._accesses, self._client = [access, *others][:KEPT_ACCESSES], None
            self._replaced.notify_all()

    def _turn_from(self, access: Access) -> None:
        """It gave no answer, or knows the token no more: the next question goes to another, if there is one."""
        with self._replaced:
            if len(self._accesses) > 1 and self._accesses[0] is access:
                self._accesses, self._client = [*self._accesses[1:], access], None

    def pause(self, seconds: float) -> None:
        """Waits before the next try, or until endpoint and token are replaced."""
        with self._replaced:
            self._replaced.wait(seconds)

    def ask(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        seconds: float,
        key: str | None = None,
        form: Form = answers.done,
    ) -> Answer:
        """One request below the execution; `key` is its Idempotency-Key, `form` what answers it.

        Raises NoAnswerError.
        """
        with self._replaced:
            access = self.access
            client = self._client = self._client or _connected(access)
        try:
            answer = _ask(client, access, method, self._root + path, body, seconds=seconds, key=key, form=form)
        except NoAnswerError:
            self._turn_from(access)
            raise
        if answer.needs_token:
            self._turn_from(access)
        return answer

    def ask_once(self, method: str, path: str, body: Json, *, seconds: float, form: Form) -> Answer:
        """One request outside the execution, never sent again: over a new connection, which nobody has closed yet.

        Raises NoAnswerError.
        """
        with self._replaced:
            access = self.access
        try:
            with _connected(access) as client:
                return _ask(client, access, method, path, body, seconds=seconds, key=None, form=form)
        except NoAnswerError:
            self._turn_from(access)
            raise


def segment(text: str) -> str:
    """A text as one segment of a path, also `.` and `..`."""
    from urllib.parse import quote

    return quote(text, safe="").replace(".", "%2E") if text.strip(".") == "" else quote(text, safe="")


def _ask(
    client: "httpx.Client",
    access: Access,
    method: str,
    path: str,
    body: Json,
    *,
    seconds: float,
    key: str | None,
    form: Form,
) -> Answer:
    import httpx

    headers = {"Authorization": f"Bearer {access.token}"}
    content = None
    if method not in ("GET", "DELETE"):
        headers["Content-Type"] = "application/json"
        content = exactjson.encode(body)
    if key is not None:
        headers["Idempotency-Key"] = key
    timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
    until = time.monotonic() + seconds
    try:
        with client.stream(method, _base(access) + path, content=content, headers=headers, timeout=timeout) as response:
            received = _received(response, until)
        return answers.read_answer(response.status_code, response.headers, received, form)
    except httpx.InvalidURL as error:
        return Answer(0, {"message": f"it cannot be sent: {error}"}, None)
    except ForeignAnswerError as error:
        raise error.at(access.endpoint) from None
    except (httpx.RequestError, NoAnswerError, OSError) as error:  # RequestError: also what can't be decompressed
        is_late = isinstance(error, httpx.TimeoutException | LateAnswerError)
        kind = LateAnswerError if is_late else NoAnswerError
        raise kind(f"{access.endpoint}: {clean(str(error)) or type(error).__name__}") from None


def _received(response: "httpx.Response", until: float) -> bytes:
    """The body, of at most LARGEST_ANSWER bytes.

    Raises NoAnswerError, also when it isn't whole by `until` (monotonic) and comes slower than SLOWEST.
    """
    received = bytearray()
    for piece in response.iter_bytes():
        received += piece
        if len(received) > LARGEST_ANSWER:
            raise NoAnswerError(f"its answer has more than {LARGEST_ANSWER >> 20} MiB")
        if time.monotonic() > until + len(received) / SLOWEST:
            raise LateAnswerError("its answer took too long")
    return bytes(received)


def _base(access: Access) -> str:
    return access.endpoint if access.socket_path is None else "http://localhost"


def _connected(access: Access) -> "httpx.Client":
    """A client that connects when it is first used. Nothing of the environment is heard: no proxy, no .netrc."""
    import httpx

    verify: ssl.SSLContext | bool = _trusted() if access.endpoint.startswith("https:") else False
    limits = httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEPT_SECONDS)
    transport = httpx.HTTPTransport(verify=verify, uds=access.socket_path, limits=limits, trust_env=False)
    return httpx.Client(transport=transport, trust_env=False, headers={"Accept-Encoding": "identity"})


def _trusted() -> "ssl.SSLContext":
    """The host's own authorities; SSL_CERT_FILE and SSL_CERT_DIR are OpenSSL's and hold."""
    import ssl

    context = ssl.create_default_context()
    for bundle in _BUNDLES:
        if context.cert_store_stats()["x509_ca"]:
            break
        with contextlib.suppress(OSError):
            context.load_verify_locations(bundle)
    return context


def refused(what: str, answer: Answer) -> HelperError:
    """The error of a call that the platform answered with no."""
    hint = "; the token is not valid (any more)" if answer.needs_token else ""
    return HelperError("api.refused", f"the platform refused {what}: {answer.reason}{hint}")
