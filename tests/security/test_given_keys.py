"""Keys that people write into the settings: weak ones are refused with a reason, and none is ever shown."""

import base64
import re
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from app.given_keys import SAMPLES, given_keys, weakness
from app.settings import Settings, SettingsError
from tests.security.conftest import unknown_key

ROOT = Path(__file__).resolve().parents[2]
GOOD = "9b1f0c7de2a84536c1d90e7f5ab3482c6d7f01e94b2a5c88"


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("changeme", "too short"), ("secret", "too short"), ("test", "too short"), ("12345", "too short"),
        ("sk-test-1234567890", "too short"), ("x" * 40, "too short"), ("a" * 64, "repeats itself"),
        ("changeme" * 8, "too short"), ("super-secret-password-change-me-please-1", "too short"),
        ("your-api-key-your-api-key-your-api-key-1", "too short"), (GOOD[:31], "too short"),
        ("abcdefgh12345678" * 3, "repeats itself"), ("0123456789abcdef0123456789abcdeg", "sequence"),
        ("abcdefghijklmnopqrstuvwxyz0123456789", "sequence"),
        ("aaaabbbbccccddddeeeeffff11112222", "sequence"),
        ("a9k2a9k2k9a2a2k9k2a9a9k22k9aa2k9", "too few different"),
        ("this-is-my-very-long-pass-phrase-for-pit", "no digit"), ("ключ" * 10 + "1", "cannot carry"),
        ("9" + GOOD * 6, "longer than 256"), *((sample, "documentation") for sample in sorted(SAMPLES)),
    ],
)  # fmt: skip
def test_weak_keys_are_refused_and_not_shown(key: str, why: str) -> None:
    assert why in (weakness(key) or "")
    for setting in (key, f"ops {key} improve", f"good {GOOD}\nops {key}"):
        with pytest.raises(SettingsError, match="is refused: it ") as refused:
            given_keys(Settings(api_keys=setting))
        assert key not in str(refused.value).replace("'secret', 'test' or 'changeme'", "")
        assert "openssl rand" in str(refused.value)


def test_keys_drawn_at_random_are_not_refused() -> None:
    """By any of the usual commands; a key may still have no digit, one base64 key in hundreds."""
    ways: tuple[Callable[[], str], ...] = (
        lambda: secrets.token_hex(16),
        lambda: secrets.token_hex(32),
        lambda: str(uuid.uuid4()),
        lambda: unknown_key(),
        lambda: base64.b64encode(secrets.token_bytes(32)).decode(),
        lambda: "sk-" + secrets.token_urlsafe(36),
    )
    for make in ways:
        reasons = [reason for reason in (weakness(make()) for _ in range(2000)) if reason]
        assert len(reasons) <= 20, set(reasons)


def test_every_key_that_the_documentation_shows_is_refused() -> None:
    shown: set[str] = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        shown |= set(re.findall(r"pit_[0-9a-z]{12}_[0-9A-Za-z]{43}", text))
        shown |= set(re.findall(r"PIT_API_KEYS='?(?:\w+ )?([^\s';]{20,})", text))
    assert shown >= SAMPLES, "the samples are those of the documentation"
    assert all(weakness(key) for key in shown)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f"ops {GOOD} everything", "after the key come scopes"),
        (f"ops {GOOD} {GOOD}", "after the key come scopes"),
        (f"{GOOD} ops", "write NAME KEY"), (f"{GOOD[:32]} ops", "too short"),
        (f"ops {GOOD} requests_per_minute=0", "limits"),
        (f"ops {GOOD} requests_per_minute=many", "limits"), (f"o:s {GOOD}", "letters, digits"),
        (f"ops {GOOD}; ci {GOOD}", "twice"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_read_is_said_without_its_key(entry: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        given_keys(Settings(api_keys=entry))
    assert GOOD[:32] not in str(refused.value)


def test_a_file_that_cannot_be_read_or_is_empty_is_refused(tmp_path: Path) -> None:
    for content, said in ((None, "No such file"), (b"# nothing\n", "holds no key"), (b"\xff", "is no text")):
        file = tmp_path / f"keys{said[0]}"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsError, match=said):
            given_keys(Settings(api_keys_file=file))


@pytest.mark.parametrize("text", ["", "  ", ";\n", "# ops later"])
def test_a_secret_that_holds_nothing_opens_no_server(text: str) -> None:
    with pytest.raises(SettingsError, match="'api_keys' holds no key"):
        given_keys(Settings(api_keys=text))


def test_the_settings_do_not_show_keys() -> None:
    assert GOOD not in repr(Settings(api_keys=f"ops {GOOD}"))
