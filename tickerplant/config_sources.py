"""Where the configuration's values come from: file, then environment, then `--set`; the later wins.

The file is the first of `--config`, `$TICKERPLANT_CONFIG`, `./config/tickerplant.toml` and
`/etc/tickerplant/tickerplant.toml`; without any, the built-in defaults hold. Every error is one line that names the
key and where it was set.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import msgspec

from tickerplant.config import (
    SECTIONS,
    Config,
    Credentials,
    InvalidValueError,
    Section,
    credentials,
)
from tickerplant.config_checks import KEY_PEM_VARIABLE, shown
from tickerplant.errors import ConfigurationError
from tickerplant.limits import CONFIG_FILE_MAX_BYTES

FILE_VARIABLE = "TICKERPLANT_CONFIG"
VARIABLE_PREFIX = "TICKERPLANT__"
SEARCH_PATHS = (Path("config/tickerplant.toml"), Path("/etc/tickerplant/tickerplant.toml"))
DEFAULT_ORIGIN = "default"

_TYPES: Mapping[str, Any] = {
    f"{name}.{field.name}": field.type
    for name, section in SECTIONS.items()
    for field in msgspec.structs.fields(section)
}
KEYS = tuple(_TYPES)
"""Every key as `section.key`, in the order of the file."""


class Setting(NamedTuple):
    """One value somebody set; `key` as `section.key`, `origin` in words for an error or `check-config`."""

    key: str
    value: object
    origin: str


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The effective configuration and where it comes from."""

    config: Config
    origins: Mapping[str, str]
    """For every key: `default`, or where it was set."""
    file: Path | None
    """The file that was read; None if there was none."""
    state_directory: Path
    state_origin: str
    has_key_pem: bool
    """True if the environment holds the private key itself."""

    def frozen(self, sections: Sequence[str]) -> list[str]:
        """Options with which a command gets these sections, and the state directory, as they are now."""
        settings: dict[str, object] = {"state.directory": str(self.state_directory.absolute())}
        for section in sections:
            values = getattr(self.config, section)
            keys = {f"{section}.{name}": name for name in values.__struct_fields__}
            settings |= {
                key: getattr(values, name)
                for key, name in keys.items()
                if self.origins[key] != DEFAULT_ORIGIN
            }
        words = ["--config", os.devnull]
        for key, value in settings.items():
            words += ["--set", f"{key}={msgspec.json.encode(value).decode()}"]
        return words

    def credentials(self, environ: Mapping[str, str] | None = None) -> Credentials:
        """The API key. Raises `CredentialsError`; reads no file."""
        return credentials(self.config, os.environ if environ is None else environ)


