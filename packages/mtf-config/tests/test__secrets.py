"""Names of secrets are told from names that only sound like them."""

import pytest

from mtf_config import ConfigurationManager, ConfigValidationError
from mtf_config._secrets import SECRET_NAME


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *(
            (name, True)
            for name in ("HF_TOKEN", "TOKEN", "db_password", "PASSWD", "SECRET")
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
    assert bool(SECRET_NAME.search(name)) == is_secret


@pytest.mark.parametrize(
    "override", ["+model.api_key=sk-12345", "+model.login={password: sk-12345}"]
)
def test_a_secret_in_an_override_is_not_shown(override: str) -> None:
    """Neither provenance nor an error repeats what an override says of a secret."""
    values = {
        "experiment_name": "a",
        "model": {"type": "m"},
        "data": {"dataset_name": "d"},
    }
    manager = ConfigurationManager()
    config = manager.create_config(values, [override])
    key = override[1:].partition("=")[0]
    assert "sk-12345" not in str(config.provenance(key))
    with pytest.raises(ConfigValidationError) as caught:
        manager.create_config(values, [override, "seed=-1"])
    assert "sk-12345" not in str(caught.value)
