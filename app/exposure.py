"""Who could reach a server at its address, and whether they need keys."""

import asyncio
import ipaddress
import logging

from app.given_keys import given_keys
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)


def guard(settings: Settings, address: str) -> Settings:
    """The settings for a server that listens on this address: beyond loopback keys are always asked for,
    unless the settings say `insecure-never`.

    Raises `SettingsError` where the address needs keys and there are none, or where nobody could come in.
    """
    given, never = given_keys(settings), settings.require_keys == "insecure-never"
    exposed = not ipaddress.ip_address(address).is_loopback
    if never and given:
        raise SettingsError("settings 'api_keys' and 'require_keys: insecure-never' exclude each other.")
    if never:
        if exposed:
            log.warning("no API keys are asked for, and %s can be reached from other machines", address)
        return settings
    always = settings.require_keys == "always"
    if not (exposed or always):
        return settings
    if not given and (settings.database == "none" or (not always and not _has_keys(settings))):
        where = f"{address} can be reached from other machines" if exposed else "API keys are required"
        make = "pit keys create NAME" if settings.database != "none" else "the variable PIT_API_KEYS"
        raise SettingsError(
            f"{where}, and there are no API keys. Make one: {make}; or listen on 127.0.0.1. Behind a gateway"
            " that asks for keys itself: --require-keys insecure-never."
        )
    return settings.model_copy(update={"require_keys": "always"})


def _has_keys(settings: Settings) -> bool:
    from app.keys import has_keys  # a second of imports, which a server on loopback does not need yet

    return asyncio.run(has_keys(settings))
