"""One thread here, as where texts are continued."""

from tests.generation.conftest import one_thread

__all__ = ["one_thread"]
