"""What the site changes in pages that are also read in the repository: fences, links to code, formulas."""

import html
import re
from pathlib import PurePosixPath
from posixpath import normpath

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

DOUBLE_STRUCK = {"R": "ℝ", "E": "𝔼"}
"""MathML of browsers has characters for them, and knows no `mathvariant`."""

PACKAGES = ("client/", "common/", "deploy/", "server/", "strategy/")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's Markdown with plain fences, and with links to source files led to their reference."""
    markdown = re.sub(r"^```(\w+) ([\w-]+)(?![\w=-])[^\n]*$", fence, markdown, flags=re.MULTILINE)
    source = PurePosixPath("docs") / page.file.src_uri
    if page.file.src_uri in ("changelog.md", "contributing.md", "security.md"):
        source = PurePosixPath(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        text, target, section = match.group(1), match.group(2), match.group(3) or ""
        path = normpath(source.parent / target)
        up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
        if path.startswith("docs/") and source.parent == PurePosixPath():
            return f"[{text}]({up}{path.removeprefix('docs/')}{section})"
        if path.startswith(PACKAGES) and path.endswith(".py"):
            module = "nufed." + path.removesuffix(".py").replace("/", ".")
            name = text.strip("`").split("(")[0]
            anchor = f"{module}.{name}" if name.isidentifier() else module
            return f"[{text}]({up}reference/modules/{module.rpartition('.')[0]}.md#{anchor})"
        return match.group(0) if path.startswith("docs/") else text

    return re.sub(r"\[([^\]\n]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)


def fence(match: re.Match[str]) -> str:
    """Return a fence that says where it is run as its title; the executed guides mark it behind the language."""
    return f'```{match.group(1)} title="{match.group(2)}"'


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's HTML with formulas as MathML, which browsers draw without a script."""
    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.DOTALL)


def formula(match: re.Match[str]) -> str:
    """Return MathML for the LaTeX of one formula."""
    latex = html.unescape(match.group(2)).strip()
    display = "block" if latex.startswith("\\[") else "inline"
    latex, *number = re.split(r"\\tag\{(.*)\}", latex[2:-2].strip(), maxsplit=1)
    drawn = latex2mathml.converter.convert(latex, display=display)
    for code, letter in DOUBLE_STRUCK.items():
        drawn = drawn.replace(f'<mi mathvariant="double-struck">{code}</mi>', f"<mi>{letter}</mi>")
    return f'<div class="numbered">{drawn}<span>({number[0]})</span></div>' if number else drawn
