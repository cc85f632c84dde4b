"""The web page at `/`, and its files. What it shows comes from the API, with the reader's own key."""

from fastapi import APIRouter, Request, Response

from app.errors import NotFound
from app.settings import Settings
from app.web.site import File, site

router = APIRouter(include_in_schema=False)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing inline, nothing from elsewhere, no text that becomes HTML, and no frame around it."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "vary": "accept-encoding",
}
FOREVER, ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"
METHODS = ["GET", "HEAD"]


@router.api_route("/", methods=METHODS)
@router.api_route("/runs/{id}", methods=METHODS)
async def improve_page(request: Request) -> Response:
    """Where responses are improved; with a run's id, that run."""
    return _page(request, "improve")


@router.api_route("/runs", methods=METHODS)
async def runs_page(request: Request) -> Response:
    """The runs so far."""
    return _page(request, "runs")


@router.api_route("/batches", methods=METHODS)
async def batches_page(request: Request) -> Response:
    """Batches: upload, progress, results."""
    return _page(request, "batches")


@router.api_route("/docs", methods=METHODS)
async def reference_page(request: Request) -> Response:
    """Every route and object of the API. The framework's own page has its scripts fetched from elsewhere."""
    return _send(request, site().reference(request.app.openapi), ASK_AGAIN)


@router.api_route("/static/{digest}/{name}", methods=METHODS)
async def static_file(digest: str, name: str, request: Request) -> Response:
    """A file of the page. Another server's digest, as while a new version is rolled out, is not kept."""
    if name not in site().static:
        raise NotFound("There is no such file of the page. Load the page again.")
    return _send(request, site().static[name], FOREVER if digest == site().digest else ASK_AGAIN)


def _page(request: Request, name: str) -> Response:
    settings: Settings = request.app.state.runtime.settings
    keeps = settings.database != "none" and settings.store
    return _send(request, site().pages[name, keeps], ASK_AGAIN)


def _send(request: Request, file: File, caching: str) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {**HEADERS, "cache-control": caching} | ({"content-encoding": "gzip"} if packed else {})
    return Response(file.gzipped if packed else file.body, media_type=file.media_type, headers=headers)
