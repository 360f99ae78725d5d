"""Spoil what the program reads, and kill it while it writes: a record of what was tried, refused, and what
failed.

    python tools/campaign.py WORK                  # hours at leisure (nice); goes on where it was interrupted
    python tools/campaign.py WORK --share 0.01     # a look at it

WORK is a folder for inputs, results and the journal. A spoilt input must be refused in words, or do no
harm: no traceback, no hang, nothing half-written. A command that was killed must leave whole files only,
and end as undisturbed when it is given again. Writes nbs/results/campaign.json when all of it is done, and
ends with 1 where something failed. Needs fork, so Linux or macOS."""

import argparse
import copy
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mudenet import distillation, evaluation, inference, loop, report, synthetic, teachers, watch  # noqa: F401 (before the forks)
from mudenet.assumptions import find_register, read_register
from mudenet.cli import main, make_parser
from mudenet.cli_options import configure
from mudenet.core import load_tensors, new_record, save_tensors, write_json
from mudenet.terminal import ENDS, run_command

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tiny options are theirs

from tiny import TINY

RESULT = ROOT / "nbs" / "results" / "campaign.json"
SHORT = [
    *TINY,
    "--distill.steps=4",
    "--train.steps=6",
    "--preset=paper",
    "--distill.save_minutes=0.0001",
    "--train.save_minutes=0.0001",
]
SECONDS = 120  # after which something hangs
SPOILT = dict(image=600, mask=250, yaml=500, checkpoint=300, metadata=200, state=150, register=200)
KILLED = dict(
    train=50, distill=15, demo=10, evaluate=30, predict=50, draw=15, watch=10, benchmark=10, export=5, add=5
)
VOLATILE = {"made", "environment", "note", "seconds", "time"}  # in records and journals


def forked(work, log):
    """Start work in a process of its own, with all that it says in a file."""
    if child := os.fork():
        return child
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        for s in ENDS:
            signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)
        signal.alarm(SECONDS)
        code = work()
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child):
    """How a process ended: its exit code, or minus the signal."""
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def said(log):
    """What it said."""
    return log.read_text(errors="replace") if log.exists() else ""


# Inputs


def part(k, bad=False):
    """A picture of a part, with a mark where it is bad; and the mark's mask."""
    draw = np.random.default_rng([k, bad])
    pixels, mask = (
        np.full((48, 60, 3), 120, np.uint8) + draw.integers(0, 12, (48, 60, 3), np.uint8),
        np.zeros((48, 60), np.uint8),
    )
    if bad:
        pixels[10 + k : 18 + k, 20:30], mask[10 + k : 18 + k, 20:30] = (250, 20, 20), 255
    return pixels, mask


