"""What the tests of sweeps share: a PostgreSQL server, where the machine has one."""

import importlib.util
from collections.abc import Iterator

import pytest

from tests.sweep.postgres import Postgres, programs


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for the whole session; a test that stops it starts it again."""
    place = programs()
    if place is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    server = Postgres(place)
    try:
        yield server
    finally:
        server.remove()
