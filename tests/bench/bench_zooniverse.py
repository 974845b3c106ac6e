"""Classifications a second of a raw export, and the memory it takes, beside pandas with json.loads in the same run.

A simulated campaign is written as exports with every trap in it, read back by a process of its own (so that its memory
is its own), and compared with what was drawn: python tests/bench/bench_zooniverse.py --galaxies 25000 75000"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def peak() -> float:
    "Largest resident memory of this process so far, MB; Linux hands `ru_maxrss` on to children, its `VmHWM` not"
    import resource
    status = Path("/proc/self/status")
    if status.exists(): return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def write(folder: Path, galaxies: int) -> None:
    "A campaign of the dr5 tree with 40 volunteers a galaxy; the truth beside it"
    from gz_nbdev.schema import get_schema
    from gz_nbdev.simulate import draw_galaxies, draw_votes, vote_model
    from gz_nbdev.zooniverse import write_exports
    schema = get_schema("dr5")
    _, drawn = draw_votes(*vote_model(draw_galaxies(galaxies, seed=1), schema), schema, volunteers=40, seed=2)
    votes = pd.DataFrame(drawn, columns=schema.columns)
    write_exports(votes, schema, folder).to_parquet(folder / "truth.parquet")
    votes.to_parquet(folder / "drawn.parquet")


def ours(folder: Path) -> dict:
    "Read it, and compare with the votes that were drawn, vote for vote"
    from gz_nbdev.zooniverse import export_report, read_classifications, read_workflow
    workflow = read_workflow(folder / "workflows.csv", workflow="6122", names="dr5")
    before, start = peak(), time.perf_counter()
    table = read_classifications(folder / "classifications.csv", workflow, progress=False)
    seconds, memory = time.perf_counter() - start, peak()
    truth, drawn = pd.read_parquet(folder / "truth.parquet"), pd.read_parquet(folder / "drawn.parquet")
    table = table.set_index("subject_id").loc[truth.subject_id]
    same = all((table[c].to_numpy() == truth[c].to_numpy()).all() for c in truth if c in table)
    exact = bool(same and (table[drawn.columns].to_numpy() == drawn.to_numpy()).all())
    report = str(export_report(table.reset_index()))
    return dict(seconds=seconds, before=before, memory=memory, exact=exact, report=report)


def theirs(folder: Path) -> dict:
    "The usual way: pandas in chunks, json.loads for each cell, a set of (person, subject)"
    def slug(text): return re.sub(r"[\W_]+", "-", re.sub(r"!\[[^\]]*\]\([^)]*\)\s*", "", text).lower()).strip("-")
    before, start, counts, met = peak(), time.perf_counter(), {}, set()
    for chunk in pd.read_csv(folder / "classifications.csv", dtype=str, keep_default_na=False, chunksize=20_000):
        chunk = chunk[(chunk.workflow_id == "6122") & chunk.workflow_version.str.startswith("28.")]
        for row in chunk[chunk.gold_standard == ""].itertuples():
            person = row.user_id or row.user_name or row.user_ip
            if not json.loads(row.metadata)["live_project"] or (person, row.subject_ids) in met: continue
            answers = [answer for answer in json.loads(row.annotations) if answer["value"] is not None]
            if not answers: continue
            met.add((person, row.subject_ids))
            json.loads(row.subject_data)[row.subject_ids]   # for the name of the galaxy
            for task, value in {answer["task"]: answer["value"] for answer in answers}.items():
                for text in value if isinstance(value, list) else [value]:
                    key = row.subject_ids, task, slug(text)
                    counts[key] = counts.get(key, 0) + 1
    return dict(seconds=time.perf_counter() - start, before=before, memory=peak(), votes=sum(counts.values()))


def run(what: str, folder: Path) -> dict:
    "One of the functions above in a process of its own"
    command = [sys.executable, __file__, "--only", what, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main():
    "Print a line for each size and reader"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--galaxies", type=int, nargs="+", default=[25_000], help="each is seen by 40 people")
    parser.add_argument("--no-peer", action="store_true", help="leave pandas out, which takes several times as long")
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the exports here, or take them from here")
    args = parser.parse_args()
    if args.only: return print(json.dumps({"ours": ours, "theirs": theirs}[args.only](args.folder)))
    memory = []
    for galaxies in args.galaxies:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.folder or temporary) / str(galaxies)
            if not (folder / "truth.parquet").exists(): write(folder, galaxies)
            rows = galaxies * 40 + int(np.ceil([.02 * galaxies * 40, *[.01 * galaxies * 40] * 3, .005 * galaxies * 40,
                                                .002 * galaxies * 40]).sum())
            read = run("ours", folder)
            memory.append((rows, read["memory"]))
            print(f"gz_nbdev: {rows / read['seconds']:,.0f} classifications/s, {rows:,} in {read['seconds']:.1f} s, "
                  f"{(folder / 'classifications.csv').stat().st_size / 1e9:.1f} GB; peak {read['memory']:.0f} MB "
                  f"({read['before']:.0f} before); votes {'exact' if read['exact'] else 'WRONG'}", flush=True)
            if not args.no_peer:
                peer = run("theirs", folder)
                print(f"pandas:   {rows / peer['seconds']:,.0f} classifications/s, peak {peer['memory']:.0f} MB; "
                      f"ratio {peer['seconds'] / read['seconds']:.1f}", flush=True)
    if len(memory) > 1:
        (few, small), (many, large) = memory[0], memory[-1]
        each = (large - small) * 1e6 / (many - few)
        print(f"memory grows by {each:.0f} bytes a classification: 10 million take "
              f"{small + each * (1e7 - few) / 1e6:.0f} MB")


if __name__ == "__main__": main()
