"""List to verified dataset, side by side with img2dataset 1.47.0 on the same cores and the same photos.

    python tests/benchmarks/download.py [--case http https bad] [--repeat 3] [--images 9000] [--ours-only]

img2dataset lives in an environment of its own (.peers/img2dataset, made when missing) and runs at the better of 64 and
256 threads. Ours runs as users run it: `jobs.build`, then `jobs.verify`, with every default guard on. The server
shares the cores with both and counts: a run that did not ask for every URL is an error, not a number.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from photo_web import PhotoServer, Served, Web
from processes import Ran, run

REPOSITORY = Path(__file__).parents[2]
PEER = REPOSITORY / ".peers" / "img2dataset"
SYSTEM_CAS = Path("/etc/ssl/certs/ca-certificates.crt")
CORES = 2
CASES = {"http": {}, "https": {"tls": True}, "bad": {"bad": True}}
AT_LEAST = {"http": (1.3, 1.6), "https": (4.0, 5.0), "bad": (3.0, 4.0)}
"""case → least ratio of (whole process, steady state)."""


@dataclass
class Result:
    side: str
    ran: Ran
    served: Served
    seconds: float
    steady: float
    """Outcomes a second between the first and the last."""
    middle: float
    """Outcomes a second between the 5th and the 95th percentile; img2dataset's are the server's times."""
    ok: int
    detail: str = ""
    verify_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the whole side and of the server: what is left of a ratio when neighbours use the cores."""
        return sum(self.ran.cpu_s.values()) + self.verify_cpu_s + self.served.cpu_s


def main() -> int:
    flags = _flags()
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:CORES])
    print(f"{len(available)} cores, {CORES} used; load {os.getloadavg()[0]:.2f}; {flags.images} photos, "
          f"{flags.hosts} hosts, median of {flags.repeat}", flush=True)  # fmt: skip
    if not flags.ours_only:
        make_peer()
    summary = []
    for case in flags.case:
        web = Web(flags.images, flags.hosts, **CASES[case])
        with PhotoServer(web) as server:
            theirs = [] if flags.ours_only else measure_theirs(web, server, flags.repeat, flags.threads)
            ours = [] if flags.theirs_only else [measure_ours(web, server) for _ in range(flags.repeat)]
        summary.append(_compare(case, ours, theirs))
    print("\n| case | ours s | img2dataset s | whole | at least | ours img/s | img2dataset img/s | steady | at least |"
          " ours, middle 90% | steady by it | ours CPU s | img2dataset CPU s |\n|" + " --- |" * 13)  # fmt: skip
    print("\n".join(summary))
    return 0


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--hosts", type=int, default=500)
    parser.add_argument("--threads", type=int, nargs="+", default=[64, 256], help="img2dataset's thread_count to try")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--ours-only", action="store_true")
    only.add_argument("--theirs-only", action="store_true")
    return parser.parse_args()


def make_peer() -> None:
    """img2dataset in a virtual environment of its own, made once."""
    if (PEER / "bin" / "img2dataset").exists():
        return
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    subprocess.run([PEER / "bin" / "pip", "install", "-q", "img2dataset==1.47.0"], check=True)
    print(f"img2dataset's environment made in {time.perf_counter() - start:.0f} s", flush=True)


def write_list(server: PhotoServer, path: Path) -> None:
    urls = server.urls()
    captions = [f"a photo, the {number}th of a list" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)


def measure_theirs(web: Web, server: PhotoServer, repeat: int, threads: list[int]) -> list[Result]:
    """Each thread count once, then the better one until it has `repeat` results."""
    tried = {count: [run_theirs(web, server, count)] for count in threads}
    best = min(tried.values(), key=lambda results: results[0].seconds)
    count = next(count for count, results in tried.items() if results is best)
    while len(best) < repeat:
        best.append(run_theirs(web, server, count))
    return best


def run_theirs(web: Web, server: PhotoServer, threads: int) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_list(server, folder / "list.parquet")
        out = folder / "out"
        bundle = folder / "bundle.pem"
        env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        if web.tls:
            bundle.write_text(SYSTEM_CAS.read_text() + "\n" + server.ca_file.read_text())
            env["SSL_CERT_FILE"] = str(bundle)
        options = {
            "url_list": folder / "list.parquet", "input_format": "parquet", "url_col": "url", "caption_col": "caption",
            "output_folder": out, "output_format": "webdataset", "processes_count": CORES, "thread_count": threads,
            "image_size": 256, "resize_mode": "keep_ratio", "number_sample_per_shard": 1000, "timeout": 10,
            "retries": 0, "enable_wandb": False,
        }  # fmt: skip
        command = [str(PEER / "bin" / "img2dataset"), *(f"--{name}={value}" for name, value in options.items())]
        server.take()
        ran = run(command, lambda root, _: "parent" if root else "worker", env)
        served = server.take()
        stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
        if ran.code or not stats:
            raise SystemExit(f"img2dataset failed ({ran.code}):\n{ran.output[-3000:]}")
        span = max(shard["end_time"] for shard in stats) - min(shard["start_time"] for shard in stats)
        count = sum(shard["count"] for shard in stats)
        ok = sum(shard["successes"] for shard in stats)
    result = Result("img2dataset", ran, served, ran.seconds, count / span, served.rate(), ok, f"{threads} threads")
    _check_and_print(web, result)
    return result


