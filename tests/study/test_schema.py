"""The store's schema: taken step by step from each older version, refused where it is newer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import study.migrations
from study import schema
from study.database import make_engine
from study.errors import RequestError
from study.store import RUNNING, Store, _meta
from tests.study.test_store import RUN, ask

VERSIONS = ["0001", "0002", "0003"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    made: str = request.getfixturevalue("postgres_url")
    return made


def older(url: str, version: str) -> sa.Engine:
    """A store as that version left it: a study with a point and a run."""
    engine = make_engine(url)
    with engine.execution_options(kdstudy_write=True).begin() as connection:
        schema._stamp(connection, version)
        connection.exec_driver_sql(f"DELETE FROM {schema.VERSION_TABLE}")
        schema.upgrade(connection, version)
        for statement in (
            "INSERT INTO kdstudy_studies (name, spec, info, created, wall_seconds) VALUES ('a', '{}', '{}', 1, 0)",
            "INSERT INTO kdstudy_points (study, stage, point_id, pair, method, parameters, state) "
            "VALUES ('a', 'ablation', 'second', 'p', 'kd', '{\"tau\": 4.0}', 'OPEN'), "
            "('a', 'ablation', 'first', 'p', 'kd', '{\"tau\": 2.0}', 'OPEN')",
            "INSERT INTO kdstudy_runs (run_id, identity, state, attempt, losses, epochs, epoch, device_seconds, "
            f"created) VALUES ('{RUN}', '{{\"seed\": 1}}', 'WAITING', 0, 0, 3, 0, 0, 1)",
            "INSERT INTO kdstudy_study_runs (study, stage, point_id, run_id, seed, screening, pruned, position) "
            f"VALUES ('a', 'ablation', 'second', '{RUN}', 1, false, false, 0)",
        ):
            connection.exec_driver_sql(statement)
    return engine


def differences(engine: sa.Engine) -> list[Any]:
    """What the database's tables differ in from ours."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, _: kind != "table" or name in _meta.tables}
        )
        return compare_metadata(context, _meta)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_store_is_brought_up_with_what_it_holds(url: str, version: str) -> None:
    engine = older(url, version)
    for _ in range(2):
        with Store(url).opened() as store:
            assert {point.point_id for point in store.points("a")} == {"first", "second"}
            assert store.points("a")[0].origin == ""
            assert [(run.run_id, run.revision, run.identity) for run in store.runs("a")] == [(RUN, 0, {"seed": 1})]
    assert differences(engine) == []
    with Store(url).opened() as store:
        store.claim(RUN, "a")
        assert [run.state for run in store.runs("a", since=0)] == [RUNNING]
    engine.dispose()


def test_points_of_an_sqlite_store_keep_the_order_of_their_creation(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    older(url, "0003").dispose()
    with Store(url).opened() as store:
        assert [point.point_id for point in store.points("a")] == ["second", "first"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_from_before_alembic_is_brought_up_too(tmp_path: Path, version: int) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    engine = older(url, f"{version:04d}")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {schema.VERSION_TABLE}")
        connection.exec_driver_sql("CREATE TABLE kdstudy_schema (version INTEGER NOT NULL)")
        connection.exec_driver_sql(f"INSERT INTO kdstudy_schema VALUES ({version})")
    with Store(url).opened() as store:
        assert len(store.runs("a")) == 1
    assert differences(engine) == []
    assert "kdstudy_schema" not in sa.inspect(engine).get_table_names()
    engine.dispose()


def test_a_new_store_is_the_one_that_took_all_steps(url: str) -> None:
    with Store(url).opened() as store:
        ask(store, "a")
        assert differences(store.engine) == []
        with store.engine.connect() as connection:
            assert connection.scalar(sa.text(f"SELECT version_num FROM {schema.VERSION_TABLE}")) == schema.HEAD


def test_the_head_is_the_newest_step() -> None:
    folder = str(Path(next(iter(study.migrations.__path__))))
    assert ScriptDirectory(folder).get_current_head() == schema.HEAD


@pytest.mark.parametrize("version", ["0005", "9999"])
def test_a_newer_store_is_refused_and_left_as_it_is(url: str, version: str) -> None:
    with Store(url).opened() as store, store.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{version}'")
        connection.exec_driver_sql("DROP TABLE kdstudy_drivers")
    says = f"its schema is version {version}, this kdstudy reads {schema.HEAD}"
    with pytest.raises(RequestError, match=says) as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    engine = make_engine(url)
    assert "kdstudy_drivers" not in sa.inspect(engine).get_table_names()
    engine.dispose()
