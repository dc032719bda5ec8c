"""What the ``export`` command is asked for. One number: 2, the keys it needs: ``run`` and ``to``."""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting

__all__ = ["ExportConfig"]


@dataclass(kw_only=True, slots=True)
class ExportConfig(Settings):
    """Whose weights are written, and where to."""

    run: str = setting("", "run, its folder, a checkpoint's, or a folder in transformers' format")
    to: str = setting("", "folder to write")
    overwrite: str = setting("false", "whether a folder that is no export may be set aside", choices=("true", "false"))
    outputs: str = setting("outputs", "output folder in which the run is looked for")

    def check_rules(self) -> None:
        """Both ends are needed."""
        if not self.run:
            raise self.refuse("run", "must be given", "Set run=NAME")
        if not self.to:
            raise self.refuse("to", "must be given", "Set to=DIR")
