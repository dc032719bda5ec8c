"""The generate command: what it reads and writes, what it refuses and how, and that it leaves quietly."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from gpt2_lightning.__main__ import main
from gpt2_lightning.checkpoint import save_checkpoint
from gpt2_lightning.data.tokens import ByteTokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.generation.command import Asked, Writer, talk
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.conftest import Command
from tests.generation.decoders import recomputed, small, twin

RUN = "outputs/runs/run/x/checkpoints"


def decoder_of_bytes(block_size: int = 32) -> Decoder:
    decoder = small(vocab_size=257, block_size=block_size)
    with torch.no_grad():
        decoder.wte.weight[256] = 0
        decoder.ln_f.bias += 3 * decoder.wte.weight[:256].mean(0)  # no text ends by itself
    return decoder


def save(decoder: Decoder, parent: Path, **config: object) -> Path:
    """A checkpoint such as a run leaves."""
    settings = {
        "model": asdict(decoder.config),
        "data": {"tokenizer": "bytes"},
        "sampler": asdict(SamplerConfig(k=5)),
        **config,
    }
    return save_checkpoint(parent, {}, decoder.state_dict(), {"step": 1, "best_step": 1, "config": settings})


@pytest.fixture
def run(here: Path) -> Path:
    """A folder with a run that was killed: a last checkpoint, no result."""
    save(decoder_of_bytes(), here / RUN)
    return here


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> "Said":
    return Said(capfd)


class Said:
    """What the command writes and its status."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *words: str) -> str:
        """The output of a command that goes well."""
        status = main(["generate", *words])
        out, err = self.capfd.readouterr()
        assert (status, err) == (0, "")
        return out

    def refused(self, *words: str) -> tuple[int, str]:
        """The status and the one line of a command that does not."""
        status = main(["generate", *words])
        out, err = self.capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return status, err


def greedy(prompt: str, n: int, decoder: Decoder | None = None) -> str:
    return ByteTokenizer().decode(recomputed(decoder or decoder_of_bytes(), list(prompt.encode()) or [256], n)[0])


def test_a_prompt_is_continued_the_same_for_the_same_seed(run: Path, said: Said) -> None:
    words = ("prompt=I'm here, to be (or not)? a=b", "max_new_tokens=30")
    texts = [said("run=run", *words, f"seed={seed}") for seed in (1, 1, 2)]
    assert texts[0].startswith("I'm here, to be (or not)? a=b")
    assert texts[0].endswith("\n")
    assert texts[0] == texts[1] != texts[2]
    for name in (str(run / "outputs/runs/run"), "outputs/runs/run/x", f"{RUN}/step-00000001", str(run / RUN / "step-00000001")):
        assert said(f"run={name}", *words, "seed=1") == texts[0]
    (run / "elsewhere").mkdir()
    (run / "outputs").rename(run / "elsewhere/out")
    assert said("run=run", "outputs=elsewhere/out", *words, "seed=1") == texts[0]


def test_an_empty_prompt_and_none_begin_with_end_of_text_and_a_long_one_slides(run: Path, said: Said) -> None:
    words = ("run=run", "sampler=greedy", "max_new_tokens=12")
    assert said(*words, "prompt=") == said(*words) == greedy("", 12) + "\n"
    long = "to be or not " * 9
    assert said(*words, f"prompt={long}") == long + greedy(long, 12) + "\n"
    assert said(*words, "prompt=to be", "max_new_tokens=0") == "to be\n"
    assert said(*words, "prompt=to be", "context=stop", "max_new_tokens=99") == "to be" + greedy("to be", 27) + "\n"


def test_the_sampler_is_the_runs_own_or_a_named_one_with_changes(run: Path, said: Said) -> None:
    prompts = run / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    own = SamplerConfig(k=5)
    for words, expected in (
        ([], own),
        (["sampler.temperature=0.5"], replace(own, temperature=0.5)),
        (["sampler.k=none", "sampler.p=0.9"], replace(own, k=None, p=0.9)),
        (["sampler=top_p"], SamplerConfig(k=None, p=0.95)),
        (["sampler=top_p", "sampler.p=0.5"], SamplerConfig(k=None, p=0.5)),
        (["sampler=beam", "sampler.beams=2"], SamplerConfig(beams=2)),
    ):
        (line,) = said("run=run", "prompts=p.jsonl", "max_new_tokens=2", *words).splitlines()
        assert json.loads(line)["sampler"] == asdict(expected)


