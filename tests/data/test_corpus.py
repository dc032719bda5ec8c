"""Documents come out as they went in; what is broken is named with its place."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from gpt2_lightning.data.corpus import CorpusConfig, Piece, Reading, read_corpus
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.errors import DataError

SEGMENT = 16_384


def pieces(path: Path | str, reading: Reading | None = None, **options: object) -> list[Piece]:
    options.setdefault("holdout_every", 1_000_000)
    return list(read_corpus(CorpusConfig(path=str(path), **options), SEGMENT, reading or Reading()))


def documents(path: Path | str, part: str = "train", **options: object) -> list[str]:
    found, text = [], ""
    for piece in pieces(path, **options):
        if piece.part == part:
            text += piece.text
            if piece.whole:
                found.append(text)
                text = ""
    assert not text
    return found


@pytest.mark.parametrize(
    ("split", "text", "expected"),
    [
        ("file", "a\n\nb\n", ["a\n\nb\n"]),
        ("line", "a\n\n  \nb", ["a", "b"]),
        ("blank_line", "a\nb\n\nc\n\n\n\nd", ["a\nb", "c", "d"]),
        ("end_of_text", "a<|endoftext|>b\n<|endoftext|>\n", ["a", "b\n"]),
        ("line", "a\r\nb\rc", ["a", "b", "c"]),
        ("file", "\ufeffa", ["a"]),
    ],
)
def test_splits(here: Path, split: str, text: str, expected: list[str]) -> None:
    (here / "a.txt").write_bytes(text.encode())
    assert documents("a.txt", split=split) == expected


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_compressed_text_is_known_by_its_content(here: Path, compress: object, name: str) -> None:
    (here / name).write_bytes(compress("käse\n".encode()))
    assert documents(name) == ["käse\n"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_compressed_files_joined_to_one_are_read_to_their_end(here: Path, compress: object) -> None:
    (here / "a.gz").write_bytes(compress(b"one\n" * 50_000) + compress(b"two\n" * 50_000))
    assert "".join(documents("a.gz")) == "one\n" * 50_000 + "two\n" * 50_000


CHECKED = zstandard.ZstdCompressor(write_checksum=True).compress  # as the command zstd does


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, CHECKED])
@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b[:60] + b"\0" * 20 + b[80:]])
def test_compressed_files_cut_short_or_damaged_are_said(here: Path, compress: object, harm: object) -> None:
    text = "".join(f"{n * n % 7919} and {n}\n" for n in range(9000)).encode()
    (here / "a.gz").write_bytes(harm(compress(text)))
    with pytest.raises(DataError, match="a.gz.: is cut short or damaged"):
        documents("a.gz")


def test_json_lines_and_parquet_give_the_field(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (here / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two\\r\\n"}\n')
    assert documents("a.jsonl", field="body") == ["one", "two\n"]
    pq.write_table(pa.table({"text": ["one", "two"]}), here / "a.parquet")
    assert documents("a.parquet") == ["one", "two"]


def test_a_glob_reads_files_in_name_order(here: Path) -> None:
    for name in ("b", "a", "c"):
        (here / f"{name}.txt").write_text(name)
    assert documents("*.txt") == ["a", "b", "c"]


def test_every_tenth_document_is_held_out_and_only_it(here: Path) -> None:
    (here / "a.txt").write_text("\n".join(map(str, range(25))))
    options = {"split": "line", "holdout_every": 10}
    assert documents("a.txt", "validation", **options) == ["9", "19"]
    assert documents("a.txt", "train", **options) == [str(n) for n in range(25) if n not in (9, 19)]
    assert documents("a.txt", "validation", **options, holdout_limit=1) == ["9"]
    assert len(documents("a.txt", "train", **options, holdout_limit=1)) == 24


def test_the_bundled_corpus_is_whole() -> None:
    train, held_out = (documents("bundled:shakespeare.jsonl", part, holdout_every=10) for part in ("train", "validation"))
    assert 900_000 < sum(map(len, train)) < 1_100_000
    assert len(held_out) == (len(train) + len(held_out)) // 10
    assert not set(train) & set(held_out)


def test_a_long_line_comes_in_pieces_whose_tokens_are_those_of_the_whole(here: Path) -> None:
    line = "It is 1 o'clock, they're  two \t words. " * 8000
    (here / "a.txt").write_text(line)
    texts = [piece.text for piece in pieces("a.txt")]
    assert len(texts) > 2
    assert max(map(len, texts)) <= 2 * SEGMENT
    encode = load_tokenizer("gpt2").encode
    assert [t for text in texts for t in encode(text).tolist()] == encode(line).tolist()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_forty_megabytes_in_one_line_take_little_memory(here: Path, name: str) -> None:
    line = "word " * 8_000_000
    (here / name).write_text(json.dumps({"text": line}) if name == "a.jsonl" else line)
    code = (
        "import resource, sys; from gpt2_lightning.data.corpus import CorpusConfig, Reading, read_corpus;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "n = sum(len(p.text) for p in read_corpus(CorpusConfig(path=sys.argv[1]), 16384, Reading())); assert n == 40_000_000;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < (16 if name == "a.txt" else 350)  # MiB; a JSON line has to be parsed whole


def test_a_long_document_ends_once(here: Path) -> None:
    (here / "a.txt").write_text("word " * 100_000 + "\n" + "x")
    assert [len(d) for d in documents("a.txt", split="line")] == [500_000, 1]


def write_gzip_cut_short(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(range(200)) * 1000)[:-20])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.txt", lambda p: p.write_bytes(b"abc\xffdef"), "not UTF-8 at byte 3"),
        ("a.txt", lambda p: p.write_bytes(b"\xef\xbb\xbfab\xff"), "not UTF-8 at byte 5"),
        ("a.txt", lambda p: p.write_bytes(b"a" * (2**20 - 1) + "é".encode() + b"\xff"), f"byte {2**20 + 1}"),
        ("a.txt", lambda p: p.write_bytes(b"abc\xc3"), "not UTF-8 at byte 3"),
        ("a.txt", lambda p: p.write_bytes(b"\x89PNG\r\n"), "is a PNG picture"),
        ("a.txt.gz", write_gzip_cut_short, "cut short or damaged"),
        ("a.jsonl", lambda p: p.write_text('{"text": "a"}\n{"text": \n'), "a.jsonl:2"),
        (
            "a.jsonl",
            lambda p: p.write_text('{"text": null, "title": "x"}\n'),
            "a.jsonl:1.*holds no text in the field 'text' but NoneType",
        ),
        (
            "a.jsonl",
            lambda p: p.write_text('{"body": "a", "title": "x"}\n'),
            "a.jsonl:1.*has no field 'text'; it has body, title",
        ),
        ("a.jsonl", lambda p: p.write_bytes(b'{"text": "a"}\n\n{"text": "\xff"}\n'), "a.jsonl:3.*is not JSON.*utf-8"),
        ("a.jsonl", lambda p: p.write_text('{"text": "\\ud800"}\n'), "a.jsonl:1.*half a surrogate pair"),
        ("a.jsonl", lambda p: p.write_text("[" * 100_000), "a.jsonl:1.*is not JSON"),
        ("a.jsonl", lambda p: p.write_text("[1]\n"), "is no JSON object"),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1 no"), "cut short or damaged"),
    ],
)
def test_broken_files_are_named_with_the_place(here: Path, name: str, write: object, message: str) -> None:
    write(here / name)
    with pytest.raises(DataError, match=message):
        documents(name)


def test_invalid_bytes_can_be_replaced(here: Path) -> None:
    (here / "a.txt").write_bytes(b"a\xffb")
    assert documents("a.txt", invalid="replace") == ["a\ufffdb"]
    (here / "a.jsonl").write_bytes(b'{"text": "a\xff"}\n{"text": "\\ud800b"}')
    assert documents("a.jsonl", invalid="replace") == ["a\ufffd", "?b"]


def test_nul_bytes_are_counted_and_warned_of(here: Path) -> None:
    (here / "a.txt").write_bytes(b"a\0b\0")
    reading = Reading()
    pieces("a.txt", reading)
    assert reading.warnings == ["'a.txt' holds 2 NUL bytes, kept as they are: is it text?"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tale.txt", "does not exist, looked for in '.*'. The nearest that exists is 'tales.txt'"),
        ("no/such/*.txt", "matches no file"),
        ("folder", r"is a folder. Set data.path='folder/\*.txt'"),
    ],
)
def test_a_path_that_is_not_there(here: Path, path: str, message: str) -> None:
    (here / "tales.txt").write_text("x")
    (here / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        documents(path)


def test_json_of_the_bundled_corpus_is_one_scene_a_line() -> None:
    from gpt2_lightning.data.corpus import corpus_files

    (path,) = corpus_files("bundled:shakespeare.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"title", "text"} for row in rows)
