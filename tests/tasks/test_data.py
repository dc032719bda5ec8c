"""The configured data sets of tasks go together with the settings that their files name."""

import re
from pathlib import Path

import pytest

from gpt2_lightning.config import compose_config, config_folder

OF_TASKS = ("ag_news", "sst2", "imdb", "daily_dialog", "oasst1", "wmt14_de_en", "opus_en_es")


@pytest.mark.parametrize("name", OF_TASKS)
def test_the_settings_that_a_data_set_names_compose(here: Path, name: str) -> None:
    first = (config_folder() / f"data/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    words = re.findall(r"task[.a-z]*=\S+", first)
    config = compose_config([f"data={name}", "model=nano", "model.vocab_size=50257", *words])
    assert words and config.task.of_records and config.data.records