def measure_ours(web: Web, server: PhotoServer) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_list(server, folder / "list.parquet")
        recipe = write_recipe(server, folder)
        root = folder / "root"
        server.take()
        start = time.perf_counter()
        build = [sys.executable, "-m", "jobs.build", "--recipe", str(recipe)]
        build += ["--input", str(folder / "list.parquet"), "--output", str(root)]
        ran = run(build, our_role, our_env())
        if ran.code:
            raise SystemExit(f"jobs.build failed ({ran.code}):\n{ran.output[-3000:]}")
        verify = run([sys.executable, "-m", "jobs.verify", str(root)], our_role, our_env())
        seconds = time.perf_counter() - start
        if verify.code:
            raise SystemExit(f"jobs.verify failed ({verify.code}):\n{verify.output[-3000:]}")
        served = server.take()
        [dataset] = root.glob("shard/*/dataset/sizes.json")
        ok = sum(json.loads(dataset.read_text()).values())
        times = sorted(
            value.timestamp()
            for path in root.glob("tables/outcomes/*/*.parquet")
            for value in pq.read_table(path, columns=["fetched_at"])["fetched_at"].to_pylist()
            if value is not None
        )
    cut = len(times) // 20
    result = Result(
        "ours", ran, served, seconds, len(times) / (times[-1] - times[0]),
        0.9 * len(times) / (times[-1 - cut] - times[cut]), ok,
        f"build {ran.seconds:.1f} s, verify {verify.seconds:.1f} s", sum(verify.cpu_s.values()),
    )  # fmt: skip
    _check_and_print(web, result)
    return result


def write_recipe(server: PhotoServer, folder: Path) -> Path:
    """Defaults, but for the issue's sizes and what lets us into this web at all; the peer compares no images."""
    download: dict[str, object] = {
        "image_size": 256, "resize_mode": "keep_ratio", "timeout": 10, "allow_addresses": ["127.64.0.0/10"],
    }  # fmt: skip
    if server.web.tls:
        download["ca_file"] = str(server.ca_file)
    recipe: dict[str, object] = {
        "download": download, "dedupe": {"levels": {}}, "shard": {"number_sample_per_shard": 1000},
    }  # fmt: skip
    if (os.cpu_count() or CORES) > CORES:
        recipe["ray"] = {"pools": dict.fromkeys(("ingest", "download", "shard"), CORES)}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def our_env() -> dict[str, str]:
    """Ours is not installed but run from its folder: Python may keep its bytecode, as it does for a package."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(REPOSITORY)}


def our_role(root: bool, command: str) -> str:
    if root:
        return "driver"
    if command.startswith("ray::IDLE"):
        return ""
    if command.startswith("ray::") and "Agent" not in command:
        return "worker"
    return "Ray's daemons" if "/ray/" in command or command.startswith("ray::") else ""


def _check_and_print(web: Web, result: Result) -> None:
    ran, served = result.ran, result.served
    asked = len(served.numbers)
    expected = sum(web.fate(number) == "ok" for number in range(web.images))
    roles = "; ".join(
        f"{role}: {ran.processes[role]}, {ran.peak_mb[role]:.0f} MB, {1000 * ran.cpu_s[role] / web.images:.2f} ms"
        for role in sorted(ran.peak_mb)
    )
    print(
        f"  {result.side} ({result.detail}): {result.seconds:.1f} s, {result.steady:.0f} img/s steady "
        f"({result.middle:.0f} middle, {served.rate():.0f} at the server), ok {result.ok} of {expected} possible\n"
        f"    server: {served.requests} requests, {asked} URLs, {served.robots} robots.txt, "
        f"{served.connections} connections, {1000 * served.cpu_s / max(1, served.requests):.2f} ms CPU a request\n"
        f"    processes, peak RSS of the largest, CPU an image: {roles}; tree {ran.tree_mb:.0f} MB; "
        f"{result.cpu_s:.1f} CPU s with the server's; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    if asked != web.images:
        raise SystemExit(f"{result.side} asked for {asked} of {web.images} URLs")


def _compare(case: str, ours: list[Result], theirs: list[Result]) -> str:
    def median(results: list[Result], name: str) -> float:
        return statistics.median(getattr(result, name) for result in results) if results else float("nan")

    whole = median(theirs, "seconds") / median(ours, "seconds")
    steady = median(ours, "steady") / median(theirs, "steady")
    middle = median(ours, "middle") / median(theirs, "middle")
    least_whole, least_steady = AT_LEAST[case]
    return (
        f"| {case} | {median(ours, 'seconds'):.1f} | {median(theirs, 'seconds'):.1f} | {whole:.2f}× | {least_whole}× | "
        f"{median(ours, 'steady'):.0f} | {median(theirs, 'steady'):.0f} | {steady:.2f}× | {least_steady}× | "
        f"{median(ours, 'middle'):.0f} | {middle:.2f}× | {median(ours, 'cpu_s'):.0f} | {median(theirs, 'cpu_s'):.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
