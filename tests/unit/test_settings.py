"""Settings: what the environment may say, and what is made of it."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services import ApiConfig
from dreamforge.settings import VARIABLES_BY_FIELD, Settings, SettingsError, load_settings


def settings(**environ: str) -> Settings:
    """The settings of an environment that gives no cause for a warning."""
    found, warnings = load_settings(environ)
    assert warnings == []
    return found


def test_nothing_set_gives_the_defaults() -> None:
    assert settings() == Settings()
    assert settings().api_base == "http://127.0.0.1:8001"


def test_every_field_has_exactly_one_variable() -> None:
    assert list(VARIABLES_BY_FIELD) == [field.name for field in msgspec.structs.fields(Settings)]
    names = [name for var in VARIABLES_BY_FIELD.values() for name in var.names]
    assert len(names) == len(set(names))


def test_empty_and_blank_mean_unset() -> None:
    assert settings(DF_PORT="", DF_S3_BUCKET="  ", DF_DB_URL="", DF_FAKE_RUNNER="") == Settings()


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("postgresql://u:p@db:5432/forge", "postgresql://u:p@db:5432/forge"),
        ("postgresql+asyncpg://u:p@db/forge", "postgresql://u:p@db/forge"),
        ("postgres+psycopg2://u:p@db/forge?sslmode=require", "postgresql://u:p@db/forge?sslmode=require"),
        ("postgres:///forge?host=/run/pg", "postgresql:///forge?host=/run/pg"),
    ],
)
def test_a_database_url_may_name_a_driver(given_url: str, used: str) -> None:
    assert settings(DF_DB_URL=given_url).db_url == used


def test_listening_uses_the_database_url_unless_it_has_its_own() -> None:
    assert settings(DF_DB_URL="postgresql://pooler/forge").db_listen_url == "postgresql://pooler/forge"
    both = settings(DF_DB_URL="postgresql://pooler/forge", DF_DB_LISTEN_URL="postgresql://direct/forge")
    assert both.db_listen_url == "postgresql://direct/forge"


def test_the_old_minio_names_are_honoured() -> None:
    found = settings(
        DF_MINIO_ENDPOINT="minio:9000",
        DF_MINIO_ACCESS_KEY="key",
        DF_MINIO_SECRET_KEY="word",
        DF_MINIO_BUCKET="old",
        DF_MINIO_REGION="eu",
        DF_MINIO_PUBLIC_ENDPOINT="https://files.example/",
    )
    assert (found.s3_endpoint, found.s3_access_key, found.s3_secret_key) == ("http://minio:9000", "key", "word")
    assert (found.s3_bucket, found.s3_region, found.s3_public_endpoint) == ("old", "eu", "https://files.example")


def test_the_new_s3_name_wins_over_the_old_one() -> None:
    assert settings(DF_MINIO_BUCKET="old", DF_S3_BUCKET="new").s3_bucket == "new"
    assert settings(DF_MINIO_BUCKET="old", DF_S3_BUCKET="").s3_bucket == "old"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("false", False), ("no", False)],
)
def test_flags(text: str, meant: bool) -> None:  # noqa: FBT001 - a value under test
    assert settings(DF_FAKE_RUNNER=text).fake_runner is meant


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("DF_PORT", "eighty", "a whole number from 0 to 65535"),
        ("DF_PORT", "65536", "a whole number from 0 to 65535"),
        ("DF_LEASE_S", "3", "a number above 3 and at most 86400"),
        ("DF_LEASE_S", "nan", "a number above 3 and at most 86400"),
        ("DF_FAKE_RUNNER", "maybe", "1, true, yes or on; or 0, false, no or off"),
        ("DF_CREATE_STATUS", "201", "202 or 200"),
        ("DF_DB_POOLER", "session", "one of transaction"),
        ("DF_FAKE_FAIL", "downscale", "generate or upscale"),
        ("DF_S3_BUCKET", "No_Good", "a bucket name"),
        ("DF_S3_ENDPOINT", "ftp://host", "a URL like"),
        ("DF_PRESIGN_EXPIRES_S", "an hour", "a whole number clamped to 300 to 86400"),
    ],
)
def test_a_value_that_cannot_be_read_stops_the_start(name: str, text: str, form: str) -> None:
    """The message names the variable, its value and the accepted form."""
    with pytest.raises(SettingsError) as raised:
        load_settings({name: text})
    assert name in str(raised.value)
    assert repr(text) in str(raised.value)
    assert form in str(raised.value)


def test_an_old_name_is_named_in_its_own_error() -> None:
    with pytest.raises(SettingsError, match="DF_MINIO_BUCKET"):
        load_settings({"DF_MINIO_BUCKET": "No_Good"})


def test_secrets_stay_out_of_messages() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"DF_DB_URL": "mysql://root:hunter2@db/forge"})
    assert "DF_DB_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    shown = repr(settings(DF_DB_URL="postgresql://u:hunter2@db/forge", DF_S3_SECRET_KEY="hunter2"))
    assert "hunter2" not in shown
    assert "s3_bucket='dreamforge'" in shown


@pytest.mark.parametrize(("text", "seconds"), [("10", 300), ("-1", 300), ("900", 900), ("9999999", 86400)])
def test_presigned_lifetimes_are_clamped(text: str, seconds: int) -> None:
    assert settings(DF_PRESIGN_EXPIRES_S=text).presign_expires_s == seconds


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("generate:0.5,upscale:0.5", {"generate": 0.5, "upscale": 0.5}),
        ("upscale:3, generate:1", {"generate": 0.25, "upscale": 0.75}),
        ("generate:0,upscale:7", {"generate": 0.0, "upscale": 1.0}),
    ],
)
def test_progress_weights_are_divided_by_their_sum(text: str, weights: dict[str, float]) -> None:
    assert settings(DF_PROGRESS_WEIGHTS=text).progress_weights == weights


@pytest.mark.parametrize(
    "text",
    [
        "generate:1",
        "generate:1,upscale:-1",
        "generate:0,upscale:0",
        "generate:nan,upscale:1",
        "generate:inf,upscale:1",
        "generate:1,upscale:1,polish:1",
        "generate:1,generate:1,upscale:1",
        "generate:1:2,upscale:1",
        "half and half",
    ],
)
def test_progress_weights_of_another_form_warn_once_and_give_the_default(text: str) -> None:
    found, warnings = load_settings({"DF_PROGRESS_WEIGHTS": text})
    assert found.progress_weights == {"generate": 0.5, "upscale": 0.5}
    assert len(warnings) == 1
    assert "DF_PROGRESS_WEIGHTS" in warnings[0]


@given(st.text(max_size=40))
def test_progress_weights_never_stop_the_start(text: str) -> None:
    found, warnings = load_settings({"DF_PROGRESS_WEIGHTS": text})
    assert sum(found.progress_weights.values()) == pytest.approx(1.0)
    assert len(warnings) <= 1


def test_unknown_names_warn_and_suggest() -> None:
    found, warnings = load_settings(
        {"DF_PROT": "9", "DF_WHATEVER": "1", "DF_TEST_DB_URL": "x", "HOME": "/", "AWS_PROFILE": "p"}
    )
    assert found == Settings()
    assert warnings == [
        "DF_PROT is no setting of this release; is DF_PORT meant?",
        "DF_WHATEVER is no setting of this release.",
    ]


@pytest.mark.parametrize(
    ("host", "base"),
    [("0.0.0.0", "http://127.0.0.1:9000"), ("::", "http://[::1]:9000"), ("forge.lan", "http://forge.lan:9000")],
)
def test_the_client_finds_the_service_where_it_listens(host: str, base: str) -> None:
    assert settings(DF_HOST=host, DF_PORT="9000").api_base == base
    assert settings(DF_HOST=host, DF_API_BASE="https://forge.example/").api_base == "https://forge.example"


def test_a_dotenv_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# the forge\n\n"
        "export DF_PORT = 9000\n"
        "DF_S3_BUCKET='single quoted'  # refused below if it were used\n"
        'DF_S3_SECRET_KEY="a \\"word\\" # and all"\n'
        "DF_S3_ACCESS_KEY=key#1 # the first\n"
        "DF_HOST= # nothing\n"
        "PATH=/elsewhere\n",
        "utf-8",
    )
    found, warnings = load_settings({"DF_S3_BUCKET": "mine", "DF_PORT": ""}, dotenv)
    assert warnings == []
    assert (found.port, found.s3_bucket, found.host) == (9000, "mine", "127.0.0.1")
    assert (found.s3_secret_key, found.s3_access_key) == ('a "word" # and all', "key#1")


def test_a_dotenv_line_that_is_no_assignment_is_named(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DF_PORT=1\nDF_S3_SECRET_KEY='hunter2\n", "utf-8")
    with pytest.raises(SettingsError, match="line 2") as raised:
        load_settings({}, dotenv)
    assert "hunter2" not in str(raised.value)


def test_a_missing_dotenv_file_is_no_matter(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path / ".env") == (Settings(), [])


@pytest.mark.parametrize(
    ("endpoint", "public", "accepted"),
    [
        ("http://store:9000", "https://images.example.org", True),
        ("http://store:9000", "https://example.org/images", False),
        ("http://store:9000/storage/v1/s3", "https://example.org/storage/v1/s3/", True),
        ("http://store:9000/storage/v1/s3", "https://example.org", False),
        ("", "https://example.org/images", False),
    ],
)
def test_the_public_endpoint_has_the_path_that_the_store_sees(endpoint: str, public: str, accepted: bool) -> None:  # noqa: FBT001
    """A presigned URL's path is signed: behind a proxy that strips one the store would reject every image."""
    given = {"DF_S3_ENDPOINT": endpoint, "DF_S3_PUBLIC_ENDPOINT": public}
    if accepted:
        assert settings(**given).s3_public_endpoint == public.rstrip("/")
        return
    with pytest.raises(SettingsError, match=r"DF_S3_PUBLIC_ENDPOINT is 'https://example.org.*with another path"):
        settings(**given)


def test_the_api_has_the_settings_of_the_same_name() -> None:
    """Given a setting that is renamed on one side only, then the API would silently keep its default."""
    own = {"eager_s", "hosts", "slow_client_s", "patience_s", "weights"}
    assert set(ApiConfig.__struct_fields__) - own <= set(Settings.__struct_fields__)
