"""`pit keys`: make, list and revoke API keys, in the database that the settings name. A server that runs
hears of it within seconds."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.commands import fail

if TYPE_CHECKING:
    from app.security import StoredKey
    from app.store.keys import KeyTable

T = TypeVar("T")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MAX_LIMIT = 2**31 - 1
keys = typer.Typer(help="API keys of the server.", no_args_is_help=True, rich_markup_mode=None)
Url = Annotated[str | None, typer.Option(metavar="URL", help="The database  [default: the setting's]")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of settings.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int | None, typer.Option(min=1, max=MAX_LIMIT, help="At most  [default: the server's]")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="improve, chat, batch, feedback, metrics or admin (everything); repeatable"
            "  [default: improve, chat, batch, feedback]"
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="30d, 12h, 4w: good for so long  [default: for ever]")
    ] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    follows: Annotated[
        str | None, typer.Option(metavar="ID", help="An earlier key: this one sees what was made with it.")
    ] = None,
    database: Url = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only a digest of it is kept. With the first one a running server
    begins to ask for keys."""
    from app.security import SCOPES, USUAL, KeyLimits, StoredKey, new_key
    from app.store.keys import stored_keys

    scopes = tuple(dict.fromkeys(word.strip() for given in scope or USUAL for word in given.split(",")))
    if unknown := set(scopes) - SCOPES:
        raise fail(f"--scope {min(unknown)}: choose among {', '.join(sorted(SCOPES))}")
    if not (name.isprintable() and len(name.strip()) > 0 and len(name) <= 64):
        raise fail("NAME must have 1 to 64 printable characters")
    limits = KeyLimits(requests_per_minute, tokens_per_minute, concurrency)
    wanted = [word for word in scopes if word in SCOPES]
    key, stored = new_key(name.strip(), wanted, limits, seconds(expires) if expires else None)

    async def work(table: "KeyTable") -> tuple[StoredKey, bool, str]:
        made, others = stored, stored_keys(await table.rows())
        if follows:
            earlier = [one for one in others if one.id == public_id(follows)]
            if not earlier:
                raise fail(f"--follows: there is no key {public_id(follows)}; pit keys list shows them")
            made = replace(stored, owner=earlier[0].owner)
        await table.add(made)
        return made, not others, table.database.name

    made, is_first, place = _in_database(config, database, work)
    if as_json:
        print(json.dumps(_shown(made) | {"key": key}, indent=2))
        return
    typer.echo(key)
    note = f"Key {made.id} is shown this once. It is for servers with the database {place}."
    typer.echo(note, err=True)
    if is_first:
        typer.echo("It is their first: from now on they ask for keys.", err=True)


@keys.command("list")
def list_keys(database: Url = None, config: Config = None, as_json: Json = False) -> None:
    """List the keys, revoked and expired ones too."""
    from rich.console import Console
    from rich.text import Text

    from app.store.keys import stored_keys

    async def work(table: "KeyTable") -> "list[StoredKey]":
        return stored_keys(await table.rows())

    found = [_shown(key) for key in _in_database(config, database, work)]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)  # an id is never cut
    if not found:
        console.print("There are no keys. Make one: pit keys create NAME")
        return
    heading = f"{'id':12}  {'state':7}  {'created':10}  {'expires':10}  name - scopes, limits"
    console.print(heading, style="bold")
    for key in found:
        limits = [f"{name}={value}" for name, value in key["limits"].items() if value is not None]
        dates = f"{_day(key['created']):10}  {_day(key['expires']):10}"
        follows = [] if key["owner"] == key["id"] else [f"follows={key['owner']}"]
        words = " ".join([key["name"], "-", *key["scopes"], *limits, *follows])
        style = {"active": "green", "expired": "yellow", "revoked": "red"}[key["state"]]
        console.print(Text.assemble(f"{key['id']}  ", (f"{key['state']:7}", style), f"  {dates}  {words}"))


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as pit keys list shows it.")],
    database: Url = None,
    config: Config = None,
) -> None:
    """Revoke a key. Running servers refuse it within 5 seconds; what it has begun goes on to its end."""
    key_id = public_id(key)

    async def work(table: "KeyTable") -> tuple[bool, bool]:
        done = await table.revoke(key_id)
        return done, done or any(row.id == key_id for row in await table.rows())

    done, exists = _in_database(config, database, work)
    if not exists:
        raise fail(f"there is no key {key_id}; pit keys list shows them", status=1)
    typer.echo(f"key {key_id} is revoked" if done else f"key {key_id} was revoked before")


def public_id(text: str) -> str:
    """The id of a key, also from the whole key. Never more than that: the rest is secret."""
    return text.removeprefix("pit_").partition("_")[0][:32]


def seconds(text: str) -> float:
    """30d, 12h, 4w or 90m in seconds. Fails for anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text.strip().lower())
    if match is None:
        raise fail(f"--expires {text}: write a number and m, h, d or w, as 30d")
    return int(match[1]) * UNITS[match[2]]


def _shown(key: "StoredKey") -> dict[str, Any]:
    """A key as JSON, without its digest."""
    shown = {name: value for name, value in asdict(key).items() if name != "digest"}
    return shown | {"scopes": list(key.scopes), "state": key.state(time.time())}


def _day(moment: float | None) -> str:
    return "never" if moment is None else datetime.fromtimestamp(moment).strftime("%Y-%m-%d")


def _in_database(config: Path | None, database: str | None, work: Callable[["KeyTable"], Awaitable[T]]) -> T:
    """What `work` does with the table of keys of the settings' database, which is made where it is SQLite."""
    from sqlalchemy.exc import SQLAlchemyError

    from app.errors import StoreError
    from app.settings import SettingsError, load_settings
    from app.store.database import Database, reason
    from app.store.keys import KeyTable

    async def run(url: str) -> T:
        opened = Database(url, timeout_s=10)
        try:
            await opened.open()
            return await work(KeyTable(opened))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise StoreError(f"The database {opened.name} does not answer ({reason(error)}).") from None
        finally:
            await opened.close()

    try:
        settings = load_settings(config, database=database)
        if settings.database == "none":
            raise SettingsError(
                "setting 'database' is none, so there are no keys in it: name one with --database, or give"
                " the server keys in PIT_API_KEYS"
            )
        return asyncio.run(run(settings.database))
    except (SettingsError, StoreError) as error:
        raise fail(str(error)) from None
