"""The Cloudflare service token of a host that an earlier process wrote down: no store has it, its hosts file does."""

from dataclasses import replace

from .errors import ControllerError, UnreachableError
from .hosts import Host


def with_token(host: Host) -> Host:
    """The host with its service token, read where it was when the host was first used; itself where it has one.

    Raises UnreachableError when it is not there any more: other routes may do.
    """
    if host.secrets_in is None or (host.cloudflare_service_token_id and host.cloudflare_service_token_secret):
        return host
    from . import inventory

    why = "it has none for this host"
    try:
        found = inventory.load(host.secrets_in, keeps_bad_rows=True).host(host.name)
    except ControllerError as error:
        why = error.message
    else:
        if found.cloudflare_service_token_id and found.cloudflare_service_token_secret:
            return replace(
                host,
                cloudflare_service_token_id=found.cloudflare_service_token_id,
                cloudflare_service_token_secret=found.cloudflare_service_token_secret,
            )
    raise UnreachableError(
        "host.unreachable",
        f"the Cloudflare service token is missing: it was in {host.secrets_in} ({why}); put it, or the environment "
        "variables that it names, there again",
        host=host.name,
    )
