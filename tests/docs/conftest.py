"""One server of fakes for all snippets and examples, with a store and a run in it."""

from collections.abc import Iterator

import pytest

from app.client import Client
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.live import server_in_a_thread


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = f"sqlite:///{tmp_path_factory.mktemp('docs')}/pit.db"
    improver = FakeEngine(script=lambda m: m[-2]["content"] + " Thank you.")
    models = fake_models(improver=improver, scorer=FakeScorer(value=lambda text: float(len(text))))
    with server_in_a_thread(models, database=database, store_timeout_s=20) as found:
        yield found


@pytest.fixture(scope="session")
def run(url: str) -> str:
    """The id of a stored run with an accepted iteration."""
    with Client(url) as client:
        answer = client.improve("What about the price?", "It is red.", view="edits", seed=1)
    assert answer.improved
    return answer.id
