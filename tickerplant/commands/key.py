"""`tickerplant key`: makes and changes the file of keys that sign and verify datagrams."""

import argparse
from pathlib import Path

from tickerplant.commands.options import add_actions, add_command
from tickerplant.errors import EXIT_OK

_EXAMPLE = """\
example, a new key without a moment in which anybody refuses the feed:
  tickerplant key make /etc/tickerplant/datagram.keys          once; then publish.key_path and --key name it
  tickerplant key add /etc/tickerplant/datagram.keys           a second key, which verifies and does not sign yet
  tickerplant key use /etc/tickerplant/datagram.keys --id ID   a running plant signs with it a second later
  tickerplant key remove /etc/tickerplant/datagram.keys --id OLD

After each step the file goes to every subscriber's host. Running plants and subscribers take it over by themselves.
exit codes: 0 ok, 2 the file is missing, exists already, or cannot be used"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "key",
        summary="make and change the keys that sign datagrams",
        description="Make and change a file of datagram keys. Keys are never printed, only their ids.",
        epilog=_EXAMPLE,
    )
    actions = (
        ("make", "make a new file with one key, readable by its owner alone", run_make),
        ("add", "add a key that verifies and does not sign", run_add),
        ("use", "sign with this key of the file", run_use),
        ("remove", "take a key out that does not sign", run_remove),
        ("list", "print the ids of the keys, the one that signs first", run_list),
    )
    for name, action in add_actions(parser, _EXAMPLE, actions):
        action.add_argument("file", metavar="FILE", type=_path, help="file of datagram keys")
        if name != "list":
            is_new = name in ("make", "add")
            action.add_argument(
                "--id",
                type=_parse_id,
                metavar="ID",
                dest="key_id",
                required=not is_new,
                help="id of the key (default: a random one)" if is_new else "id of the key",
            )


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _parse_id(text: str) -> int:
    """A positive number. Raises what argparse turns into a usage error."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:11]) <= 0xFFFF_FFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not a key id: it is 1 to 4294967295")
    return int(text)


def run_make(arguments: argparse.Namespace) -> int:
    """Make a file. Raises `CredentialsError`."""
    from tickerplant.key_file import make_key_file

    key_id = make_key_file(arguments.file, arguments.key_id)
    print(f"{arguments.file}: key {key_id} made, it signs")
    return EXIT_OK


def run_add(arguments: argparse.Namespace) -> int:
    """Add a key. Raises `CredentialsError`."""
    from tickerplant.key_file import add_key

    key_id = add_key(arguments.file, arguments.key_id)
    print(f"{arguments.file}: key {key_id} added, it verifies and does not sign")
    return EXIT_OK


def run_use(arguments: argparse.Namespace) -> int:
    """Choose the key that signs. Raises `CredentialsError`."""
    from tickerplant.key_file import sign_with

    sign_with(arguments.file, arguments.key_id)
    print(f"{arguments.file}: key {arguments.key_id} signs")
    return EXIT_OK


def run_remove(arguments: argparse.Namespace) -> int:
    """Take a key out. Raises `CredentialsError`."""
    from tickerplant.key_file import remove_key

    remove_key(arguments.file, arguments.key_id)
    print(f"{arguments.file}: key {arguments.key_id} removed")
    return EXIT_OK


def run_list(arguments: argparse.Namespace) -> int:
    """Print the ids. Raises `CredentialsError`."""
    from tickerplant.key_file import read_keys

    ring = read_keys(arguments.file)
    for key_id in ring.keys:
        print(f"{key_id} {'signs' if key_id == ring.signing_key_id else 'verifies'}")
    return EXIT_OK
