"""README and docs as tests read them: pages, fenced blocks, spans of code, commands."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS, ROOT / "deploy/README.md", ROOT / "benchmarks/README.md"]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PYTHON = ("python", "python3", ".venv/bin/python", "pip", "torchrun", "tensorboard")
PROGRAMS = (*PYTHON, "apt", "cmake", "curl", "make", "ray", "source", "srun", "trtexec")


class Block(NamedTuple):
    """Commands that follow each other in one place. page: where they are, relative to the project."""

    page: str
    commands: tuple[str, ...]


def fenced(page: Path, language: str) -> list[str]:
    """Texts of the fenced blocks of a language. Those of commands name none; scripts are bash, anything else text."""
    return [text for name, text in FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def spans(page: Path) -> list[str]:
    """Code within sentences and tables; where it is wrapped, on one line."""
    return [" ".join(text.split()) for text in SPAN.findall(FENCED.sub("", page.read_text(encoding="utf-8")))]


def is_command(text: str) -> bool:
    """Whether a line, or code within a sentence, is a command: a program and what it is called with."""
    program, *arguments = text.split()
    return bool(arguments) and (program in PROGRAMS or program.startswith(("./", ".venv\\")))


def _commands(block: str, is_script: bool) -> tuple[str, ...]:
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines = [line for line in lines if line]
    if is_script:  # what is called in a script, not how
        lines = [line for line in lines if is_command(line)]
    return tuple(part for line in lines for part in line.split(" && "))


def blocks() -> list[Block]:
    """All commands: those of a fenced block together, those within sentences each alone."""
    found = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        of_page = [_commands(text, is_script=False) for text in fenced(page, "")]
        of_page += [_commands(text, is_script=True) for text in fenced(page, "bash")]
        of_page += [(text,) for text in spans(page) if is_command(text)]
        found += [Block(name, commands) for commands in of_page if commands]
    return found
