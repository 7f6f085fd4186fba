"""Pages that are made from the code when the site is built: commands, options, modules, and files of the repository."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import typer
from click import Argument, Command, Group, Parameter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import nufed
from nufed.common.config import option_descriptions
from nufed.deploy.commands.cli import app
from nufed.deploy.commands.run_options import FLAGS

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "common", "deploy", "server", "strategy")
COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation names the folder, `decisions/`, the folder's index first."""
    folders = {
        "decisions/": ["decisions/index.md", *pages_in("decisions", "0*.md")],
        "results/": ["results.md", *pages_in("results", "*.md")],
        "reference/modules/": ["reference/modules/index.md", *module_pages()],
    }

    def expanded(entry: Any) -> Any:
        if isinstance(entry, list):
            return [expanded(each) for each in entry]
        if isinstance(entry, dict):
            return {title: expanded(each) for title, each in entry.items()}
        return folders.get(entry, entry)

    config.nav = expanded(config.nav)
    return config


def pages_in(folder: str, pattern: str) -> list[str]:
    """Return the pages that stand in a folder of the documents, by name."""
    return sorted(f"{folder}/{path.name}" for path in (ROOT / "docs" / folder).glob(pattern))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/cli.md": command_line(),
        "reference/configuration.md": configuration(),
        "reference/api.md": public_api(),
        **module_pages(),
        **{page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIED.items()},
    }
    modules = [Path(page) for page in pages if page.startswith("reference/modules/")]
    listed = "".join(f"- [`{page.stem}`]({page.name})\n" for page in modules)
    pages["reference/modules/index.md"] = f"# Modules\n\nEvery module, by package.\n\n{listed}"
    pages["decisions/index.md"] = decisions()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def command_line() -> str:
    """Return a page with every command, its arguments and its options."""
    parts = ["# Command line", "Every command takes `--help` and `--debug`, which shows where an error came from."]
    root = typer.main.get_command(app)
    for name, command in commands(root, "nufed"):
        parts += [f"## {name}", escape(inspect.cleandoc(command.help or "")), usage(name, command)]
        parts += table_of_parameters(command)
    return "\n\n".join(part for part in parts if part) + "\n"


def commands(command: Command, path: str) -> list[tuple[str, Command]]:
    """Return the leaves of a tree of commands, with what is typed for each."""
    if isinstance(command, Group):
        return [leaf for name, sub in command.commands.items() for leaf in commands(sub, f"{path} {name}")]
    return [(path, command)]


def usage(name: str, command: Command) -> str:
    """Return the line of a command with its arguments."""
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, Argument)]
    return f"```text\n{' '.join([name, *arguments, '[OPTIONS]'])}\n```"


def table_of_parameters(command: Command) -> list[str]:
    """Return Markdown tables of a command's parameters, one for each panel of its help."""
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        own = "Arguments" if isinstance(parameter, Argument) else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or own
        text = getattr(parameter, "help", None) or ""
        if not text:
            raise PluginError(f"{command.name}: {parameter.name} has no help text")
        panels.setdefault(panel, []).append(f"| {spelling(parameter)} | {escape(text)} |")
    return [f"**{panel}**\n\n| typed | meaning |\n| --- | --- |\n" + "\n".join(rows) for panel, rows in panels.items()]


def spelling(parameter: Parameter) -> str:
    """Return how a parameter is typed."""
    if isinstance(parameter, Argument):
        return f"`{(parameter.metavar or parameter.name or '').upper()}`"
    metavar = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or parameter.type.name.upper()}"
    return f"`{', '.join(parameter.opts)}{metavar}`"


def configuration() -> str:
    """Return a page with every option of a run, by section."""
    text = """# Configuration

What decides a run's numbers. Every option stands in a file for `--config` (TOML or JSON), on the line as
`--set KEY=VALUE`, in Flower's `--run-config`, or as a keyword in Python (`num_inner_steps=3`). What depends on the
machine (folders, device, threads) is set by flags and `NUFED_*` variables and never changes the numbers.
"""
    flags = {key: flag for flag, key in FLAGS.items()}
    section = None
    for key, (default, description) in option_descriptions().items():
        here = key.rpartition(".")[0] or "run"
        if here != section:
            section = here
            text += f"\n## {section}\n\n| option | flag | default | meaning |\n| --- | --- | --- | --- |\n"
        flag = f"`--{flags[key]}`" if key in flags else ""
        shown = "empty" if default == "" else f"`{default}`"
        text += f"| `{key}` | {flag} | {shown} | {escape(description)} |\n"
    return text


def public_api() -> str:
    """Return the page of `nufed`'s public names; one without a docstring fails."""
    parts = ["# Python API", f"{inspect.getdoc(nufed)}"]
    for name in nufed.__all__:
        if name.startswith("__"):
            continue
        value = getattr(nufed, name)
        if not inspect.getdoc(value):
            raise PluginError(f"nufed.{name} has no docstring")
        parts.append(f"::: nufed.{name}")
    return "\n\n".join(parts) + "\n"


def module_pages() -> dict[str, str]:
    """Return a page for each package below `nufed`, with its modules one after another."""
    pages = {}
    for top in PACKAGES:
        for package in packages_below(f"nufed.{top}"):
            inside = pkgutil.iter_modules(importlib.import_module(package).__path__)
            names = [info.name for info in inside if not info.ispkg and info.name != "__main__"]
            shown = [f"::: {package}\n    options: {{members: false, show_root_full_path: true, heading_level: 1}}"]
            shown += [f"::: {package}.{name}\n    options: {{show_root_full_path: true}}" for name in names]
            pages[f"reference/modules/{package}.md"] = "\n\n".join([f"---\ntitle: {package}\n---", *shown]) + "\n"
    return pages


def packages_below(name: str) -> list[str]:
    """Return a package and all packages inside it."""
    inside = [info.name for info in pkgutil.iter_modules(importlib.import_module(name).__path__) if info.ispkg]
    return [name, *(found for leaf in inside for found in packages_below(f"{name}.{leaf}"))]


def decisions() -> str:
    """Return the list of decision records, by their headings."""
    lines = ["# Decisions", "", "What was decided, what was tried and given up, and when to look again.", ""]
    for path in sorted((ROOT / "docs/decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return text for a table's cell: bars and angle brackets are literal."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