def test_n_texts_and_beams_stand_each_under_a_line_of_their_own(run: Path, said: Said) -> None:
    lines = said("run=run", "prompt=ab", "n=3", "max_new_tokens=0").splitlines()
    assert lines == ["--- 1 of 3", "ab", "--- 2 of 3", "ab", "--- 3 of 3", "ab"]
    found = said("run=run", "prompt=ab", "sampler.beams=3", "n=2", "max_new_tokens=4")
    assert found.startswith("--- 1 of 2, score -")
    assert "--- 2 of 2, score -" in found
    one = said("run=run", "prompt=ab", "sampler.beams=3", "max_new_tokens=4")
    assert one in found
    assert one.startswith("ab")


def test_a_setting_without_effect_is_said(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "run=run", "max_new_tokens=1", "sampler.tau=2"]) == 0
    assert capfd.readouterr().err == "warning: sampler.tau = 2.0 has no effect without sampler.epsilon\n"


RECORDS = [
    {"prompt": "To be", "id": 7, "name": "Zoë\u2028\x85🙂"},
    {"prompt": "", "more": {"a": [1, None]}},
    {"prompt": "x" * 50},
    {"prompt": "To be"},
]


@pytest.mark.parametrize("out", [[], ["out=new.jsonl"]], ids=["stdout", "file"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_file_of_prompts_is_continued_in_order_and_keeps_its_keys(run: Path, said: Said, out: list[str], n: int) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    (run / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    shown = said("run=run", "prompts=prompts.jsonl", f"n={n}", "seed=3", "max_new_tokens=9", "batch_size=3", *out)
    text = (run / "new.jsonl").read_bytes().decode() if out else shown
    assert (shown == "") is bool(out)
    found = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    assert [{k: v for k, v in one.items() if k in ("prompt", "id", "name", "more")} for one in found] == [
        record for record in RECORDS for _ in range(n)
    ]
    assert [one["sample"] for one in found] == [*range(n)] * 4
    assert len({one["text"] for one in found}) == 4 * n
    for one in found:
        assert (one["seed"], one["run"], one["ended"], one["new_tokens"]) == (3, "run", "length", 9)
        assert "score" not in one
    if out:  # its own output is a file of prompts
        again = said("run=run", "prompts=new.jsonl", "max_new_tokens=1").rstrip("\n").split("\n")
        assert len(again) == 4 * n
    (first,) = said("run=run", "prompt=To be", "seed=3", "max_new_tokens=9").splitlines()
    assert first == "To be" + found[0]["text"] or "\n" in found[0]["text"]


def test_beams_have_scores_in_the_file_and_stop_strings_end(run: Path, said: Said) -> None:
    (run / "p.jsonl").write_text('{"prompt": "a"}\n')
    found = [json.loads(line) for line in said("run=run", "prompts=p.jsonl", "sampler=beam", "n=2").splitlines()]
    assert [one["sample"] for one in found] == [0, 1]
    assert found[0]["score"] > found[1]["score"]
    text = greedy("a", 20)
    stops = [f"stop={text[5]}", f"stop={text[3]}=never"]
    (line,) = said("run=run", "prompts=p.jsonl", "sampler=greedy", *stops).splitlines()
    assert json.loads(line)["text"] == text[: text.index(text[5])]
    assert json.loads(line)["ended"] == "stop"
    assert said("run=run", "prompt=a", "sampler=greedy", *stops) == "a" + text[: text.index(text[5])] + "\n"


@pytest.mark.parametrize("whose", ["ours", "transformers"])
def test_a_folder_in_transformers_format_is_a_run(here: Path, said: Said, whose: str) -> None:
    decoder = decoder_of_bytes()
    if whose == "ours":
        decoder.save_pretrained(here / "gpt2")
    else:
        twin(decoder).save_pretrained(here / "gpt2")
        said.capfd.readouterr()  # their progress bar
    assert said("run=gpt2", "prompt=To be", "sampler.k=1", "max_new_tokens=9") == "To be" + greedy("To be", 9, decoder) + "\n"


class Evil:
    """A pickle that would write a file on loading."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


BAD = [
    (["run=ghost"], 4, "has no checkpoint. There are run"),
    (["run=" + "x" * 300], 4, "File name too long"),
    (["run=broken/step-00000001"], 4, "is damaged: it has 2000 bytes, "),
    (["run=empty.ckpt"], 4, "is damaged or no checkpoint of ours"),
    (["run=evil.ckpt"], 4, "is damaged or no checkpoint of ours"),
    (["run=sampler/step-00000001"], 4, "has no sampler of ours"),
    (["run=task/step-00000001"], 4, "has no task of ours"),
    (["run=other/step-00000001"], 2, "model.vocab_size = 29): must be 50257 (gpt2) or 257 (bytes)"),
    (["run=run", "sampler.k=258", "prompt=x"], 2, "(sampler.k = 258): must be at most the vocabulary, 257"),
    (["run=run", "n=3", "sampler.beams=2"], 2, "(n = 3): must be at most sampler.beams = 2"),
    (["run=run", "slide_by=33"], 2, "(slide_by = 33): must be at most the context, 32"),
    (["run=run", "prompt=" + "x" * 33, "context=stop"], 2, "a prompt of 33 tokens is longer than the context, 32"),
    (["run=run", "prompts=long.jsonl", "context=stop", "out=new.jsonl"], 2, "a prompt of 33 tokens is longer"),
    (["run=run", "prompts=long.jsonl", "out=full"], 8, "(out = full): cannot be written: No space left on device"),
]


@pytest.mark.parametrize(("words", "status", "message"), BAD, ids=[" ".join(words)[:40] for words, _, _ in BAD])
def test_what_cannot_be_done_is_said_in_one_line(run: Path, said: Said, words: list[str], status: int, message: str) -> None:
    broken = save(decoder_of_bytes(), run / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:2000])
    (run / "empty.ckpt").write_bytes(b"")
    torch.save({"x": Evil()}, run / "evil.ckpt")
    save(decoder_of_bytes(), run / "sampler", sampler={"top": 1})
    save(decoder_of_bytes(), run / "task", task={"name": "other"})
    save(small(), run / "other")
    (run / "long.jsonl").write_text(json.dumps({"prompt": "x" * 33}))
    (run / "full").symlink_to("/dev/full")
    before = sorted(run.iterdir())
    got, line = said.refused(*words)
    assert (got, message in line) == (status, True), line
    assert sorted(run.iterdir()) == before


BAD_WORDS = [
    (["prompt=x"], 2, "run must be given", "run = ''): must be given. Set run=NAME"),
    (["run="], 2, "empty run", "must be given"),
    (["run=x", "prompt=a", "prompts=b"], 2, "both", "(prompts = b): excludes prompt"),
    (["run=x", "out=b"], 2, "out without prompts", "(out = b): is for prompts=FILE.jsonl"),
    (["run=x", "promt=x"], 2, "typo", "(argument = promt=x): is not known. Did you mean prompt?"),
    (["run=x", "sampler.temprature=5"], 2, "sampler typo", "Did you mean sampler.temperature?"),
    (["run=x", "max_tokens=5"], 2, "long typo", "Did you mean max_new_tokens?"),
    (["run=x", "To", "be"], 2, "no key", "(argument = To): is not known. The keys are run, prompt, prompts"),
    (["run=x", "sampler=topk"], 2, "preset", "(sampler = topk): no such sampler. There are top_k, top_p"),
    (["run=x", "sampler="], 2, "empty preset", "no such sampler. There are"),
    (["run=x", "n=1.5"], 2, "fraction", "(n = 1.5): must be an integer"),
    (["run=x", "n=0"], 2, "n", "(n = 0): must be at least 1"),
    (["run=x", "max_new_tokens=many"], 2, "word", "(max_new_tokens = many): must be an integer"),
    (["run=x", "max_new_tokens=-1"], 2, "negative", "must be at least 0"),
    (["run=x", "seed=-1"], 2, "seed", "must be at least 0"),
    (["run=x", "batch_size=0"], 2, "batch", "must be at least 1"),
    (["run=x", "numbers=int4"], 2, "numbers", "must be one of float32, bfloat16, int8"),
    (["run=x", "context=wrap"], 2, "context", "must be one of slide, stop"),
    (["run=x", "stop="], 2, "stop", "must be a list of strings that are not empty"),
    (["run=x", "sampler.k=0"], 2, "k", "(sampler.k = 0): must be at least 1"),
    (["run=x", "sampler.k=ten"], 2, "k word", "(sampler.k = ten): must be an integer"),
    (["run=x", "sampler.temperature=-1"], 2, "temperature", "must be at least 0"),
    (["run=x", "sampler.temperature=nan"], 2, "temperature nan", "must be finite"),
    (["run=x", "sampler.temperature=hot"], 2, "temperature word", "must be a number"),
    (["run=x", "sampler.p=0"], 2, "p", "must be above 0 and at most 1"),
    (["run=x", "sampler.p=1.1"], 2, "p above", "must be above 0 and at most 1"),
    (["run=x", "sampler.beams=0"], 2, "beams", "must be at least 1"),
    (["run=x", "sampler.epsilon=1"], 2, "epsilon", "must be above 0 and below 1"),
    (["run=x", "sampler.tau=0"], 2, "tau", "must be above 0"),
    (["run=x", "sampler.length_penalty=1e9"], 2, "penalty", "must be at least -10 and at most 10"),
    (["run=x", "sampler=beam", "sampler.p=0.5"], 2, "beam and p", "has no effect in beam search"),
    (["run=x", "prompt=\udcff"], 2, "prompt", "is not valid UTF-8"),
    (["run=x", "prompts="], 3, "no file", "cannot be read"),
    (["run=x", "prompts=ghost.jsonl"], 3, "ghost", "(prompts = ghost.jsonl): cannot be read: No such file or directory"),
    (["run=x", "prompts=folder"], 3, "folder", "cannot be read: Is a directory"),
    (["run=x", "prompts=latin.jsonl"], 3, "latin", "(line = latin.jsonl:2): is not valid UTF-8"),
    (["run=x", "prompts=half.jsonl"], 3, "half", "(line = half.jsonl:1): is not valid UTF-8"),
    (["run=x", "prompts=text.jsonl"], 3, "text", "(line = text.jsonl:3): is not JSON: Expecting value"),
    (["run=x", "prompts=deep.jsonl"], 3, "deep", "(line = deep.jsonl:1): is not JSON"),
    (["run=x", "prompts=none.jsonl"], 3, "none", "(line = none.jsonl:2): has no prompt that is text. Write each line as"),
    (["run=x", "prompts=list.jsonl"], 3, "list", "(line = list.jsonl:1): has no prompt that is text"),
    (["run=x", "prompts=good.jsonl", "out=folder"], 8, "out folder", "(out = folder): cannot be written"),
    (["run=x", "prompts=good.jsonl", "out="], 8, "out empty", "(out = ''): cannot be written"),
    (["run=x", "prompts=good.jsonl", "out=no/such/file"], 8, "out nowhere", "cannot be written"),
]


def bad_files(folder: Path) -> None:
    (folder / "folder").mkdir()
    for name, content in {
        "good": b'{"prompt": "a"}\n',
        "latin": b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n',
        "half": b'{"prompt": "\\ud83d"}\n',
        "text": b'{"prompt": "a"}\n\nTo be\n',
        "deep": b"[" * 100_000,
        "none": b'{"prompt": "a"}\n{"promt": "b"}\n',
        "list": b'["a"]\n',
    }.items():
        (folder / f"{name}.jsonl").write_bytes(content)


@pytest.mark.parametrize(("words", "status", "name", "message"), BAD_WORDS, ids=[name for _, _, name, _ in BAD_WORDS])
def test_a_wrong_word_is_said_in_one_line_and_leaves_nothing(
    here: Path, said: Said, words: list[str], status: int, name: str, message: str
) -> None:
    bad_files(here)
    before = sorted(here.iterdir())
    got, line = said.refused(*words)
    assert (got, message in line) == (status, True), line
    assert sorted(here.iterdir()) == before


def test_wrong_words_are_said_before_torch_is_loaded(here: Path) -> None:
    bad_files(here)
    code = f"""
import sys
from gpt2_lightning.__main__ import main
for words, status in {[(words, status) for words, status, _, _ in BAD_WORDS]!r}:
    assert main(["generate", *words]) == status, words
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code.encode("utf-8", "surrogateescape")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bytes_that_are_no_utf8_on_the_command_line_are_refused(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2_lightning", "generate", "run=x", b"prompt=caf\xe9"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: prompt (prompt = 'caf\\udce9'): is not valid UTF-8\n")


def test_a_reader_that_has_seen_enough_is_no_error(run: Path) -> None:
    words = "generate run=run prompt=x max_new_tokens=100000"
    done = subprocess.run(
        f"{sys.executable} -m gpt2_lightning {words} | head -c 20 >/dev/null; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def terminal(run: Path) -> Iterator["Terminal"]:
    found = Terminal()
    yield found
    found.close()


CONTROLLED = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there is a signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from gpt2_lightning.__main__ import console
console()
"""


class Terminal:
    """The command at a pseudo-terminal."""

    def __init__(self, *more: str) -> None:
        self.master, slave = pty.openpty()
        words = ["generate", "run=run", "sampler=greedy", "max_new_tokens=6", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, *words], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def until(self, text: str) -> str:
        """Read on until the text has come; returns all that came with it."""
        found = b""
        while text.encode() not in found:
            assert select.select([self.master], [], [], 60)[0], found
            found += os.read(self.master, 4096)
        return found.decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_at_a_terminal_lines_are_continued_until_the_input_ends(terminal: Terminal) -> None:
    assert "Type a beginning, and Enter; end with Ctrl-D." in terminal.until("> ")
    for line in ("To be", "", "Zoë"):
        terminal.type(f"{line}\n")
        answer = terminal.until("\r\n> ").replace("\r\n", "\n")
        assert answer == f"{line}\n{line}{greedy(line, 6)}\n> " or not greedy(line, 6).isprintable()
    terminal.type("\x04")
    assert terminal.process.wait(timeout=30) == 0


def test_each_answer_has_the_next_seed(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def answers(seed: int, *typed: str) -> list[str]:
        keyboard = Mock(side_effect=[*(f"{line}:" for line in typed), EOFError])
        monkeypatch.setattr("builtins.input", keyboard)
        asked = Asked(run="run", prompt=None, records=None, out="", outputs="outputs", preset=None, changes={})
        talk(Writer(asked, GenerateConfig(max_new_tokens=30, seed=seed)))
        return capfd.readouterr().out.split("a:")

    first = answers(7, "a", "a", "a")
    assert len({*first}) == 4
    assert [x.strip() for x in answers(8, "a", "a")] == [x.strip() for x in first[:1] + first[2:]]


@pytest.mark.parametrize("typed", ["", "To be\n"], ids=["waiting", "writing"])
def test_ctrl_c_ends_with_130_and_no_traceback(run: Path, typed: str) -> None:
    terminal = Terminal("max_new_tokens=1000000")
    terminal.until("> ")
    if typed:
        terminal.type(typed)
        terminal.until(greedy("To be", 12)[:6])
    time.sleep(0.5)  # Python misses a signal that comes just before it begins to read
    terminal.type("\x03")
    shown = terminal.until("interrupted")
    assert terminal.process.wait(timeout=30) == 130
    assert "Traceback" not in shown
    terminal.close()


def test_typed_bytes_that_are_no_utf8_are_refused(terminal: Terminal) -> None:
    terminal.until("> ")
    terminal.type("caf\udce9\n")
    assert "error: prompt: is not valid UTF-8" in terminal.until("UTF-8")
    assert terminal.process.wait(timeout=30) == 2


@pytest.mark.slow
def test_a_real_run_is_continued(command: Command, tmp_path: Path) -> None:
    words = ("model=nano", "trainer=cpu", "data.batch_size=4", "data.val_batches=4", "samples.max_new_tokens=2")
    assert command(*words, "trainer.max_steps=2", "trainer.val_every=2").returncode == 0
    (folder,) = (tmp_path / "outputs/runs/run").iterdir()
    (folder / "result.json").unlink()  # as if it had been killed
    done = command("generate", "run=run", "prompt=To be", "max_new_tokens=5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("To be")
