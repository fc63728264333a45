"""Names of secrets are told from names that only sound like them."""

import pytest

from mtf_config import ConfigurationManager, ConfigValidationError, OverrideError
from mtf_config._secrets import is_secret_name


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *(
            (name, True)
            for name in (
                "HF_TOKEN",
                "TOKEN",
                "db_password",
                "PASSWD",
                "SECRET",
                "PGPASSWORD",
                "MYSQL_PWD",
                "accessToken",
                "api-key",
                "OPENAI_KEY",
                "MY_TOKEN2",
                "GITHUB_PAT",
            )
        ),
        *((name, True) for name in ("AWS_SECRET_ACCESS_KEY", "MY_APIKEY", "CREDENTIALS")),
        *(
            (name, False)
            for name in ("TOKENIZERS_PARALLELISM", "KEYBOARD", "HOME", "PWD")
        ),
        *((name, False) for name in ("SECRETARY", "NUM_TOKENS", "SSH_KEY_PATH")),
    ],
)
def test_names_of_secrets(name: str, is_secret: bool) -> None:  # noqa: FBT001
    """Words that mean a secret are found between underscores, and nowhere else."""
    assert is_secret_name(name) == is_secret


@pytest.mark.parametrize(
    "override",
    ["+model.api_key=sk-12345", "+model.login={password: sk-12345}"],
)
def test_a_secret_is_refused_and_not_shown(override: str) -> None:
    """A config holds no secret, and the refusal does not repeat it."""
    values = {
        "experiment_name": "a",
        "model": {"type": "m"},
        "data": {"dataset_name": "d"},
    }
    with pytest.raises(ConfigValidationError, match="looks like a secret") as caught:
        ConfigurationManager().create_config(values, [override])
    assert "sk-12345" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["+model.api_key:sk-12345", "+model.password sk-12345"]
)
def test_a_secret_in_a_mistyped_override_is_not_shown(override: str) -> None:
    """An override without its sign does not show what it was to hide."""
    with pytest.raises(OverrideError) as caught:
        ConfigurationManager().create_config({}, [override])
    assert "sk-12345" not in str(caught.value)
