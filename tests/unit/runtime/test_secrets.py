"""Secrets in a configuration are refused without being repeated; names of special tokens are not secrets."""

import pytest

from coordexp.runtime.errors import ConfigError
from coordexp.runtime.secrets import refuse_secrets

VALUE = "correct-horse-battery"


@pytest.mark.parametrize(
    "key",
    [
        *("hub_token", "token", "ms_token", "HF_TOKEN", "password", "wandb_api_key", "api-key", "apikey", "aws_secret"),
        *("secret_access_key", "client_secret", "db_passwd", "private_key", "credentials", "Authorization"),
    ],
)
def test_a_secret_is_refused_by_its_key_at_any_depth(key):
    with pytest.raises(ConfigError, match=f"training.env.{key}: a secret must not be set here") as caught:
        refuse_secrets({"training": {"env": {key: VALUE}}}, "recipe.yaml")
    assert VALUE not in str(caught.value) and "HF_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["hf_" + "a1" * 17, "ghp_" + "B2" * 18, "sk-" + "c3" * 20, "https://me:pass@example.org/x"]
)
def test_a_secret_is_refused_by_its_form(value):
    with pytest.raises(ConfigError, match=r"training\.args\[1\]") as caught:
        refuse_secrets({"training": {"args": ["x", f"--with={value}"]}}, "recipe.yaml")
    assert value not in str(caught.value)


def test_other_keys_and_empty_secrets_are_allowed():
    refuse_secrets(
        {
            "eos_token": "<|im_end|>",
            "max_new_tokens": 2048,
            "coord_tokens": {"enabled": True},
            "tokenizer": "x",
            "push_to_hub": False,
            "hub_token": None,
            "use_auth_token": False,
            "key": "value",
            "user_prompt": "Find every token, password: and secret.",
        },
        "recipe.yaml",
    )
