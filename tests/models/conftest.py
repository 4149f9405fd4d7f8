from pathlib import Path

import pytest
from tiny_models import tiny_module, tiny_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny model, by family; written once."""

    def folder(family: str) -> str:
        path: Path = tmp_path_factory.getbasetemp() / f"tiny-{family}"
        if not path.exists():
            tiny_module(family).save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
        return str(path)

    return folder
