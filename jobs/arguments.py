"""The flags every build job shares, and how errors become exit codes."""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.errors import HeldError, InputError, LeaseLostError
from schemas.recipe import Recipe, RecipeError, parse_recipe

log = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT, GATE_FAILED, HELD = 0, 1, 2, 3, 4


SQL_KEYS = ("gates", "ingest.prefilter", "dedupe.eligible", "embed.eligible", "select.rules")


class Parser(argparse.ArgumentParser):
    """argparse, with one clear line and the nearest known flag for a wrong one."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean {near[0]}?" if message.startswith("unrecognized") and near else ""
        self.exit(BAD_INPUT, f"{self.prog}: {message}{hint}\n")


def recipe_names() -> list[str]:
    return sorted(
        path.name.removesuffix(".yaml") for path in files("jobs.recipes").iterdir() if path.name.endswith(".yaml")
    )


def load_recipe(name: str, settings: Sequence[str]) -> Recipe:
    """The recipe at a path or of a shipped name, with `section.key=value` settings on top. Raises RecipeError."""
    path = Path(name)
    if not path.is_file():
        if name not in recipe_names():
            near = difflib.get_close_matches(name, recipe_names(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"shipped recipes: {', '.join(recipe_names())}"
            raise RecipeError(f"recipe {name}: no such file or shipped recipe; {hint}")
        path = Path(str(files("jobs.recipes") / f"{name}.yaml"))
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error}") from None
    data = _yaml(text, f"recipe {path}")
    data = data if data is not None else {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        parts = key.split(".")
        if not equals or len(parts) < 2:
            raise RecipeError(f"--set {setting}: expected section.key=value")
        node: Any = data
        for depth, part in enumerate(parts[:-1]):
            if isinstance(node, dict):
                if node.get(part) is None:
                    # One key of several that have a default: the others keep theirs.
                    node[part] = dict(getattr(getattr(Recipe(), parts[0], None), part, {}) or {}) if depth == 1 else {}
                node = node[part]
        if not isinstance(node, dict):
            raise RecipeError(f"--set {setting}: {'.'.join(parts[:-1])} has no keys below it")
        # SQL is text as it stands; everything else is YAML: numbers, true, [lists].
        node[parts[-1]] = value if ".".join(parts[:-1]) in SQL_KEYS else _yaml(value, f"--set {setting}")
    return parse_recipe(data, name)


def _yaml(text: str, place: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{place}: not YAML: {' '.join(str(error).split())}") from None


def build_parser(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--recipe", required=True, metavar="R", help="path, or the name of a shipped recipe")
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help="files, globs, folders; local or s3://")
    parser.add_argument("--output", metavar="ROOT", help="local path or s3://bucket/prefix")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="beats the recipe")
    parser.add_argument("--limit", type=positive, metavar="N", help="take N rows of new input, the same on every run")
    parser.add_argument("--plan", action="store_true", help="run nothing; say what would be done")
    parser.add_argument("--print-recipe", action="store_true", help="show the recipe as resolved, and stop")
    parser.add_argument("--accept", action="append", default=[], metavar="BATCH", help="accept a batch's failed gates")
    return parser


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def run_main(prog: str, main: Callable[[], int]) -> int:
    """Run a job's main function; the errors a user can mend become one line and their exit code."""
    level = logging.DEBUG if os.environ.get("PAIRMILL_DEBUG") else logging.INFO
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    log.setLevel(level)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a connection too many is closed: no news
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # seven lines of which build it takes
    try:
        return main()
    except HeldError as error:
        return _fail(prog, error, HELD)
    except (InputError, RecipeError) as error:
        return _fail(prog, error, BAD_INPUT)
    except BrokenPipeError:
        return FAILED
    except KeyboardInterrupt:
        return _fail(prog, RuntimeError("interrupted; the same command goes on from what is committed"), FAILED)
    except Exception as error:
        # One line for everybody; the traceback for whoever asks for it.
        log.debug("", exc_info=True)
        told = (
            error if isinstance(error, OSError | LeaseLostError) else RuntimeError(f"{type(error).__name__}: {error}")
        )
        return _fail(prog, told, FAILED)


def _fail(prog: str, error: BaseException, code: int) -> int:
    print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
