"""Where values come from, what they may be, and the one line that says so."""

import ast
import inspect
import itertools
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tickerplant import config as config_module
from tickerplant.config import SECTIONS, Config, PublishConfig, credentials
from tickerplant.config_sources import KEYS, load_config
from tickerplant.errors import ConfigurationError, CredentialsError

SHIPPED = Path(__file__).parents[2] / "config" / "tickerplant.toml"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIsecretsecret\n-----END PRIVATE KEY-----\n"

pytestmark = pytest.mark.usefixtures("no_configuration")


def value_of(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def refusal(**arguments: Any) -> str:
    """The one line `load_config` ends with; never more than one."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(**{"environ": {}, **arguments})
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_shipped_file_holds_exactly_the_keys_and_defaults_of_the_structs() -> None:
    document = tomllib.loads(SHIPPED.read_text())
    flat = {
        f"{section}.{name}": value
        for section, table in document.items()
        for name, value in table.items()
    }
    defaults = msgspec.to_builtins(Config())
    expected = {
        f"{section}.{name}": value
        for section, table in defaults.items()
        for name, value in table.items()
    }
    assert {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    } == flat
    assert list(flat) == list(KEYS)


def test_every_key_of_the_shipped_file_has_a_comment_above_it() -> None:
    previous = ""
    for line in SHIPPED.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            assert previous.startswith("# "), line
        previous = line


def test_every_key_has_a_docstring_line() -> None:
    tree = ast.parse(inspect.getsource(config_module))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for section in SECTIONS.values():
        body = classes[section.__name__].body
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                assert isinstance(after, ast.Expr), ast.unparse(field)
                assert isinstance(after.value, ast.Constant)


def test_defaults_without_any_file() -> None:
    loaded = load_config(environ={})
    assert loaded.config == Config()
    assert loaded.file is None
    assert set(loaded.origins.values()) == {"default"}


def test_file_then_environment_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[log]\nlevel = "error"\nformat = "json"\n[publish]\nport = 1000\n')
    environ = {"TICKERPLANT__LOG__LEVEL": "warning", "TICKERPLANT__PUBLISH__PORT": "2000"}
    loaded = load_config(str(file), ["publish.port=3000"], environ)
    assert (loaded.config.log.format, loaded.config.log.level) == ("json", "warning")
    assert loaded.config.publish.port == 3000
    assert loaded.origins["log.format"] == str(file)
    assert loaded.origins["log.level"] == "environment variable TICKERPLANT__LOG__LEVEL"
    assert loaded.origins["publish.port"] == "--set"
    assert loaded.origins["publish.ttl"] == "default"


def test_file_is_searched_in_the_documented_order(no_configuration: Path) -> None:
    local = no_configuration / "config" / "tickerplant.toml"
    named = no_configuration / "named.toml"
    given = no_configuration / "given.toml"
    local.parent.mkdir()
    for file in (local, named, given):
        file.write_text("")
    environ = {"TICKERPLANT_CONFIG": str(named)}
    assert load_config(str(given), (), environ).file == given
    assert load_config(None, (), environ).file == named
    assert load_config(None, (), {}).file == Path("config/tickerplant.toml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("markets.tickers=KXA-1,KXB-2", ("KXA-1", "KXB-2")),
        ('markets.tickers=["KXA-1", "KXB-2"]', ("KXA-1", "KXB-2")),
        ("markets.tickers=KXA-1", ("KXA-1",)),
        ("markets.tickers=", ()),
        ("channels.trade=false", False),
        ("publish.port=30_000", 30_000),
        ("exchange.key_id=12345", "12345"),
        ('exchange.key_id="quoted"', "quoted"),
        ("exchange.key_path=a=b.pem", "a=b.pem"),
        ("exchange.key_path='unbalanced.pem", "'unbalanced.pem"),
        ("log.level = debug", "debug"),
    ],
)
def test_text_is_typed_by_the_key(text: str, value: object) -> None:
    key = text.partition("=")[0].strip()
    variable = "TICKERPLANT__" + key.replace(".", "__").upper()
    assert value_of(load_config(None, [text], {}).config, key) == value
    environ = {variable: text.partition("=")[2].strip()}
    assert value_of(load_config(None, (), environ).config, key) == value


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("exchange.conections=2", ["unknown key 'exchange.conections'", "exchange.connections?"]),
        ("markets.key_id=x", ["unknown key 'markets.key_id'", "exchange.key_id?"]),
        ("key_id=x", ["unknown key 'key_id'", "exchange.key_id?"]),
        ("zzz.qqq=1", ["unknown key 'zzz.qqq'", "check-config"]),
        ("publish=1", ["publish is a section", "publish.interface"]),
        ("publish", ["--set section.key=value"]),
        ("exchange.connections=0", ["exchange.connections = 0", "1 to 10"]),
        ("exchange.connections=11", ["exchange.connections = 11", "1 to 10"]),
        ("exchange.connections=two", ["exchange.connections = 'two'", "whole number"]),
        ("exchange.connections=1.5", ["exchange.connections = 1.5", "whole number"]),
        ("exchange.connections=true", ["exchange.connections = True", "whole number"]),
        ("exchange.max_clock_skew_ms=0", ["exchange.max_clock_skew_ms = 0", "1000 to 60000"]),
        ("exchange.rest_url=api.kalshi.com", ["exchange.rest_url", "https"]),
        ("exchange.rest_url=wss://h/trade-api", ["exchange.rest_url", "https or http"]),
        ("exchange.rest_url=https://h/trade-api/v2/", ["without a slash at its end"]),
        ("exchange.rest_url=https://h", ["needs the path"]),
        ("exchange.rest_url=https://h/v2?x=1", ["must end with its path"]),
        ("exchange.rest_url=https://h:99999/v2", ["exchange.rest_url"]),
        ("exchange.rest_url=https://[h/v2", ["is not a URL"]),
        ("exchange.websocket_url=https://h/ws", ["exchange.websocket_url", "wss or ws"]),
        ("exchange.key_id=a b", ["exchange.key_id", "without blanks"]),
        ("markets.tickers=KXBTC*", ["'KXBTC*' is not a ticker", "list of whole tickers"]),
        (f"markets.events={'K' * 201}", ["is not a ticker"]),
        ('markets.series=["A", 1]', ["markets.series", "list of texts"]),
        ("channels.trade=maybe", ["channels.trade = 'maybe'", "true or false"]),
        ("publish.interface=eth0", ["publish.interface = 'eth0'", "IPv4 address"]),
        ("publish.interface=0.0.0.0", ["publish.interface", "one interface"]),
        ("publish.interface_b=::1", ["publish.interface_b", "IPv4 address"]),
        ("publish.group_a=10.0.0.1", ["publish.group_a = '10.0.0.1'", "multicast"]),
        ("publish.group_a=", ["publish.group_a = ''", "multicast"]),
        ("publish.group_a=224.0.0.5", ["publish.group_a", "reserved"]),
        ("publish.group_a=239.255.255.254", ["publish.group_a", "multicast"]),
        ("publish.group_b=239.192.77.5", ["publish.group_b", "share 239.192.77.5 with line A"]),
        ("publish.port=0", ["publish.port = 0", "1 to 65535"]),
        ("publish.port=65536", ["publish.port = 65536", "1 to 65535"]),
        ("publish.ttl=256", ["publish.ttl = 256", "0 to 255"]),
        ("publish.publisher=65536", ["publish.publisher = 65536", "0 to 65535"]),
        ("metrics.port=-1", ["metrics.port = -1", "0 to 65535"]),
        ("metrics.address=localhost", ["metrics.address", "IPv4 address"]),
        ("store.backend=quest", ["store.backend = 'quest'", "did you mean questdb?"]),
        ("store.conf=localhost:9000", ["store.conf", "begin with http:: or https::"]),
        ("store.conf=tcp::addr=h:9009;", ["store.conf", "begin with http:: or https::"]),
        ("store.conf=http::addr=h:9000", ["store.conf", "semicolon"]),
        ("store.conf=http::tls_verify=on;", ["store.conf", "must name addr"]),
        ("store.conf=http::addr=h;auto_flush=on;", ["store.conf", "must leave out auto_flush"]),
        ("store.username=a;b", ["store.username", "semicolon"]),
        ("store.batch_ms=0", ["store.batch_ms = 0", "1 to 10000"]),
        ("log.level=warn", ["log.level = 'warn'", "did you mean warning?"]),
        ("log.format=xml", ["log.format = 'xml'", "console, json"]),
        ("state.directory=a\nb", ["state.directory", "path of a folder"]),
    ],
)
def test_wrong_setting_is_one_line_that_names_it_and_the_remedy(
    setting: str, parts: list[str]
) -> None:
    text = refusal(overrides=[setting])
    assert "--set" in text
    for part in parts:
        assert part in text


def test_wrong_environment_variable_is_named() -> None:
    text = refusal(environ={"TICKERPLANT__PUBLISH__PROT": "1"})
    assert "environment variable TICKERPLANT__PUBLISH__PROT" in text
    assert "did you mean TICKERPLANT__PUBLISH__PORT?" in text
    text = refusal(environ={"TICKERPLANT__PUBLISH__PORT": "none"})
    assert "publish.port = 'none'" in text
    assert "TICKERPLANT__PUBLISH__PORT" in text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"[exchange]\nkey_ID = 'x'\n", ["unknown key 'exchange.key_ID'", "exchange.key_id?"]),
        (b"[exchang]\nkey_id = 'x'\n", ["unknown key 'exchang'", "exchange?"]),
        (b"key_id = 'x'\n", ["unknown key 'key_id'", "exchange.key_id?"]),
        (b"exchange = 5\n", ["exchange = 5", "is a section"]),
        (b"[publish]\nport = '26400'\n", ["publish.port = '26400'", "whole number"]),
        (b"[publish]\nport = 0\n", ["publish.port = 0", "1 to 65535"]),
        (b"[publish\nport = 0\n", ["not valid TOML", "line 1"]),
        (b"[publish]\nport = 1\nport = 2\n", ["not valid TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b"#" * (1024 * 1024 + 1), ["larger than"]),
        (b"x = " + b"[" * 5000, ["not valid TOML"]),
    ],
)
def test_wrong_file_is_one_line_that_names_it(
    tmp_path: Path, content: bytes, parts: list[str]
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_bytes(content)
    text = refusal(path=str(file))
    assert str(file) in text
    for part in parts:
        assert part in text


def test_missing_file_names_who_asked_for_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    assert refusal(path=missing).startswith(f"--config {missing}: does not exist")
    text = refusal(environ={"TICKERPLANT_CONFIG": missing})
    assert text.startswith(f"$TICKERPLANT_CONFIG {missing}: does not exist")
    assert "is a folder" in refusal(path=str(tmp_path))


def test_a_key_in_the_wrong_place_is_refused_without_showing_it() -> None:
    settings = [f"{key}={PEM}" for key in ("exchange.key_path", "exchange.key_id")]
    settings += [f"exchange.key_pem={PEM}", f"{PEM}=1", PEM]
    settings += ["exchange.rest_url=https://me:secretsecret@h/v2"]
    for secret in ("password=secretsecret;", "token=secretsecret;"):
        settings += [f"store.conf=http::addr=h;{secret}", f"store.conf=tcp::{secret}"]
    for setting in settings:
        assert "secretsecret" not in refusal(overrides=[setting])


def test_groups_of_a_line_follow_the_stream_numbers() -> None:
    publish = PublishConfig(
        group_a="239.192.77.1", group_b="239.192.78.254", interface_b="127.0.0.2"
    )
    assert publish.groups("a") == tuple(f"239.192.77.{n}" for n in range(1, 6))
    assert publish.groups("b")[-1] == "239.192.79.2"
    assert publish.interface_of("a") == "127.0.0.1"
    assert publish.interface_of("b") == "127.0.0.2"
    assert PublishConfig().groups("b") == ()
    assert PublishConfig().interface_of("b") == "127.0.0.1"


def test_run_needs_a_market() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no market is chosen: set one of markets\.tickers"
    ):
        Config().markets.require_selection()
    for text in (
        "markets.tickers=A",
        "markets.series=A",
        "markets.events=A",
        "markets.all_open=true",
    ):
        load_config(None, [text], {}).config.markets.require_selection()


def test_credentials_come_from_one_place_and_are_not_shown() -> None:
    config = load_config(None, ["exchange.key_id=0a1b2c3d-9999"], {}).config
    both = load_config(None, ["exchange.key_id=0a1b", "exchange.key_path=~/k.pem"], {}).config
    with pytest.raises(CredentialsError, match=r"exchange\.key_id is not set"):
        credentials(Config(), {"KALSHI_KEY_PEM": PEM})
    with pytest.raises(CredentialsError, match=r"exchange\.key_path is not set.*KALSHI_KEY_PEM"):
        credentials(config, {})
    with pytest.raises(CredentialsError, match="both set"):
        credentials(both, {"KALSHI_KEY_PEM": PEM})
    assert credentials(both, {}).key_path == Path("~/k.pem").expanduser()
    given = credentials(config, {"KALSHI_KEY_PEM": PEM})
    assert given.pem == PEM.encode()
    assert "secret" not in repr(given)
    assert "9999" not in repr(given)


def test_state_directory_order(no_configuration: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/tickerplant:/other", "HOME": str(no_configuration)}
    chosen = load_config(None, ["state.directory=~/here"], environ)
    assert chosen.state_directory == Path("~/here").expanduser()
    assert chosen.state_origin == "--set"
    assert load_config(None, (), environ).state_directory == Path("/var/lib/tickerplant")
    home = load_config(None, (), {"HOME": "/home/x"}).state_directory
    assert home == Path("/home/x/.local/state/tickerplant")


def test_shipped_file_is_in_the_wheel_unchanged(tmp_path: Path) -> None:
    """An installed plant carries the commented file as `tickerplant/default_config.toml`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=SHIPPED.parents[1],
        capture_output=True,
        timeout=60,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("tickerplant/default_config.toml") == SHIPPED.read_bytes()
