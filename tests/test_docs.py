"""The documents against the code: what they name exists, what they show works."""

import ast
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from tickerplant import errors, limits
from tickerplant.cli import COMMANDS, build_parser
from tickerplant.config import SECTIONS, Config, PublishConfig
from tickerplant.config_sources import KEYS, load_config
from tickerplant.core.books import TRANSITIONS, BookEvent
from tickerplant.core.messages import BookState, FeedPhase, Message, Stream
from tickerplant.core.wire import HEADER, MESSAGE_TYPES, Header

sys.path.append(str(Path(__file__).resolve().parent / "end_to_end"))

from processes import COMMAND, Plant, Process, Simulation, free_network, merged

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
RUNBOOK = ROOT / "deploy" / "runbook.md"
CHANGELOG = ROOT / "CHANGELOG.md"
DOCUMENTS = (README, ARCHITECTURE, ROOT / "CONTRIBUTING.md", CHANGELOG, RUNBOOK)
PACKAGES = ("tickerplant", "tickerplant_kalshi", "tickerplant_kalshi_sim", "tickerplant_subscriber")
SOURCES = tuple(
    path
    for folder in ("tickerplant", "feeds", "subscribers")
    for path in sorted((ROOT / folder).rglob("*.py"))
)
STRATEGY_LINES_MAX = 10
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


class Block(NamedTuple):
    """A fenced block, without the indentation of its fence."""

    language: str
    text: str


def blocks(path: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a document, those of one language if it is given."""
    found = []
    for indent, name, text in _FENCE.findall(path.read_text()):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        if language in (None, name):
            found.append(Block(name, "\n".join(lines)))
    return found


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", path.read_text())


def code_words(path: Path) -> Iterator[str]:
    """Everything in single backticks."""
    return iter(re.findall(r"`([^`\n]+)`", prose(path)))


def shell_lines(path: Path) -> Iterator[str]:
    """Commands of sh blocks, continuation lines joined, and inline code that looks like one."""
    for block in blocks(path, "sh"):
        yield from block.text.replace("\\\n", " ").splitlines()
    yield from code_words(path)


def table(path: Path, *heads: str) -> list[list[str]]:
    """The rows of the table with these column heads, cells without backticks."""
    lines = prose(path).splitlines()
    start = lines.index(f"| {' | '.join(heads)} |")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    assert rows
    return rows


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- versions, commands, targets --------------------------------------------------------------------


def test_top_version_of_the_changelog_is_the_package_version() -> None:
    found = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG.read_text(), re.MULTILINE
    )
    versions, dates = zip(*found, strict=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[0] == version("kalshi-tickerplant") == project["version"]
    assert sorted(versions, reverse=True) == list(versions)
    assert all(date.fromisoformat(day) for day in dates)


@document
def test_make_targets_exist(path: Path) -> None:
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared is not None
    targets = set(declared[1].split())
    named = {line.split()[1] for line in shell_lines(path) if re.match(r"make \w", line)}
    assert named <= targets
    if path.name == "CONTRIBUTING.md":
        assert named == targets - {"help"}


@document
def test_command_lines_are_accepted_by_the_parser(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every `tickerplant ...` with real options; only placeholders such as COMMAND are left out."""
    parser = build_parser()
    for line in shell_lines(path):
        words = shlex.split(line, comments=True) if line.startswith("tickerplant ") else []
        if not words or words[1] == "COMMAND":
            continue
        try:
            parser.parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")


def test_readme_lists_every_command() -> None:
    rows = table(README, "command", "what it does", "needs")
    commands = [f"tickerplant {name.replace('_', '-')}" for name in COMMANDS]
    # Of a command with actions the first action follows.
    assert sorted(" ".join(row[0].split()[:2]) for row in rows) == sorted(commands)


def test_readme_names_groups_and_port_as_they_are_by_default() -> None:
    publish = PublishConfig()
    rows = [
        f"{group}      {publish.port}      {int(stream)} {stream.name.lower()}"
        for group, stream in zip(publish.groups("a"), Stream, strict=True)
    ]
    text = README.read_text()
    assert [row for row in rows if row not in text] == []
    assert f"{Config().metrics.address}:{Config().metrics.port}" in text


# --- links, paths, names ----------------------------------------------------------------------------


@document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(other), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


@document
def test_named_paths_exist(path: Path) -> None:
    """Words in backticks with a slash that are no absolute path, URL, pattern or what make makes."""
    for word in code_words(path):
        if re.fullmatch(r"[\w.-]+/[\w./-]*", word) and not word.startswith(".venv/"):
            assert (ROOT / word).exists(), word


@document
def test_named_modules_classes_and_functions_exist(path: Path) -> None:
    for word in code_words(path):
        if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)*", word):
            pkgutil.resolve_name(word)


