import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import save_dataset, save_model

NOISY = [
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks transformers by the old name
    "ignore:.*__bf16_to_float.*:UserWarning",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for noise in NOISY:
                item.add_marker(pytest.mark.filterwarnings(noise))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Several threads on few and busy cores wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Our samples in packs of 256 tokens, with a validation split."""
    return save_dataset(tmp_path_factory.mktemp("data") / "prepared", validation=0.2)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A tiny random Llama."""
    return save_model("llama", tmp_path_factory.mktemp("model") / "llama")
