"""What a deployment with Celery workers is configured by: environment variables, and the files of deploy/celery."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from sv_pipeline.defs.celery import settings
from sv_pipeline.defs.executors import EXECUTOR_VARIABLE, executor_from_environment
from sv_pipeline_tests.defs.dev_server import PROJECT

VARIABLES = (settings.BROKER_VARIABLE, settings.BACKEND_VARIABLE, "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(EXECUTOR_VARIABLE, "celery")


def test_without_a_broker_the_definitions_name_the_variable_to_set() -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=settings.BROKER_VARIABLE):
        executor_from_environment()


def test_a_broker_that_keeps_no_results_needs_a_place_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.BROKER_VARIABLE, "amqp://broker.example")
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=settings.BACKEND_VARIABLE):
        executor_from_environment()
    monkeypatch.setenv(settings.BACKEND_VARIABLE, "redis://results.example/1")
    assert executor_from_environment().name == "celery"
    assert settings.backend_url() == "redis://results.example/1"


@pytest.mark.parametrize("variable", [settings.BROKER_VARIABLE, "CELERY_BROKER_URL"])
def test_our_variable_and_that_of_celery_name_the_broker(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "redis://broker.example/0")
    assert settings.broker_url() == settings.backend_url() == "redis://broker.example/0"


def test_settings_that_lose_no_step_hold_for_runs_and_for_workers() -> None:
    for found in (settings.settings_of_runs(), settings.settings_of_workers()):
        assert found["task_acks_late"]
        assert found["task_reject_on_worker_lost"]
        assert found["worker_prefetch_multiplier"] == 1
        assert found["broker_transport_options"]["visibility_timeout"] >= settings.SHORTEST_VISIBILITY


def test_the_instance_of_the_deployment_differs_only_in_where_it_stores() -> None:
    own = yaml.safe_load((PROJECT / "instance" / "dagster.yaml").read_text())
    deployed = yaml.safe_load((PROJECT / "deploy" / "celery" / "dagster.yaml").read_text())
    for more in ("storage", "compute_logs"):
        deployed.pop(more)
    assert deployed["run_queue"].pop("max_user_code_failure_retries") > 0
    assert deployed["run_queue"].pop("user_code_failure_retry_delay") > 0
    a_day = own["run_monitoring"]["max_runtime_seconds"]
    assert deployed["run_monitoring"].pop("max_runtime_seconds") >= 30 * a_day, "large layers take days"
    del own["run_monitoring"]["max_runtime_seconds"]
    assert deployed == own