@document
def test_named_configuration_keys_exist(path: Path) -> None:
    sections = "|".join(SECTIONS)
    for word in code_words(path):
        matched = re.fullmatch(rf"(({sections})\.[a-z_]+)( = .*)?", word)
        if matched is not None:
            assert matched[1] in KEYS, word


@document
def test_configuration_shown_loads(path: Path, tmp_path: Path) -> None:
    for block in blocks(path, "toml"):
        file = tmp_path / "shown.toml"
        file.write_text(block.text)
        loaded = load_config(str(file), environ={"HOME": str(tmp_path)})
        loaded.config.markets.require_selection()
        assert loaded.credentials({}).key_path is not None


def test_configuration_is_shown_where_it_is_needed() -> None:
    assert all(blocks(path, "toml") for path in (README, RUNBOOK))


# --- tables of the architecture ---------------------------------------------------------------------


def import_contracts() -> dict[str, dict[str, list[str]]]:
    """The contracts of import-linter, by the first source module."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    return {contract["source_modules"][0]: contract for contract in contracts}


def modules_of(package: str) -> set[str]:
    """The modules right in one of our packages."""
    folder = next(path for path in SOURCES if path.parent.name == package).parent
    names = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/*.py")
    }
    return {f"{package}.{name}" for name in names - {"__init__"}}


@pytest.mark.parametrize("source", ["tickerplant.core", *PACKAGES[1:]])
def test_import_contracts_forbid_all_that_the_table_does_not_allow(source: str) -> None:
    """A new module is forbidden until somebody decides otherwise."""
    rows = {
        row[0].split(",")[0].replace("core", "tickerplant.core"): row
        for row in table(ARCHITECTURE, "who", "may import")
    }
    allowed = {"tickerplant.core", "tickerplant.errors", "tickerplant.limits"}
    allowed.update(re.findall(r"tickerplant(?:_kalshi)?\.\w+", rows[source][1].partition(";")[0]))
    forbidden = set(import_contracts()[source]["forbidden_modules"])
    assert modules_of("tickerplant") - allowed <= forbidden
    if source == "tickerplant_kalshi_sim":
        assert modules_of("tickerplant_kalshi") - allowed <= forbidden
    assert not allowed & forbidden


def test_what_tests_start_is_the_installed_package() -> None:
    """Without `-P` Python looks into the working directory first, which is the checkout."""
    unsafe = re.compile(r'sys\.executable,\s*"-(c"|m",\s*"tickerplant)')
    found = [
        path.name for path in (ROOT / "tests").rglob("*.py") if unsafe.search(path.read_text())
    ]
    assert found == []


def test_modules_that_say_they_are_pure_are_held_to_it() -> None:
    pure = set(import_contracts()["tickerplant_kalshi.messages"]["source_modules"])
    said = {
        f"{path.parent.name}.{path.stem}"
        for path in SOURCES
        if path.parent.name in PACKAGES[1:]
        and path.stem != "__init__"
        and re.search(
            r"\bpure\b", ast.get_docstring(ast.parse(path.read_text())) or "", re.IGNORECASE
        )
    }
    assert len(said) > 20
    assert {module for module in said if not module.startswith("tickerplant_kalshi_sim.")} <= pure


def test_header_table_is_the_header() -> None:
    rows = table(ARCHITECTURE, "offset", "bytes", "field", "meaning")
    assert tuple(row[2] for row in rows) == Header._fields
    sizes = [int(row[1]) for row in rows]
    assert [int(row[0]) for row in rows] == [sum(sizes[:index]) for index in range(len(sizes))]
    letters = {"B": 1, "H": 2, "Q": 8}
    assert sizes == [letters[letter] for letter in HEADER.format.removeprefix("<")]


def test_message_table_is_the_messages() -> None:
    common = Message.__struct_fields__
    told = {
        (int(tag), name, tuple(fields.split(", ")) if fields else ())
        for tag, name, _stream, fields in table(ARCHITECTURE, "tag", "message", "stream", "fields")
    }
    assert told == {
        (kind.__struct_config__.tag, kind.__name__, kind.__struct_fields__[len(common) :])
        for kind in MESSAGE_TYPES
    }


def test_readme_has_every_message_on_its_stream() -> None:
    told = {
        (name.strip(), stream.strip())
        for streams, names, _what in table(README, "stream", "message", "what it says")
        for name in names.split(",")
        for stream in streams.split(",")
    }
    real = {(kind.__name__, kind.stream.name.lower()) for kind in MESSAGE_TYPES}
    assert told == real | {("UpstreamGap", "ticker")}


def test_book_table_is_the_transition_table() -> None:
    events = list(BookEvent)
    rows = table(ARCHITECTURE, "state", *(event.name for event in events))
    told = {
        (BookState[row[0]], event): BookState[cell]
        for row in rows
        for event, cell in zip(events, row[1:], strict=True)
    }
    assert told == TRANSITIONS


def test_phase_table_has_every_phase() -> None:
    assert {row[0] for row in table(ARCHITECTURE, "phase", "when")} == set(FeedPhase.__members__)


def test_bounds_are_those_of_limits() -> None:
    for name, value, _what in table(ARCHITECTURE, "bound", "value", "at the bound"):
        number, _, unit = value.replace(",", "").partition(" ")
        assert getattr(limits, name) == int(number) * _UNITS[unit], name


# --- tables of the runbook --------------------------------------------------------------------------


def logged_events() -> set[str]:
    """The event names that plant and feed log: first arguments of calls that write a line."""
    found = set()
    for path in SOURCES:
        if path.parent.name not in {"runtime", "store", "tickerplant_kalshi"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in {"info", "warning", "error", "tell"}:
                texts = [
                    str(part.value)
                    for part in ast.walk(node.args[0])
                    if isinstance(part, ast.Constant)
                ]
                found |= {text for text in texts if re.fullmatch(r"[a-z]+(_[a-z]+)*", text)}
    return found


def test_runbook_explains_every_log_event() -> None:
    rows = table(RUNBOOK, "event", "means", "what to do")
    assert {row[0] for row in rows} == logged_events()


def test_error_lines_are_those_of_the_code() -> None:
    texts = " ".join(path.read_text() for path in SOURCES)
    rows = table(RUNBOOK, "the line says", "code", "what to do")
    assert [row[0] for row in rows if row[0] not in texts] == []
    assert {int(row[1]) for row in rows} <= exit_codes()


def test_exit_codes_are_those_of_the_code() -> None:
    assert {int(row[0]) for row in table(RUNBOOK, "code", "means", "what to do")} == exit_codes()


def exit_codes() -> set[int]:
    """The codes of the error tree."""
    return {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


# --- what the documents show, run -------------------------------------------------------------------


def python_blocks() -> list[str]:
    """The strategy and the loop of the README."""
    return [block.text for block in blocks(README, "python")]


def test_strategy_of_the_readme_is_short() -> None:
    strategy = python_blocks()[0]
    lines = [line for line in strategy.splitlines() if line.strip()]
    assert len(lines) <= STRATEGY_LINES_MAX


def test_python_of_the_readme_passes_mypy_strict(tmp_path: Path) -> None:
    files = []
    for number, code in enumerate(python_blocks()):
        files.append(tmp_path / f"shown_{number}.py")
        files[-1].write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"in {len(files)} source files" in done.stdout


def test_what_the_documents_show_works_on_a_running_plant(tmp_path: Path) -> None:
    """README strategy and loop hear a real plant, and the plant serves the metrics of the runbook."""
    network = free_network()
    where = f"group_a={network.group!r}, port={network.port}"
    strategy, loop = python_blocks()[:2]
    programs = {
        "strategy": strategy.replace("run(Printer())", f"run(Printer(), {where})"),
        "loop": loop.replace("Subscriber(", f"Subscriber({where}, "),
    }
    for name, code in programs.items():
        assert where in code
        (tmp_path / f"{name}.py").write_text(code)
    with (
        Process("strategy", tmp_path, [sys.executable, "-u", "strategy.py"]) as printer,
        Process("loop", tmp_path, [sys.executable, "-u", "loop.py"]) as listener,
        Simulation(tmp_path / "sim", "--markets", "20", "--rate", "200") as simulation,
    ):
        chosen = {"markets": {"all_open": True}, "capture": {"enabled": True}}
        settings = merged(simulation.settings, chosen)
        with Plant(tmp_path / "plant", network, settings) as plant:
            plant.wait_ready()
            printer.wait_output(r"KXSIM\S+ \d+ \d+ True\n")
            printer.wait_output(r"KXSIM\S+ traded \d+ \d+\n")
            listener.wait_output(r"Bbo\(ticker='KXSIM")
            served = plant.get("/metrics")
        printer.wait_output(r"KXSIM\S+ do not trade: STREAM_DEAD\n")
        assert printer.stop() == 0
    words = ("strategy:Printer", "--speed", "0", "--config", plant.folder / "tickerplant.toml")
    with Process("replay", tmp_path, [COMMAND, "replay", *words]) as again:
        assert again.wait() == 0, again.errors
        assert re.search(r"KXSIM\S+ traded \d+ \d+\n", again.output)
        assert "refused" not in again.errors
        assert printer.errors == ""
    named = set(re.findall(r"`((?:tickerplant|process)_[a-z_]+)`", metrics_section()))
    assert named - set(re.findall(r"^# TYPE (\S+) ", served, re.MULTILINE)) == set()


def metrics_section() -> str:
    """The part of the runbook that is about metrics, and its other mentions of them by full name."""
    text = prose(RUNBOOK)
    return text[text.index("## Metrics") : text.index("## Log events")]