def put(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def half_way(data, out):
    """Train, and end in the middle of stage 2: three of its steps after the four of stage 1."""
    get, calls = loop.Batches.__getitem__, iter(range(1, 100))

    def getting(self, k):
        if next(calls) == 4 + 3:
            signal.raise_signal(signal.SIGTERM)
        return get(self, k)

    loop.Batches.__getitem__ = getting
    return main(["train", "--root", str(data), "--out", str(out), *SHORT])


def prepare(work):
    """Images, a detector, a state in the middle of training, a teacher."""
    data = work / "part"
    for k in range(8):
        put(data / f"train/good/{k}.png", part(k)[0])
    for k in range(3):
        put(data / f"test/good/{k}.png", part(20 + k)[0])
        put(data / f"test/hole/{k}.png", part(k, True)[0])
        put(data / f"ground_truth/hole/{k}_mask.png", part(k, True)[1])
    for k, suffix in enumerate(("png", "jpg", "bmp", "tif", "webp")):
        put(work / f"formats/{k}.{suffix}", part(k)[0])
    assert main(["train", "--root", str(data), "--out", str(work / "runs"), *SHORT]) == 0
    shutil.copytree(next((work / "runs").rglob("detector.safetensors")).parent, work / "run")
    assert ended(forked(lambda: half_way(data, work / "half"), work / "log.txt")) == 143
    assert (
        main(
            [
                "distill",
                "--distill.images=folder",
                f"--distill.folder={data}",
                "--out",
                str(work / "teachers"),
                *SHORT,
            ]
        )
        == 0
    )
    shutil.copy(next((work / "teachers").rglob("teacher.safetensors")), work / "general.safetensors")
    shutil.copytree(find_register(), work / "register")


# Spoiling


def spoil_bytes(raw, draw):
    """Some bytes otherwise, missing, twice or added."""
    raw, at, n = bytearray(raw), draw.randrange(len(raw)), draw.choice((1, 1, 2, 8, 64, 500))
    how = draw.choice(("bit", "bit", "bytes", "cut", "zero", "twice", "add", "end", "head"))
    if how == "bit":
        raw[at] ^= 1 << draw.randrange(8)
    elif how == "bytes":
        raw[at : at + n] = draw.randbytes(n)
    elif how == "cut":
        del raw[at : at + n]
    elif how == "zero":
        raw[at : at + n] = bytes(len(raw[at : at + n]))
    elif how == "twice":
        raw[at:at] = raw[at : at + n]
    elif how == "add":
        raw[at:at] = draw.randbytes(n)
    elif how == "end":
        del raw[at:]
    else:
        raw[:64] = spoil_bytes(bytes(raw[:64]), draw) if len(raw) > 64 and n > 1 else draw.randbytes(64)
    return bytes(raw)


WORDS = [
    "",
    "null",
    "~",
    "[]",
    "{}",
    "[1, [2]]",
    "{a: {b: 1}}",
    ".nan",
    ".inf",
    "-.inf",
    "-1",
    "0",
    "1e400",
    "9" * 400,
    "9" * 5000,
    "&a [*a]",
    "*x",
    "&x 1",
    "!!python/object:os.system x",
    "!!binary xx",
    "!!set {a}",
    "2001-99-99",
    "190:20:30",
    "'",
    '"\\0"',
    '"\\x1b[2J"',
    "\t",
    "- a",
    "? a",
    "x: y: z",
    "../../x",
    "/dev/zero",
    "é",
    "\u202e",
    "true",
    "eleven",
    "[" * 300,
    "A" * 5000,
    "| \n  x",
    "%",
    "@",
    "`",
    "<<: {seed: 1}",
]


def spoil_text(text, draw):
    """A line otherwise: another value, missing, twice, deeper; or bytes otherwise."""
    lines = text.splitlines()
    at, how = (
        draw.randrange(len(lines)),
        draw.choice(("value", "value", "value", "value", "line", "twice", "deeper", "bytes")),
    )
    if how == "bytes":
        return spoil_bytes(text.encode(), draw)
    if how == "value":
        lines[at] = lines[at].partition(":")[0] + ": " + draw.choice(WORDS)
    elif how == "line":
        del lines[at]
    elif how == "twice":
        lines.insert(at, lines[at])
    else:
        lines[at] = " " * draw.randrange(1, 5) + lines[at]
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


ANYTHING = [
    None,
    -1,
    0,
    1.5,
    10**40,
    True,
    "",
    "eleven",
    "../x",
    "\0",
    [],
    [1],
    {},
    {"a": 1},
    {"a": {"b": [None]}},
    "A" * 5000,
]


def spoil_tree(tree, draw):
    """Any place of a tree of plain values: another value, missing, or one more."""
    tree, here, path = copy.deepcopy(tree), None, []
    here = tree
    while isinstance(here, dict) and here and (not path or draw.random() < 0.8):
        path.append(draw.choice(sorted(here)))
        above, here = here, here[path[-1]]
    how = draw.choice(("value", "value", "value", "missing", "more"))
    if how == "missing":
        del above[path[-1]]
    else:
        above[path[-1] if how == "value" else "more"] = draw.choice(ANYTHING)
    return tree


def spoil(kind, work, out, draw):
    """Write a spoilt input to `out`; gives the command that reads it."""
    if kind == "image":
        source = draw.choice(sorted((work / "formats").iterdir()))
        (out / "images").mkdir()
        (out / "images" / source.name).write_bytes(spoil_bytes(source.read_bytes(), draw))
        return lambda: main(
            ["predict", str(work / "run"), str(out / "images"), "--out", str(out / "found"), "--device=cpu"]
        )
    if kind == "mask":
        shutil.copytree(work / "part", out / "part")
        mask = out / f"part/ground_truth/hole/{draw.randrange(3)}_mask.png"
        mask.write_bytes(spoil_bytes(mask.read_bytes(), draw))
        return lambda: main(["data", "check", str(out / "part")])
    if kind == "yaml":
        (out / "mine.yaml").write_bytes(spoil_text((work / "run/config.yaml").read_text(), draw))
        given = dict(root=str(work / "part"), out=str(out / "runs"), device="cpu")
        return lambda: run_command([], lambda: print(configure(given, str(out / "mine.yaml"))))
    if kind in ("checkpoint", "metadata"):
        file = out / "detector.safetensors"
        tensors, meta = load_tensors(work / "run/detector.safetensors", "detector")
        if kind == "checkpoint":
            file.write_bytes(spoil_bytes((work / "run/detector.safetensors").read_bytes(), draw))
        else:
            meta = {k: v for k, v in meta.items() if k not in ("sha256", "kind", "schema")}
            save_tensors(file, tensors, "detector", spoil_tree(meta, draw))
        return lambda: main(
            ["predict", str(file), str(work / "formats/0.png"), "--out", str(out / "found"), "--device=cpu"]
        )
    if kind == "state":
        shutil.copytree(work / "half", out / "half")
        state = next((out / "half").rglob("train.state.safetensors"))
        if draw.random() < 0.5:
            state.write_bytes(spoil_bytes(state.read_bytes(), draw))
        else:
            tensors, meta = load_tensors(state, "state")
            meta = {k: v for k, v in meta.items() if k not in ("sha256", "kind", "schema")}
            save_tensors(state, tensors, "state", spoil_tree(meta, draw))
        return lambda: main(["train", "--root", str(work / "part"), "--out", str(out / "half"), *SHORT])
    shutil.copytree(work / "register", out / "register")
    entry = draw.choice(sorted((out / "register").glob("A-*.md")))
    entry.write_bytes(spoil_text(entry.read_text(), draw))
    return lambda: run_command([], lambda: print(len(read_register(out / "register"))))


def fault_of(kind, work, out, code, text):
    """Why an attempt failed; nothing where it went as it should."""
    if code == -signal.SIGALRM:
        return "hangs"
    if code not in (0, 2):
        return f"ends with {code}"
    if "Traceback" in text or code == 2 and "mudenet: error: " not in text:
        return "no message"
    if "\x1b" in text or "\0" in text:
        return "writes control characters"
    if code == 2 and len(text.splitlines()) > 12:
        return "says too much"
    if left := [p.name for p in out.rglob("*.part")] + [p.name for p in out.rglob(".mudenet.lock")]:
        return f"leaves {left[0]}"
    if kind == "checkpoint" and code == 0:
        one, other = (load_tensors(p / "detector.safetensors", "detector") for p in (work / "run", out))
        if one[1] != other[1] or any(not torch.equal(v, other[0][k]) for k, v in one[0].items()):
            return "accepts what is damaged"
    return ""


def spoilt(kind, k, work):
    """One attempt: refused, harmless, or why it failed."""
    draw, out = random.Random(f"{kind} {k}"), work / "now"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = spoil(kind, work, out, draw)
    code = ended(forked(command, work / "log.txt"))
    text = said(work / "log.txt")
    fault = fault_of(kind, work, out, code, text)
    return dict(
        outcome="failed" if fault else "refused" if code else "harmless",
        why=fault and f"{fault}: {text[-300:]}",
    )


# Killing


def command_of(what, work, out):
    """A command that writes to `out`."""
    data, run = str(work / "part"), str(work / "run")
    line = ["--data.holdout=0.2", *SHORT]
    if what == "draw":
        return lambda: run_command(
            [],
            lambda: (
                synthetic.write_product_line(
                    out / "line", size=64, train=6, validation=2, good=2, structural=2, logical=2
                )
                and None
            ),
        )
    if what == "add":
        args = [
            "teachers",
            "add",
            "mine",
            str(work / "general.safetensors"),
            "--corpus",
            "parts",
            "--licence",
            "none",
        ]
        return lambda: os.environ.__setitem__("MUDENET_TEACHERS", str(out)) or main(args)
    args = dict(
        train=["train", "--root", data, "--out", str(out), *SHORT],
        distill=["distill", "--root", data, "--out", str(out), *SHORT],
        demo=["demo", "--root", data, "--dataset=folder", "--category=part", "--out", str(out), *SHORT],
        evaluate=["evaluate", run, "--out", str(out)],
        predict=["predict", run, data, "--out", str(out), "--device=cpu"],
        watch=["watch", run, data, "--out", str(out), "--once", "--settle=0.01"],
        benchmark=["benchmark", "--roots", data, "--seeds=1", "--out", str(out), *line],
        export=["export", run, "--to=pt2", "--out", str(out / "detector.pt2")],
    )[what]
    return lambda: main(args)


def plain(value):
    """A record's values without those of one call."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    return [plain(v) for v in value] if isinstance(value, list) else value


def content(out):
    """Name → what a file holds, apart from times. Raises what a reader raises where it is not whole."""
    found = {}
    for p in sorted(out.rglob("*")):
        if (
            not p.is_file()
            or p.name == ".mudenet.lock"
            or any(a.name.endswith(".part") for a in (p, *p.parents))
        ):
            continue
        raw, name = p.read_bytes(), p.relative_to(out).as_posix()
        if p.suffix == ".json":
            value = plain(json.loads(raw))
        elif p.suffix == ".jsonl":
            whole = raw[: raw.rfind(b"\n") + 1].splitlines()
            value = sorted(json.dumps(plain(json.loads(row))["image"]) for row in whole)
        elif p.suffix == ".safetensors":
            kind = {
                "detector.safetensors": "detector",
                "teacher.safetensors": "teacher",
                "mine.safetensors": "teacher",
            }
            load_tensors(p, kind.get(p.name, "state"))
            value = hashlib.sha256(raw).hexdigest()
        elif p.suffix in (".png", ".tiff"):
            Image.open(io.BytesIO(raw)).load()
            value = hashlib.sha256(raw).hexdigest()
        elif p.suffix == ".csv":
            rows = list(csv.reader(raw.decode().splitlines()))
            value = (
                [row[:-1] for row in rows]
                if p.name in ("train.csv", "distill.csv", "results.csv", "benchmark.csv")
                else rows
            )
            value = sorted(value) if p.name == "results.csv" else value
        else:
            value = None
        found[name] = value
    return found


def compare(what, out, undisturbed):
    """Why the result of a command that was killed and given again is another one; nothing where it is the
    same.
    """
    if left := [p.relative_to(out).as_posix() for p in out.rglob("*.part")] + [
        p.name for p in out.rglob(".mudenet.lock")
    ]:
        return f"leaves {left[0]}"
    now = {k: v for k, v in content(out).items() if ".state." not in k}
    for name in undisturbed.keys() | now.keys():
        if name not in now or name not in undisturbed:
            return f"{name} is {'missing' if name not in now else 'left'}"
        if what in ("benchmark", "export") and name.endswith((".json", ".md", ".csv")):
            continue  # times and names of paths
        if now[name] != undisturbed[name]:
            return f"{name} differs"
    return ""


def undisturbed(what, work):
    """What the command leaves where nobody disturbs it, and the seconds that it takes."""
    out = work / "undisturbed" / what
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.monotonic()
    code = ended(forked(command_of(what, work, out), work / "log.txt"))
    assert code == 0, f"{what}: {said(work / 'log.txt')}"
    return {k: v for k, v in content(out).items() if ".state." not in k}, time.monotonic() - began


def killed(what, k, work, whole, seconds):
    """One kill at a random moment, and the same command again."""
    draw, out = random.Random(f"{what} {k}"), work / "undisturbed" / what
    kept = work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    out.rename(kept)  # paths are part of some files: the same folder is used again
    try:
        code, signum = (
            0,
            draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)),
        )
        while not code:  # it had ended before: sooner, then
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            child, moment = forked(command_of(what, work, out), work / "log.txt"), draw.uniform(0, seconds)
            time.sleep(moment)
            os.kill(child, signum)
            code, text, seconds = ended(child), said(work / "log.txt"), max(moment, 0.05)
        fault = "" if code in (-signum, 128 + signum) else f"ends with {code}"
        try:
            content(out)
        except Exception as e:
            fault = f"half-written: {e!r}"
        again = ended(forked(command_of(what, work, out), work / "log.txt"))
        text += said(work / "log.txt")
        if again:
            fault = fault or f"ends with {again} when it is given again"
        fault = fault or compare(what, out, whole)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        kept.rename(out)
    return dict(
        outcome="failed" if fault else "whole",
        signal=signal.Signals(signum).name,
        why=fault and f"{fault}: {text[-300:]}",
    )


def summary(rows, names):
    """Name → how many attempts ended how."""
    ends = {n: [r["outcome"] for r in rows if r["what"] == n] for n in names}
    return {n: dict(tried=len(e), **Counter(e)) for n, e in ends.items()}


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of all attempts")
    parser.add_argument("--only", nargs="*", help="kinds of inputs, or commands")
    parser.add_argument("--record", action="store_true", help="write the record of what was tried so far")
    parser.add_argument("--note", default="", help="a sentence for the record")
    return parser.parse_args()


def run():
    args = parse()
    work = args.work.resolve()
    torch.set_num_threads(1)
    for name in (
        "train",
        "distill",
        "demo",
        "evaluate",
        "predict",
        "watch",
        "benchmark",
        "export",
        "teachers",
        "data",
    ):
        make_parser(name)
    if not (work / "register").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        prepare(work)
    journal = work / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(r["what"], r["k"]) for r in rows}

    def note(what, k, found):
        rows.append(dict(what=what, k=k, **found))
        with journal.open("a") as f:
            f.write(json.dumps(rows[-1]) + "\n")
        if found["outcome"] == "failed":
            print(f"{what} {k}: {found['why']}", flush=True)

    def write():
        failed = [f"{r['what']} {r['k']}: {r['why']}" for r in rows if r["outcome"] == "failed"]
        ends = dict(spoilt=summary(rows, SPOILT), killed=summary(rows, KILLED), failures=failed)
        write_json(
            RESULT, new_record("campaign", note=args.note, made=dict(date=date.today().isoformat()), **ends)
        )

    if args.record:
        return write()
    for kind, n in SPOILT.items():
        if not args.only or kind in args.only:
            for k in range(round(n * args.share)):
                if (kind, k) not in done:
                    note(kind, k, spoilt(kind, k, work))
    for what, n in KILLED.items():
        todo = [k for k in range(max(1, round(n * args.share))) if (what, k) not in done]
        if todo and (not args.only or what in args.only):
            whole, seconds = undisturbed(what, work)
            for k in todo:
                note(what, k, killed(what, k, work, whole, seconds))
    failed = sum(r["outcome"] == "failed" for r in rows)
    print(f"{len(rows)} attempts, {failed} failed")
    if args.share == 1 and not args.only:
        write()
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(run())
