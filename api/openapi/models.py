"""The operations on models. Pure."""

from api.openapi.vocabulary import (
    INVALID_QUERY_ERROR,
    UNAVAILABLE_ERROR,
    UUID_SCHEMA,
    Operation,
    Parameter,
    enum_schema,
    integer_schema,
    json_replies,
    query_parameter,
)

LIST_MODELS = Operation(
    "listModels",
    "models",
    "The models that jobs may use",
    parameters=[
        query_parameter(
            "enabled", "Those that are installed and enabled, or the others.", enum_schema("true", "false")
        ),
        query_parameter("page", "The page's number, from 1.", integer_schema(1, 2**31 - 1, 1)),
        query_parameter("limit", "Models a page.", integer_schema(1, 200, 50)),
    ],
    replies=json_replies(
        "The default generator first, upscalers last.",
        "ModelList",
        links={"getModel": {"model_id": "$response.body#/models/0/id"}},
    ),
    errors=INVALID_QUERY_ERROR | UNAVAILABLE_ERROR,
)
GET_MODEL = Operation(
    "getModel",
    "models",
    "One model",
    parameters=[Parameter("model_id", "path", "The model's id.", UUID_SCHEMA)],
    replies=json_replies("The model.", "ModelDetail"),
    errors={"not_found": "No such model, or an id that is no UUID."} | UNAVAILABLE_ERROR,
)
