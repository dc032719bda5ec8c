"""What the ``dashboard`` command is asked for. One number: 6006, TensorBoard's usual port; Optuna's page has the next one."""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting

__all__ = ["DashboardConfig"]


@dataclass(kw_only=True, slots=True)
class DashboardConfig(Settings):
    """Where the pages are served, and to whom."""

    port: int = setting(6006, "port of TensorBoard; Optuna's page has the next one", at_least=1, at_most=65534)
    host: str = setting("127.0.0.1", "address that the pages are served at")
    allow_others: str = setting("false", "whether other machines may see the pages", choices=("true", "false"))
