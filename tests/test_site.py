"""What can be known of the site without building it: pages, links, names in backticks, figures, and what
they load.

Every notebook passes the filter that the build runs; Quarto itself is needed only to build.
"""

import ast
import builtins
import functools
import importlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(NBS.glob("[0-9]*.ipynb"))
SITE = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def cells(nb, kind):
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == kind]


@functools.cache
def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


ALL = """
import json, pathlib, sys, traceback
sys.path.insert(0, "../tools")
from nbdev_quarto_filter import process
for name in sys.argv[1:]:
    try: out = process(pathlib.Path(name).read_text(encoding="utf-8"))
    except BaseException: out = json.dumps(dict(error=traceback.format_exc()))
    print(json.dumps(json.loads(out)))
"""


@functools.cache
def all_filtered():
    """Every notebook as Quarto gets it, from one process: PyTorch is imported once."""
    r = subprocess.run(
        [sys.executable, "-c", ALL, *(p.name for p in NOTEBOOKS)], cwd=NBS, text=True, capture_output=True
    )
    assert r.returncode == 0, r.stderr[-2000:]
    return dict(zip(NOTEBOOKS, map(json.loads, r.stdout.splitlines()), strict=True))


def filtered(path):
    nb = all_filtered()[path]
    assert "error" not in nb, nb["error"][-2000:]
    return nb


def outputs(nb, kind):
    return [
        "".join(o["data"][kind])
        for c in nb["cells"]
        for o in c.get("outputs", [])
        if kind in o.get("data", {})
    ]


def markdown(path):
    """What of a notebook's page is Markdown: prose, entries, and outputs."""
    return "\n\n".join([*cells(filtered(path), "markdown"), *outputs(filtered(path), "text/markdown")])


@functools.cache
def pages():
    """What Quarto renders: the files that `render` names, without any README.md, which it leaves out."""
    found = [p for pattern in SITE["project"]["render"] for p in sorted(ROOT.glob(pattern))]
    return [p for p in dict.fromkeys(found) if p.name != "README.md"]


@functools.cache
def text_of(path):
    """Markdown of a page, as far as it stands in files: an included file is part of the page that includes
    it.
    """
    text = (
        "\n\n".join(cells(notebook(path), "markdown"))
        if path.suffix == ".ipynb"
        else path.read_text(encoding="utf-8")
    )
    return re.sub(
        r"\{\{< include (\S+) >\}\}", lambda m: (path.parent / m[1]).read_text(encoding="utf-8"), text
    )


def without_code(text):
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@functools.cache
def anchors(path):
    """Ids of a page's headings, as pandoc makes them."""
    text = markdown(path) if path.suffix == ".ipynb" else text_of(path)
    heads = re.findall(r"^#+\s+(.*?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", h.lower()).strip()) for h in heads}


