"""The operations on models. Pure."""

from api.openapi.vocabulary import (
    INVALID_QUERY,
    UNAVAILABLE,
    UUID,
    Operation,
    Parameter,
    answered,
    enum,
    integer,
    query,
)

LIST_MODELS = Operation(
    "listModels",
    "models",
    "The models that jobs may use",
    parameters=[
        query("enabled", "Those that are installed and enabled, or the others.", enum("true", "false")),
        query("page", "The page's number, from 1.", integer(1, 2**31 - 1, 1)),
        query("limit", "Models a page.", integer(1, 200, 50)),
    ],
    replies=answered(
        "The default generator first, upscalers last.",
        "ModelList",
        links={"getModel": {"model_id": "$response.body#/models/0/id"}},
    ),
    errors=INVALID_QUERY | UNAVAILABLE,
)
GET_MODEL = Operation(
    "getModel",
    "models",
    "One model",
    parameters=[Parameter("model_id", "path", "The model's id.", UUID)],
    replies=answered("The model.", "ModelDetail"),
    errors={"not_found": "No such model, or an id that is no UUID."} | UNAVAILABLE,
)
