"""docs/configuration.md names every setting, as app/settings.py has it now."""

from scripts import configuration


def test_the_page_is_up_to_date() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), "run make docs"