# ---------------------------------------------------------------- the filter


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_filter(path):
    nb = filtered(path)
    text = "\n".join(map("".join, (c["source"] for c in nb["cells"])))
    assert len(nb["cells"]) > 5 and "nbdev_export()" not in text
    assert not [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    # the first cell gives title and description, and what follows them in it stays
    first = cells(notebook(path), "markdown")[0].split("\n\n")
    assert "title:" in "".join(nb["cells"][0]["source"])
    for paragraph in first[2:]:
        assert paragraph.split("\n")[0].split("`")[0][:40] in text, paragraph


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exported_code_is_on_its_page(path):
    """Every line of it, but for imports; and in no fence a link, which a reader would see as it is
    written.
    """
    page = "\n".join(cells(filtered(path), "code"))
    for source in cells(notebook(path), "code"):
        if source.startswith("#| export") and not re.search(r"^(from|import) ", source, re.M):
            gone = [line for line in source.splitlines()[1:] if line.strip() and line not in page]
            assert not gone, gone
    fences = re.findall(r"^```.*?^```", markdown(path), re.M | re.S)
    assert not [f for f in fences if re.search(r"\[`[^`]*`\]\(", f)]


def test_filter_as_quarto_calls_it():
    path = NOTEBOOKS[0]
    r = subprocess.run(
        [sys.executable, "../tools/nbdev_quarto_filter.py"],
        cwd=NBS,
        text=True,
        capture_output=True,
        stdin=path.open(encoding="utf-8"),
    )
    assert r.returncode == 0, r.stderr[-2000:]
    assert [c["source"] for c in json.loads(r.stdout)["cells"]] == [
        c["source"] for c in filtered(path)["cells"]
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_is_loaded_from_elsewhere(path):
    nb = filtered(path)
    assert "widgets" not in nb["metadata"] and not outputs(nb, "application/vnd.jupyter.widget-view+json")
    assert not outputs(nb, "text/html")  # beside one Quarto loads jQuery and require.js
    html = markdown(path)
    assert not re.search(
        r"<script[^>]*\bsrc|<link\b|@import|url\(\s*['\"]?http|\bsrc=['\"]?(https?:)?//|!\[[^\]]*\]\(http",
        html,
    )


def test_site_configuration():
    html = SITE["format"]["html"]
    assert html["html-math-method"] == "mathml"
    for theme in html["theme"].values():  # bootswatch themes load web fonts; ours and the default do not
        assert theme == "default" or "@import" not in (ROOT / theme).read_text() and theme.endswith(".scss")
    assert "http" not in (ROOT / html["css"]).read_text(encoding="utf-8")
    for f in [*SITE["filters"], *(NBS / f for f in SITE["ipynb-filters"])]:
        assert (ROOT / f).is_file()
    assert all(list(ROOT.glob(p)) for p in [*SITE["project"]["render"], *SITE["project"]["resources"]])
    assert SITE["execute"]["enabled"] is False


def test_the_register_is_data():
    """Quarto has a field `history` of its own, and would refuse every entry's."""
    folder = yaml.safe_load((ROOT / "assumptions" / "_metadata.yml").read_text(encoding="utf-8"))
    assert folder["validate-yaml"] is False


def test_every_page_was_built():
    """After `quarto render`, which the workflow runs before this."""
    site = ROOT / SITE["project"]["output-dir"]
    if not site.is_dir():
        pytest.skip("the site is not built: quarto render")
    built = {p: site / p.relative_to(ROOT).with_suffix(".html") for p in pages()}
    gone = [p.name for p, html in built.items() if not (html.is_file() and html.stat().st_size)]
    assert not gone, f"not in {site.name}, run quarto render: {gone}"


def hrefs(node):
    """Every page that navigation names, globs and all."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for n in node:
            yield from hrefs(n)
    elif isinstance(node, dict):
        yield from hrefs(node.get("href", []))
        yield from hrefs(node.get("contents", []))


def test_navigation_reaches_every_page():
    named = [
        p for h in hrefs(SITE["website"]["sidebar"]) for p in sorted(ROOT.glob(h)) if p.name != "README.md"
    ]
    assert sorted(named) == sorted(set(named)) == sorted(pages())
    assert [p for p in named if p in NOTEBOOKS] == NOTEBOOKS
    assert set(hrefs(SITE["website"]["navbar"]["left"])) <= {p.relative_to(ROOT).as_posix() for p in pages()}
    listed = re.findall(
        r"\(nbs/([^)]+\.ipynb)\)", (ROOT / "README.md").read_text(encoding="utf-8").split("## Read on")[1]
    )
    assert listed == [p.name for p in NOTEBOOKS]


# ---------------------------------------------------------------- links


def links():
    """(page, target) of every link and picture in the files, and in what the filter adds to notebooks."""
    for page in pages():
        texts, html = [text_of(page)], [without_code(text_of(page))]
        if page.suffix == ".ipynb":
            texts, html = [*texts, markdown(page)], [*html, *outputs(filtered(page), "text/markdown")]
        targets = [t for text in texts for t in re.findall(r"\]\(([^)\s]+)\)(?!`)", without_code(text))]
        for target in targets + [
            t for text in html for t in re.findall(r"""<[^>]*\bhref=["']([^"']+)["']""", text)
        ]:
            yield page, target


def test_no_dead_link():
    resources = {p for pattern in SITE["project"]["resources"] for p in ROOT.glob(pattern)}
    seen = set(links())
    assert len(seen) > 100
    for page, target in seen:
        if re.match(r"[a-z]+:", target):
            assert not target.startswith("file:") and "mudenet.github.io" not in target, (page.name, target)
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name.replace("README.md", "index.qmd")).resolve() if name else page
        assert to in pages() or to in resources or to.suffix in {".png", ".jpg", ".svg"} and to.is_file(), (
            page.name,
            target,
        )
        assert not anchor or anchor in anchors(to), (page.name, target)


def test_a_name_leads_to_its_definition():
    """What doclinks.lua makes of nbdev's index: each public name has a heading on its notebook's page."""
    from mudenet._modidx import d

    by_module = {re.sub(r"^\d+[a-z]*_", "", p.stem): p for p in NOTEBOOKS}
    for symbols in d["syms"].values():
        for name, (address, _) in symbols.items():
            module, *rest = name.split(".")[1:]
            if rest and not any(r.startswith("_") for r in rest):
                assert address.split("#")[1] in anchors(by_module[module]), name


def pandoc():
    """Pandoc 3, alone or as Quarto brings it; skips where there is neither."""
    for command in (["pandoc"], ["quarto", "pandoc"]):
        if shutil.which(command[0]):
            said = subprocess.run([*command, "--version"], text=True, capture_output=True).stdout
            if (m := re.match(r"pandoc(?:\.exe)? (\d+)", said)) and int(m[1]) >= 3:
                return command
    pytest.skip("no pandoc 3 and no Quarto, which brings one")


def linked(file, *spans):
    """What doclinks.lua makes of spans on the page of a notebook: span → address, or None."""
    text = "\n\n".join(f"`{s}`" for s in spans)
    page = file.with_suffix(".md")  # of a name that tells the page, in a folder of its own
    page.write_text(text, encoding="utf-8")
    out = subprocess.run(
        [*pandoc(), "--lua-filter", "tools/doclinks.lua", "-t", "json", str(page)],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert out.returncode == 0, out.stderr
    first = [b["c"][0] for b in json.loads(out.stdout)["blocks"]]
    return dict(zip(spans, (i["c"][2][0] if i["t"] == "Link" else None for i in first), strict=True))


def test_names_lead_where_they_are_meant_to(tmp_path):
    wanted = {
        "fuse()": "05_inference.ipynb#fuse",
        "Detector": "05_inference.ipynb#detector",
        "Detector.raw": "05_inference.ipynb#detector.raw",
        "Detector.load(path)": "05_inference.ipynb#detector.load",
        "load_config(files=[path])": "11_config.ipynb#load_config",
        "data.image_size": "11_config.ipynb#dataconfig",
        'mudenet.explorer.explore("…")': "28_explorer.ipynb#explore",
        "metrics.au_pro": "17_metrics.ipynb#au_pro",
        "config.DataConfig.image_size": "11_config.ipynb#dataconfig",
        "mudenet.metrics": "17_metrics.ipynb",
        "results_table": "21b_evaluation.ipynb#results_table",
    }
    assert linked(tmp_path / "05_inference", *wanted) == {k: f"/nbs/{v}" for k, v in wanted.items()}
    wanted = {"Run": "/nbs/23_experiments.ipynb#run", "plan()": "/nbs/24_benchmark.ipynb#plan"}
    assert linked(tmp_path / "24_benchmark", *wanted) == wanted
    # words that are folders, splits or values, and names that two modules have
    words = "box", "figure", "train", "plan()", "plan_table", "nothing_of_ours", "a b"
    assert linked(tmp_path / "A-031-resizing", *words) == dict.fromkeys(words)


def test_an_equation_has_its_number_and_a_table_its_box(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("$$a = b \\tag{16}$$\n\n$$c$$\n\n| x |\n|---|\n| y |\n", encoding="utf-8")
    run = [
        *pandoc(),
        "--lua-filter",
        "tools/doclinks.lua",
        "-t",
        "html",
        "--mathml",
        "--wrap=none",
        str(page),
    ]
    html = subprocess.run(run, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert html.count('class="equation"') == 2 and html.count('<span class="number">') == 1
    assert '<span class="number">(16)</span>' in html and "tag{" not in html
    assert '<div class="table-box">\n<table' in html


def test_equations_are_in_what_pandoc_turns_into_mathml():
    """pandoc 3.6 prints a formula with `\\Bigl` as it stands in the source."""
    texts = {p: "\n".join(cells(notebook(p), "markdown")) for p in NOTEBOOKS}
    texts |= {p: p.read_text(encoding="utf-8") for p in (ROOT / "assumptions").glob("*.md")}
    assert [p.name for p, text in texts.items() if re.search(r"\\Bigg?[lr]\b", text)] == []


def test_an_entry_of_the_register_shows_its_facts():
    run = [
        *pandoc(),
        "--lua-filter",
        "tools/doclinks.lua",
        "-t",
        "html",
        "--wrap=none",
        "assumptions/A-002-stem-pool.md",
    ]
    html = subprocess.run(run, cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("<h2")[0]
    for wanted in (
        "open",
        "Figure 2, stem",
        '#modelconfig"><code>model.stem_pool</code></a>',
        "<code>avg</code>",
        "<code>max</code>",
        '<a href="/nbs/results/ablation-A-002-bottle.json">',
        "2026-11-22: taken over as open",
    ):
        assert wanted in html, wanted


# ---------------------------------------------------------------- names in backticks

MODULES = {p.stem for p in (ROOT / "mudenet").glob("[a-z]*.py")}
FOREIGN = {"test_eq", "ColorJitter", "Decoder"}  # fastcore's, torchvision's, the independent reproduction's
SUFFIXES = {"json", "yaml", "csv", "html", "py", "md"}
BUILT = {"mudenet/register/"}  # in the wheel only
OUR_FOLDERS = ("nbs/", "tools/", "tests/", "assumptions/", "mudenet/", "pages/", ".ci/", ".github/")


def spans(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@functools.cache
def known():
    """Every identifier and every word in a string of the package's and the tools' code, and Python's own
    names.
    """
    out = set(dir(builtins))
    for f in [
        *(ROOT / "mudenet").rglob("*.py"),
        *(ROOT / "tools").glob("*.py"),
        ROOT / "setup.py",
        ROOT / "settings.ini",
        *(ROOT / "mudenet" / "configs").glob("*.yaml"),
    ]:
        if f.name != "_modidx.py":
            out |= set(re.findall(r"\w+", f.read_text(encoding="utf-8")))
    for f in ROOT.glob("assumptions/A-*.md"):  # values that another package knows, checked by notebook 27
        out |= set(re.findall(r"\w+", f.read_text(encoding="utf-8").split("---")[1]))
    for f in (NBS / "results").rglob("*.json"):  # runs are called by their records' names
        out |= set(re.findall(r"\w+", f.stem))
    return out | FOREIGN


@functools.cache
def names_in(path):
    """Identifiers of a notebook's own code, comments left out."""
    found = set()
    for source in cells(notebook(path), "code"):
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        except (tokenize.TokenError, SyntaxError):
            continue
        found |= {w for t in tokens if t.type != tokenize.COMMENT for w in re.findall(r"\w+", t.string)}
    return found


@functools.cache
def options():
    """Every option of every command."""
    from mudenet.cli import COMMANDS

    return {
        o.lstrip("-") for _, make, _ in COMMANDS.values() for a in make()._actions for o in a.option_strings
    }


@functools.cache
def scripts():
    """What tools and tests define."""
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").glob("*.py"), ROOT / "conftest.py"]
    found = (
        n.name
        for f in files
        for n in ast.walk(ast.parse(f.read_text(encoding="utf-8")))
        if hasattr(n, "name")
    )
    return {n for n in found if isinstance(n, str)}


@functools.cache
def defined():
    """Name → the objects of that name in the package's modules, what they import included."""
    out = {}
    for module in sorted(MODULES):
        for name, value in vars(importlib.import_module(f"mudenet.{module}")).items():
            out.setdefault(name, []).append(value)
    return out


@functools.cache
def members(owner):
    """Attributes of a class or module; of a class of ours also its fields, and what its methods keep in
    `self`.
    """
    found = set(dir(owner))
    for c in getattr(owner, "__mro__", ()):
        if c.__module__.startswith("mudenet."):
            found |= set(c.__annotations__) | set(re.findall(r"\bself\.(\w+)", inspect.getsource(c)))
    return found


@functools.cache
def ours():
    """What a bare name may be: a definition of the package or of a script, or a member of one of our
    classes.
    """
    classes = {
        v
        for vs in defined().values()
        for v in vs
        if isinstance(v, type) and v.__module__.startswith("mudenet.")
    }
    return (
        set(defined()) | scripts() | set(dir(builtins)) | FOREIGN | {m for c in classes for m in members(c)}
    )


def resolve(parts):
    """The object of a dotted name below mudenet; a dataclass's or a named tuple's field is found by its
    annotation.
    """
    found = importlib.import_module(f"mudenet.{parts[0]}")
    for part in parts[1:]:
        if part not in getattr(found, "__annotations__", {}):
            found = getattr(found, part)


def wrong(span, page):
    """What is wrong with a name in backticks, if it looks like one of ours."""
    import mudenet.config as config

    groups = {n.split(".")[0] for n in config.field_names() if "." in n}
    if span.startswith("mudenet "):
        from mudenet.cli import COMMANDS

        command = span.split()[1]
        if command not in COMMANDS and not command.startswith("-") and command != "COMMAND":
            return "no such command"
    if span.startswith(("mudenet ", "--")):
        gone = [o for o in re.findall(r"--([a-z][\w.-]*)", span) if o not in options()]
        return f"no such option: {gone}" if gone else None
    if span.startswith(OUR_FOLDERS) and span not in BUILT and not re.search(r"[*…<>{}]|NNN|NN_", span):
        return None if (ROOT / span.split("#")[0].split("::")[0]).exists() else "no such file"
    name = re.sub(r"\(.*\)$", "", span.split("=")[0])
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) or name.split(".")[-1] in SUFFIXES:
        return None
    parts = name.removeprefix("mudenet.").split(".") if name.startswith("mudenet.") else name.split(".")
    if len(parts) > 1 and parts[0] in groups:
        return (
            None
            if name in config.field_names() or hasattr(getattr(config.Config(), parts[0]), parts[1])
            else "no such field"
        )
    if name.startswith("mudenet.") or (len(parts) > 1 and parts[0] in MODULES):
        try:
            resolve(parts)
        except (AttributeError, ImportError):
            return "no such name"
        if name.startswith("mudenet.") and len(parts) == 1:
            return None  # a module
    here = names_in(page) if page.suffix == ".ipynb" else set()
    if len(parts) > 1:
        owners = [o for o in defined().get(parts[0], ()) if isinstance(o, (type, types.ModuleType))]
        if owners and not any(parts[1] in members(o) for o in owners):
            return f"{parts[0]} has no {parts[1]}"
        return (
            "nothing of that name"
            if not owners and parts[0][0].isupper() and parts[0] not in here | FOREIGN
            else None
        )
    if ("(" in span or re.match("[A-Z][a-z]", name)) and name not in ours() | here:
        return "nothing of that name"
    return None if "_" not in name.strip("_") or name in known() | here else "nothing of that name"


def test_names_in_backticks_resolve():
    count, faults = 0, []
    for page in pages():
        for span in spans(page):
            count += 1
            if why := wrong(span, page):
                faults.append(f"{page.relative_to(ROOT)}: `{span}`: {why}")
    assert count > 500 and not faults, "\n".join(sorted(set(faults)))


@pytest.mark.parametrize(
    "span",
    [
        "mudenet trian",
        "mudenet train --trian.epochs 3",
        "train.epocs",
        "inference.Detecter",
        "mudenet.metric",
        "rawscores_of",
        "MuDeNetwork",
        "nbs/99_nothing.ipynb",
        "metrics.au_prro()",
        "Detecter",
        "Detector.predictt",
        "Detector.lode(path)",
        "RawScores.lables",
        "InferenceConfig.smothing",
        "evalute(record)",
        "fus()",
        "Detecter.load(path)",
        "np.quantil",
    ],
)
def test_a_wrong_name_would_be_found(span):
    assert wrong(span, ROOT / "README.md")


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_and_size(path):
    for c in notebook(path)["cells"]:
        kinds = {k for o in c.get("outputs", []) for k in o.get("data", {})}
        html = "".join(
            "".join(o["data"]["text/html"]) for o in c.get("outputs", []) if "text/html" in o.get("data", {})
        )
        if kinds & {"image/png", "image/jpeg", "image/svg+xml"} or "<img" in html or "<svg" in html:
            source = "".join(c["source"])
            assert re.search(r"^#\| fig-alt: \".+\"$", source, re.M) and "#| fig-cap:" in source, (
                path.name,
                source[:80],
            )
        assert all(re.search(r'alt="[^"]+"', i) for i in re.findall(r"<img[^>]*>", html)), path.name
        assert all("aria-label=" in s for s in re.findall(r"<svg[^>]*>", html)), path.name
    assert path.stat().st_size < 264_000, f"{path.name} has {path.stat().st_size // 1000} KB"


def test_pictures_of_pages_have_a_text():
    for page in pages():
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", without_code(text_of(page))):
            assert len(alt) > 10, (page.name, target)


def test_citation_names_this_version():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = re.search(r"^version = (.+)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert (
        str(cff["version"])
        == version
        == re.search(r"version = \{(.+?)\}", (ROOT / "pages" / "cite.md").read_text())[1]
    )
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    assert cff["preferred-citation"]["doi"] in text_of(ROOT / "pages" / "cite.md")
