"""Through Lightning: the state in a checkpoint is that of the batch trained on, on every rank."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.test_stream import write_corpora, write_mix

RECORDER = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, seed_everything
from gpt2_lightning.config import compose_config
from gpt2_lightning.data.look import row_hashes
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.run import open_data
from gpt2_lightning.trainer import build_trainer

name, resume, *words = sys.argv[1:]

class Recorder(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open(f"{name}.rank{trainer.global_rank}", "a") as file:
            file.write(" ".join(h.hex()[:12] for h in row_hashes(batch)) + "\\n")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 7 and resume == "none":
            trainer.save_checkpoint(f"{name}.ckpt")
        if trainer.global_step == 15:
            trainer.should_stop = True

torch.set_num_threads(1)
config = compose_config(["model=nano", "trainer=cpu", "augment=all", "checkpoint.save=false", "trainer.val_every=15",
                         "data.val_batches=3", "trainer.max_steps=20", *words])
seed_everything(config.seed, verbose=False)
data = open_data(config)
module = GPT2Module(config, data.names, data.bytes_per_token, data.loss_weights)
build_trainer(config, Path("."), [Recorder()]).fit(module, datamodule=data, ckpt_path=None if resume == "none" else resume)
"""


def record(folder: Path, name: str, resume: str, *words: str) -> list[list[str]]:
    """The rows of each step, over all ranks in order."""
    (folder / "recorder.py").write_text(RECORDER)
    done = subprocess.run([sys.executable, "recorder.py", name, resume, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [path.read_text().splitlines() for path in sorted(folder.glob(f"{name}.rank*"))]
    return [" ".join(step).split() for step in zip(*ranks, strict=True)]


@pytest.mark.slow
def test_two_ranks_go_on_with_the_same_batches_mid_epoch(here: Path) -> None:
    write_corpora(here)
    write_mix(here, weight=2)
    one = record(here, "one", "none", "data=mix", "data.batch_size=4")
    two = record(here, "two", "none", "data=mix", "data.batch_size=2", "trainer.devices=2", "data.workers=1")
    assert len(one) == 15
    assert one == two
    rows = [row for step in two for row in step]
    assert len(rows) == len(set(rows)) == 60
    resumed = record(here, "again", "two.ckpt", "data=mix", "data.batch_size=2", "trainer.devices=2")
    assert resumed == two[7:]
    assert record(here, "single", "one.ckpt", "data=mix", "data.batch_size=4", "data.workers=2") == one[7:]