def load_config(
    path: str | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """The effective configuration. `path` is `--config`, `overrides` are the texts of `--set`.

    Raises `ConfigurationError`.
    """
    environ = os.environ if environ is None else environ
    file = find_file(path, environ)
    settings = list(_file_settings(file)) if file is not None else []
    settings += _environment_settings(environ)
    settings += (_override_setting(text) for text in overrides)
    origins = dict.fromkeys(KEYS, DEFAULT_ORIGIN)
    values: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    for setting in settings:
        section, _, name = setting.key.partition(".")
        values[section][name] = _typed(setting)
        origins[setting.key] = setting.origin
    config = _build(values, origins)
    directory, state_origin = _state_directory(config, origins, environ)
    return LoadedConfig(
        config=config,
        origins=origins,
        file=file,
        state_directory=directory,
        state_origin=state_origin,
        has_key_pem=bool(environ.get(KEY_PEM_VARIABLE)),
    )


def find_file(path: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read, None if there is none. Raises `ConfigurationError` if a named one is missing."""
    for named, name in ((path, "--config"), (environ.get(FILE_VARIABLE), f"${FILE_VARIABLE}")):
        if named:
            file = Path(named).expanduser()
            if not file.exists() or file.is_dir():
                problem = "is a folder" if file.is_dir() else "does not exist"
                raise ConfigurationError(f"{name} {named}: {problem}; name a TOML file")
            return file
    return next((candidate for candidate in SEARCH_PATHS if candidate.is_file()), None)


def _file_settings(file: Path) -> Iterator[Setting]:
    for section, table in _read_toml(file).items():
        if section not in SECTIONS:
            raise _unknown_key(section, str(file))
        if not isinstance(table, dict):
            raise ConfigurationError(
                f"{file}: {section} = {shown(table)}: is a section; write [{section}] and its keys below it"
            )
        for name, value in table.items():
            if f"{section}.{name}" not in _TYPES:
                raise _unknown_key(f"{section}.{name}", str(file))
            yield Setting(f"{section}.{name}", value, str(file))


def _read_toml(file: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  # only when there is a file: `--help` stays quick

    try:
        with file.open("rb") as stream:
            content = stream.read(CONFIG_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot be read: {error.strerror}; check its permissions"
        ) from error
    if len(content) > CONFIG_FILE_MAX_BYTES:
        raise ConfigurationError(
            f"{file}: larger than {CONFIG_FILE_MAX_BYTES} bytes; is it a configuration file?"
        )
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigurationError(f"{file}: not valid TOML: {reason}; correct that line") from error


def _environment_settings(environ: Mapping[str, str]) -> Iterator[Setting]:
    for variable in sorted(environ):
        if variable.startswith(VARIABLE_PREFIX):
            key = variable.removeprefix(VARIABLE_PREFIX).lower().replace("__", ".", 1)
            if key not in _TYPES:
                raise _unknown_key(key, f"environment variable {variable}", _variable)
            yield Setting(
                key,
                _parse_text(environ[variable], _TYPES[key]),
                f"environment variable {variable}",
            )


def _override_setting(text: str) -> Setting:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigurationError(
            f"--set {shown(text)}: write --set section.key=value, e.g. --set log.level=debug"
        )
    if key not in _TYPES:
        raise _unknown_key(key, "--set")
    return Setting(key, _parse_text(value.strip(), _TYPES[key]), "--set")


def _parse_text(text: str, wanted: Any) -> object:
    """The value of `text`: TOML where it is TOML of the wanted type, else the plain string.

    A list may also be written as words with commas between them.
    """
    if wanted is str:
        parsed = _parse_toml_value(text) if text[:1] in {'"', "'"} else text
        return parsed if isinstance(parsed, str) else text
    if get_origin(wanted) is tuple and not text.startswith("["):
        return [word.strip() for word in text.split(",") if word.strip()]
    return _parse_toml_value(text)


def _parse_toml_value(text: str) -> object:
    import tomllib  # noqa: PLC0415  # only when there is a value to parse

    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def _typed(setting: Setting) -> object:
    try:
        return msgspec.convert(setting.value, _TYPES[setting.key], strict=True)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"{setting.key} = {shown(setting.value)}: {_type_problem(str(error), setting.key)} "
            f"(from {setting.origin})"
        ) from error


def _type_problem(message: str, key: str) -> str:
    """msgspec's sentence, made to say what to write."""
    wanted = _TYPES[key]
    examples = {bool: "true or false", int: "a whole number", str: "text in quotes"}
    return f"must be {examples.get(wanted, 'a list of texts in quotes')}: {message[:1].lower()}{message[1:]}"


def _build(values: Mapping[str, Mapping[str, object]], origins: Mapping[str, str]) -> Config:
    try:
        sections: dict[str, Section] = {
            name: section(**values[name]) for name, section in SECTIONS.items()
        }
        return Config(**sections)  # type: ignore[arg-type]  # SECTIONS is made from Config's own fields
    except InvalidValueError as error:
        raise ConfigurationError(f"{error} (from {origins[error.key]})") from error


def _variable(key: str) -> str:
    return VARIABLE_PREFIX + key.replace(".", "__").upper()


def _unknown_key(key: str, where: str, spell: Any = str) -> ConfigurationError:
    """An error that names the key and its place, and the key that may have been meant."""
    from difflib import get_close_matches  # noqa: PLC0415  # only for the error

    if key in SECTIONS:
        example = spell(next(known for known in KEYS if known.startswith(f"{key}.")))
        return ConfigurationError(
            f"{where}: {key} is a section; name one of its keys, like {example}"
        )
    section, _, name = key.rpartition(".")
    same_name = [known for known in KEYS if known.endswith(f".{name}")]
    close = same_name or get_close_matches(key, KEYS, n=1, cutoff=0.6)
    if not section:
        sections = get_close_matches(name, SECTIONS, n=1)
        close = same_name or sections or close
    hint = (
        f"did you mean {spell(close[0])}?" if close else "`tickerplant check-config` lists all keys"
    )
    return ConfigurationError(f"{where}: unknown key {shown(key)}; {hint}")


def _state_directory(
    config: Config, origins: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[Path, str]:
    if config.state.directory:
        return Path(config.state.directory).expanduser(), origins["state.directory"]
    # systemd lists several folders with colons; the first is the unit's own.
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given), "$STATE_DIRECTORY"
    home = Path(environ.get("HOME") or Path.home())
    return home / ".local" / "state" / "tickerplant", DEFAULT_ORIGIN
