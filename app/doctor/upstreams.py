"""Upstream servers, where the settings name some: whether they answer, and with which models."""

from collections.abc import Iterator

import httpx

from app.doctor.report import Finding, fail, ok
from app.settings import Settings
from app.start import upstreams

TIMEOUT_S = 1.0


def check(settings: Settings) -> Iterator[Finding]:
    """One finding for each upstream of each role."""
    secret = settings.upstream_api_key
    headers = {"authorization": f"Bearer {secret.get_secret_value()}"} if secret else {}
    for role, urls in upstreams(settings).items():
        for url in urls:
            wanted: str | None = getattr(settings, f"{role}_model")
            yield _ask(f"{role.replace('_', '-')} upstream", url, headers, wanted)


def _ask(subject: str, url: str, headers: dict[str, str], wanted: str | None) -> Finding:
    advice = "start it, or mend the URL; a key goes into PIT_UPSTREAM_API_KEY"
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=TIMEOUT_S).raise_for_status()
        names = [str(model["id"]) for model in answer.json()["data"]]
    except httpx.HTTPStatusError as error:
        return fail(subject, f"{url} answers with status {error.response.status_code}", advice)
    except httpx.HTTPError as error:
        return fail(subject, f"{url} does not answer ({type(error).__name__})", advice)
    except (ValueError, KeyError, TypeError):
        return fail(subject, f"{url} does not list its models as OpenAI's API does", advice)
    if wanted is not None and wanted not in names:
        return fail(subject, f"{url} has no model {wanted}", f"it has {', '.join(names) or 'none'}")
    return ok(subject, f"{url} answers; it has {', '.join(names) or 'no model'}")
