"""Quarto ipynb-filter: give each notebook nbdev's treatment (#| hide, front matter) as Quarto reads it, and
show its code.

Quarto runs this in the notebook's folder, with the notebook on stdin, and takes what it prints. nbdev's own
pages leave exported code out and print signatures that it makes by running it; these pages show the code as
it stands, each public definition under a heading that names lead to (tools/doclinks.lua). Nothing is run.
"""

import ast
import contextlib
import functools
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

os.environ["IN_TEST"] = "1"
from execnb.nbio import dict2nb, loads, mk_cell, nb2str
from fastcore.basics import AttrDict
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, FrontmatterProc

VIEW = "application/vnd.jupyter.widget-view+json"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# what `show_code` replaces
NOT_OURS = {"add_show_docs", "exec_show_docs", "clean_show_doc", "mv_exports", "add_fold", "add_links"}


class Frontmatter(FrontmatterProc):
    """Title and description from the first cell; the page keeps the notebook's own name."""

    def end(self):
        # the base class wants one, for the output-file that is dropped here
        self.nb.path_ = Path("unused.ipynb")
        super().end()
        if self.fm:
            front = self.nb.cells[0]
            front.source = re.sub(r"^output-file:.*\n", "", front.source, flags=re.M)


class Filter(FilterDefaults):
    def base_procs(self):
        return [
            Frontmatter if p is FrontmatterProc else p
            for p in super().base_procs()
            if p.__name__ not in NOT_OURS
        ]


def split_title(nb):
    """Title and description get a cell of their own: nbdev makes front matter of the whole first cell and
    drops the rest.
    """
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown" and (
            m := re.match(r"(#[ \t][^\n]*\n*(?:>[^\n]*\n*)*)(.*)", cell.source, re.S)
        ):
            cell.source = m[1].strip()
            if m[2].strip():
                nb.cells.insert(i + 1, mk_cell(m[2], "markdown"))
            return


def tidy_outputs(nb):
    """No widgets, for a page has no kernel: what an output shows beside one stays.

    A record named alone in HTML becomes a link. HTML goes through Markdown as a raw block, for where an
    output is of the kind HTML, Quarto lets the page load jQuery and require.js from another host.
    """
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for data in (o.get("data", {}) for o in cell.get("outputs", [])):
            data.pop(VIEW, None)
            if "text/html" in data:
                path = r"(?<=>)nbs/([\w./-]+\.(?:json|ipynb))(?=<)"
                html = re.sub(path, r'<a href="\1">nbs/\1</a>', "".join(data.pop("text/html")))
                data["text/markdown"] = f"`````{{=html}}\n{html}\n`````"


# ---------------------------------------------------------------- code and the headings of what it defines


def public(node: ast.stmt) -> bool:
    """Whether a statement defines something that a reader may look for."""
    return isinstance(node, DEFINITIONS) and not node.name.startswith("_")


def start(node: ast.stmt) -> int:
    """The line that a statement begins on, its decorators' first."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


@functools.cache
def lines_of(module: str) -> dict[str, int]:
    """Where the exported file of a module defines each name."""
    file = get_config().lib_path / f"{module}.py"
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    own = {n.name: n for n in body if isinstance(n, DEFINITIONS)}
    members = {
        f"{c.name}.{n.name}": n
        for c in own.values()
        if isinstance(c, ast.ClassDef)
        for n in c.body
        if public(n)
    }
    return {name: start(n) for name, n in (own | members).items()}


def heading(level: int, name: str, module: str) -> str:
    """A heading with a link to the line on the server."""
    cfg, line = get_config(), lines_of(module).get(name)
    source = f"{cfg.git_url}/blob/{cfg.branch}/{cfg.lib_path.name}/{module}.py#L{line}"
    return f"{'#' * level} {name}\n\n[source]({source}){{.source}}"


def member(node: ast.stmt, name: str, lines: list[str], module: str) -> str:
    """A method of a class: its signature as it stands, and what it is for."""
    first, said = node.body[0], ast.get_docstring(node)
    head = lines[start(node) - 1 : first.lineno]
    head[-1] = head[-1].encode()[: first.col_offset].decode()
    signature = textwrap.dedent("\n".join(head)).strip()
    return f"{heading(4, name, module)}\n\n```python\n{signature}\n```\n" + (f"\n*{said}*\n" if said else "")


def pieces(source: str, module: str) -> Iterator[tuple[str, str]]:
    """An exported cell in pieces, (kind, text): the code of each public definition under its heading, then
    its methods.
    """
    tree, lines, at = ast.parse(source).body, source.splitlines(), 0
    plain: list[str] = []
    for node in tree:
        text = "\n".join(lines[at : node.end_lineno]).strip("\n")
        at = node.end_lineno
        if not public(node):
            plain.append(text)
            continue
        if plain:
            yield "code", "\n".join(plain)
        plain = []
        yield "markdown", heading(3, node.name, module)
        yield "code", text
        for m in node.body if isinstance(node, ast.ClassDef) else ():
            if public(m):
                yield "markdown", member(m, f"{node.name}.{m.name}", lines, module)
    if plain:
        yield "code", "\n".join(plain)


def show_code(nb):
    """Exported cells show their code; those of imports alone are left to nbdev, which hides them."""
    module = next((m[1] for c in nb.cells if (m := re.match(r"#\|\s*default_exp\s+(\S+)", c.source))), None)
    cells = []
    for cell in nb.cells:
        exported = cell.cell_type == "code" and re.match(r"#\|\s*export\s*\n", cell.source)
        source = cell.source[exported.end() :] if exported else ""
        if all(
            isinstance(n, (ast.Import, ast.ImportFrom)) for n in (ast.parse(source).body if exported else ())
        ):
            cells.append(cell)
        else:
            cells += [mk_cell(text, kind, metadata=AttrDict()) for kind, text in pieces(source, module)]
    nb.cells = cells


def process(text):
    """A notebook as Quarto should see it; run in the notebook's folder."""
    with contextlib.redirect_stdout(sys.stderr):
        nb = dict2nb(loads(text))
        split_title(nb)
        show_code(nb)
        tidy_outputs(nb)
        Filter()(nb)
        return nb2str(nb)


if __name__ == "__main__":
    sys.stdout.write(process(sys.stdin.read()))
