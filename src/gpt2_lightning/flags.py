"""Hydra's own flags, such as ``--cfg job``: words in; what Hydra has to show out, and nothing run.

One number: 1 check as for a run before anything is shown.
"""

import sys

import hydra
from hydra.core.override_parser.types import Quote, QuotedString

from gpt2_lightning.config import (
    compose_study,
    config_folder,
    in_order,
    read_overrides,
    register_schema,
    search_path,
    take_storage,
)
from gpt2_lightning.errors import ConfigError

__all__ = ["show_with_hydra"]


def show_with_hydra(words: list[str]) -> None:
    """Let Hydra answer its own flags, which show and run nothing; raises ConfigError for what could not run."""
    register_schema()
    flags = [word for word in words if word.startswith("-")]
    if not flags or flags[0] not in ("--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p"):
        raise ConfigError("flag", key="flag", value=flags[0], rule="is not known", remedy="See --help")
    changes, _ = take_storage([word for word in words if "=" in word and not word.startswith("-")])
    plain, offered = read_overrides(changes)
    compose_study(plain)
    space = ",".join(f"{key}:{QuotedString(text, Quote.single).with_quotes()}" for key, text in offered.items())
    asked = [word for word in words if "=" not in word or word.startswith("-")]
    plain += [f"sweep.params={{{space}}}"] if space else []
    sys.argv = [sys.argv[0], *asked, *in_order(plain), search_path()]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(lambda _: None)()
