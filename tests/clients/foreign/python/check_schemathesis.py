"""schemathesis: requests that the description of the routes allows, and many that it does not.

The description is written by whoever runs this (`tests/clients/description.py`). Not every request
that it allows is answered: one that contradicts itself is a 400. No request may be a 5xx, hang, or
get an error in a shape of its own (the recorder in between checks that).
"""

from __future__ import annotations

import json
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.generation import GenerationMode

from appliance import LIMIT_S, URL

EXAMPLES = 25
KNOWN_STATUS = {200, 204, 400, 404, 405, 409, 413, 415}

config = SchemathesisConfig(
    projects=ProjectsConfig(
        default=ProjectConfig(
            base_url=URL,
            generation=GenerationConfig(modes=list(GenerationMode), deterministic=True),
            # Every keyword of every field by itself: thousands of requests a route.
            phases=PhasesConfig(coverage=CoveragePhaseConfig(enabled=False)),
        )
    )
)
schema = schemathesis.openapi.from_dict(json.loads(Path("openapi.json").read_text()), config=config)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request(case: schemathesis.Case) -> None:
    response = case.call(base_url=URL, timeout=LIMIT_S)
    case.validate_response(response, checks=[not_a_server_error])
    assert response.status_code in KNOWN_STATUS, response.text
