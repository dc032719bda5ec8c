"""What stands for ``python -m gpt2_lightning trial`` in the engine's tests: settings in; a run's files and exit status out.

Its numbers are a pure function of the settings, carried from step to step, so that going on from a wrong place shows. FAKE
holds JSON: ``ms`` of a step, and what is wrong with which trial. Run without site-packages: a Python's start, and no more.
"""

import json
import math
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from gpt2_lightning.errors import PlatformError
from gpt2_lightning.lock import Lock
from gpt2_lightning.signals import end_with_parent

STOP = []


def read_yaml(path):
    """Dotted keys of nested mappings; all that a run's settings need."""
    found, keys = {}, []
    for line in path.read_text().splitlines():
        name, colon, value = line.strip().partition(":")
        depth = (len(line) - len(line.lstrip())) // 2
        if not colon or line.lstrip().startswith(("-", "#")):
            continue
        keys = [*keys[:depth], name]
        if value.strip():
            found[".".join(keys)] = value.strip()
    return found


def whole(path, text):
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def audit(event, **more):
    line = {"event": event, "pid": os.getpid(), "agent": os.getppid(), "time": time.time(), **more}
    with open(os.environ["AUDIT"], "a") as file:
        file.write(json.dumps(line) + "\n")


def curve(x, step, lr, beta):
    """The next state: towards an optimum of the settings, with a chaotic part."""
    best = 2 + (math.log10(lr / 3e-3)) ** 2 + 10 * beta
    noise = math.sin(1e4 * math.sin(step * lr * 997 + x))
    return x + (best - x) * 0.05 + 0.01 * noise


def main():
    end_with_parent(int(os.environ["GPT2_LIGHTNING_AGENT"]))
    given = dict(word.split("=", 1) for word in sys.argv[2:])
    c = read_yaml(Path(given["config"]))
    folder = Path(c["run.folder"], "sweeps", c["run.study"], c["run.id"]).absolute()
    fake = json.loads(os.environ.get("FAKE", "{}"))
    lr, beta, seed = float(c["optimizer.lr"]), float(c.get("loss.beta", 0)), int(c["seed"])
    wrong = fake.get(c["run.id"]) or (fake.get("diverge_above") and lr > fake["diverge_above"] and "diverge")
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    lock.acquire()
    signal.signal(signal.SIGTERM, lambda number, frame: STOP.append(number))
    if "score" in given:
        score(folder, given)
    if "trained" not in given:
        train(folder, c, fake, lr, beta, seed, wrong)
    lock.release()


def score(folder, given):
    asked = json.loads(Path(given["score"]).read_text())
    rows = [
        {"candidate": p, "measures": {"generation/perplexity_gap": abs((p.get("sampler.k") or 50) - 8)}}
        for p in asked["candidates"]
    ]
    audit("score", trial=folder.name)
    whole(folder / "scores.json", json.dumps(rows))


def train(folder, c, fake, lr, beta, seed, wrong):
    steps, every = int(c["trainer.max_steps"]), int(c["trainer.val_every"])
    point, metrics = folder / "checkpoint.json", folder / "metrics.jsonl"
    if (folder / "result.json").exists():
        audit("finished already", trial=folder.name)
        return
    state = json.loads(point.read_text()) if point.exists() else {"step": 0, "x": 5.0 + 0.01 * seed, "lines": [], "vals": []}
    step, x = state["step"], state["x"]
    lines, vals = state["lines"], state["vals"]
    whole(metrics, "".join(lines))
    env = {k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "MASTER_PORT", "OMP_NUM_THREADS", "GPT2_LIGHTNING_GPU_SHARE")}
    audit("start", trial=folder.name, step=step, env=env, secret="GPT2_LIGHTNING_STORAGE" in os.environ)
    while step < steps:
        if STOP and wrong != "hang":
            whole(point, json.dumps({"step": step, "x": x, "lines": lines, "vals": vals}))
            audit("stopped", trial=folder.name, step=step)
            print("error: terminated", file=sys.stderr)
            sys.exit(143)
        step, x = step + 1, curve(x, step, lr, beta)
        time.sleep(fake.get("ms", 2) / 1000)
        if step == 7:
            fail(wrong)
        if step % every == 0 or step == steps:
            lines.append(
                json.dumps({"step": step, "tokens": step * 64, "val/cross_entropy": x, "speed/peak_memory": 1e6 * lr}) + "\n"
            )
            vals.append(x)
            with metrics.open("a") as file:
                file.write(lines[-1])
        if step % int(c["checkpoint.every"]) == 0:
            whole(point, json.dumps({"step": step, "x": x, "lines": lines, "vals": vals}))
    whole(
        folder / "result.json", json.dumps({"state": "finished", "steps": steps, "seconds": 1.0, "last": x, "best": min(vals)})
    )
    audit("end", trial=folder.name, step=step)


def fail(wrong):
    if wrong == "diverge":
        print("error: loss (step = 7): is not finite", file=sys.stderr)
        sys.exit(6)
    if wrong == "memory":
        print("error: device memory: does not hold 1 parameters", file=sys.stderr)
        sys.exit(7)
    if wrong == "error":
        print("Traceback: a long story\nValueError: of no use", file=sys.stderr)
        sys.exit(1)
    if wrong == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if wrong == "hang":
        time.sleep(3600)


def end(status, text):
    """Whether there is room for the text or not."""
    with suppress(OSError):
        print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(status)


if __name__ == "__main__":
    try:
        main()
    except PlatformError as error:
        end(error.status, error)
    except OSError as error:
        end(8, f"output: {error}")
