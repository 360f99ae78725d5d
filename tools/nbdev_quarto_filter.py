"""Quarto ipynb-filter: give each notebook nbdev's treatment (show_doc, #| hide, links) as Quarto reads it.

Quarto runs this in the notebook's folder, with the notebook on stdin, and takes what it prints.
"""
import contextlib
import os
import re
import sys
from pathlib import Path

os.environ["IN_TEST"] = "1"
from execnb.nbio import dict2nb, loads, mk_cell, nb2str
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, FrontmatterProc

VIEW = "application/vnd.jupyter.widget-view+json"


class Frontmatter(FrontmatterProc):
    """Title and description from the first cell; the page keeps the notebook's own name."""

    def end(self):
        self.nb.path_ = Path("unused.ipynb")  # the base class wants one, for the output-file that is dropped here
        super().end()
        if self.fm:
            front = self.nb.cells[0]
            front.source = re.sub(r"^output-file:.*\n", "", front.source, flags=re.M)


class Filter(FilterDefaults):
    def base_procs(self):
        return [Frontmatter if p is FrontmatterProc else p for p in super().base_procs()]


def split_title(nb):
    """Title and description get a cell of their own: nbdev makes front matter of the whole first cell and drops the rest."""
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown" and (m := re.match(r"(#[ \t][^\n]*\n*(?:>[^\n]*\n*)*)(.*)", cell.source, re.S)):
            cell.source = m[1].strip()
            if m[2].strip():
                nb.cells.insert(i + 1, mk_cell(m[2], "markdown"))
            return


def drop_widgets(nb):
    """A page has no kernel: what an output shows beside its widget stays, and nothing is loaded to draw the widget."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            out.get("data", {}).pop(VIEW, None)


def local_links(text):
    """Links to this package's own pages become links to the notebooks, which Quarto resolves; a member is shown with its class."""
    cfg = get_config()
    base = re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/")
    pages = {re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem.lower()): p.name for p in Path(".").glob("*.ipynb")}

    def local(m):
        return f"{pages[m[1]]}{(m[2] or '').split('.')[0]}" if m[1] in pages else m[0]

    return re.sub(base + r"(\w+)\.html(#[\w.]+)?", local, text)


def process(text):
    """A notebook as Quarto should see it; run in the notebook's folder."""
    with contextlib.redirect_stdout(sys.stderr):
        nb = dict2nb(loads(text))
        split_title(nb)
        Filter()(nb)
        drop_widgets(nb)  # after nbdev, which adds widget state to every page
        return local_links(nb2str(nb))


if __name__ == "__main__":
    sys.stdout.write(process(sys.stdin.read()))
