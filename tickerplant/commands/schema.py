"""`tickerplant schema`: the tables and views of a QuestDB database, made, compared and checked."""

import argparse
from typing import TYPE_CHECKING

from tickerplant.commands.options import (
    add_actions,
    add_command,
    add_config_options,
    load_config_of,
)
from tickerplant.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from tickerplant.store.questdb_http import QuestDbHttp

_EXAMPLES = """\
examples:
  tickerplant schema diff                                     what differs, and what apply would do; changes nothing
  tickerplant schema apply                                    make what is missing
  tickerplant schema check --set "store.conf=http::addr=db:9000;" && echo the store can start

The database is that of store.conf. Rows are never changed or deleted, columns never altered: where that would be
needed, apply changes nothing and says why.
exit codes: 0 ok, 1 differs, conflict or refused, 2 usage or configuration, 75 QuestDB is not there"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "schema",
        summary="make, compare and check the tables of QuestDB",
        description="The tables and views of the QuestDB database in which the store keeps rows.",
        epilog=_EXAMPLES,
    )
    actions = (
        ("apply", "make what is missing; each statement is printed", run_apply),
        ("check", "say whether the store can work with the database", run_check),
        ("diff", "print what differs, and the statements of apply", run_diff),
    )
    for _name, action in add_actions(parser, _EXAMPLES, actions):
        add_config_options(action)


def run_apply(arguments: argparse.Namespace) -> int:
    """Make what is missing. Raises `StoreError`, `CredentialsError`."""
    from tickerplant.store.schema import SCHEMA_VERSION
    from tickerplant.store.schema_check import apply

    server, ttl_days = _database(arguments)
    done = apply(server, ttl_days, lambda statement: print(f"{statement};", flush=True))
    print(f"{server.address}: version {SCHEMA_VERSION}, {len(done)} differences removed")
    return EXIT_OK


def run_check(arguments: argparse.Namespace) -> int:
    """One line. Raises `StoreError`, `CredentialsError`."""
    from tickerplant.store.schema import SCHEMA_VERSION
    from tickerplant.store.schema_check import blocking, compare, read_schema

    server, ttl_days = _database(arguments)
    differences = compare(read_schema(server), ttl_days)
    if hard := blocking(differences):
        print(
            f"{server.address}: {hard[0].text}; {len(differences)} differences: see `tickerplant schema diff`"
        )
        return EXIT_FAILURE
    soft = f", {len(differences)} differences that do not matter" if differences else ""
    print(f"{server.address}: version {SCHEMA_VERSION}{soft}")
    return EXIT_OK


def run_diff(arguments: argparse.Namespace) -> int:
    """All differences. Raises `StoreError`, `CredentialsError`."""
    from tickerplant.store.schema_check import compare, read_schema

    server, ttl_days = _database(arguments)
    differences = compare(read_schema(server), ttl_days)
    for one in differences:
        print(one)
    return EXIT_FAILURE if differences else EXIT_OK


def _database(arguments: argparse.Namespace) -> "tuple[QuestDbHttp, int]":
    from tickerplant.store.questdb_http import QuestDbHttp, read_login

    store = load_config_of(arguments).config.store
    login = read_login(store.username, store.password_path)
    return QuestDbHttp(store.conf, login), store.ttl_days
