"""What TF-IDF with logistic regression reaches on the split of ``+experiment=classification_spam``.

    make data; python benchmarks/spam.py [--characters 4000]

Both see the mails as they are in outputs/data/; ``--characters`` cuts them, as the decoder's context does.
"""

import argparse
import json
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score


def read(part: str, characters: int) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in Path(f"outputs/data/spam_{part}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"][:characters] for row in rows], [row["label"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=4000)
    asked = parser.parse_args()
    (texts, labels), (held_out, there) = (read(part, asked.characters) for part in ("train", "test"))
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectors.fit_transform(texts), labels)
    found = model.predict(vectors.transform(held_out))
    print(json.dumps({"characters": asked.characters, "accuracy": round(accuracy_score(there, found), 4),
                      "macro_f1": round(f1_score(there, found, average="macro"), 4)}))  # fmt: skip


if __name__ == "__main__":
    main()
